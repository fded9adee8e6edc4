"""`kvtools coldstart-mix`: conversations of five modes in, one checked and mixed stream out."""

from fractions import Fraction
from typing import Annotated, Any, Literal

from kvtools import options as opt
from kvtools.errors import READABLE, Corrupt, Missing, Stopped, Usage, raising

EXAMPLES = [
    "kvtools coldstart-mix -q --think math.jsonl --no-think chats.json --ratio 1:2 -o mix.kvs",
    "kvtools coldstart-mix -q --no-think chats.json --length 4096 | kvtools info --records -",
]
EXIT_CODES = (0, 2, 65, 66, 73, 74, 75, 141)
SEE_ALSO = ("kvtools pretrain keye", "kvtools convert", "kvtools chat", "kvtools plot", "kvtools-stream(5)")
COMMON = ("output", "compress", "force", "strict", "config", "print_config", "stamp")
GROUPS = {
    "Sources": ("--think", "--no-think", "--auto", "--agentic", "--video", "--media"),
    "Mixing": ("--ratio", "-n", "--epochs", "--repeat", "--frames", "--seed"),
    "Cleaning": ("--repair", "--against", "--max-tokens", "--min-agreement", "--run-code"),
    "Packing": ("--tokenizer", "--length", "--patches"),
}


def main(
    run: opt.Invocation,
    think: Annotated[list[str] | None, opt.value("FILE", "Conversations that reason first; may be repeated.")] = None,
    no_think: Annotated[list[str] | None, opt.value("FILE", "Conversations with bare answers; may be repeated.")] = None,
    auto: Annotated[list[str] | None, opt.value("FILE", "Conversations that decide first; may be repeated.")] = None,
    agentic: Annotated[list[str] | None, opt.value("FILE", "Conversations that run code; may be repeated.")] = None,
    video: Annotated[list[str] | None, opt.value("FILE", "Conversations about videos; may be repeated.")] = None,
    media: opt.Media = None,
    ratio: Annotated[
        str | None, opt.value("A:B:…", "Weights of the modes given, in the order above. Default: 230:330:20:100:104.")
    ] = None,
    number: Annotated[
        int | None, opt.value("N", "Records to write. Default: as many as the ratio allows.", "-n", "--number", least=1)
    ] = None,
    epochs: Annotated[
        str | None, opt.value("A:B:…", "Passes over each mode, in place of --ratio and -n; above 1 repeats samples.")
    ] = None,
    repeat: Annotated[bool, opt.option("Repeat the samples of a mode that has too few.", "--repeat")] = False,
    frames: Annotated[str, opt.value("N,N,…", "Use each video at these numbers of frames.")] = "16,32",
    repair: Annotated[bool, opt.option("Repair white space, misspelt tags and an unclosed last tag.", "--repair")] = False,
    against: Annotated[
        list[str] | None, opt.value("FILE|DIR", "Leave out what repeats these evaluation sets; may be repeated.")
    ] = None,
    max_tokens: Annotated[int | None, opt.value("N", "Leave out samples of more tokens.", least=1)] = None,
    min_agreement: Annotated[
        float, opt.value("X", "Leave out prompts whose sampled answers agree less, 0 to 1.", least=0, most=1)
    ] = 0.0,
    run_code: Annotated[bool, opt.option("Run the code of agentic samples in the sandbox.", "--run-code/--no-run-code")] = True,
    tokenizer: opt.Tokenizer = None,
    length: Annotated[int | None, opt.value("S", "Pack into rows of S tokens, a stream of kind sequence.", least=16)] = None,
    patches: Annotated[
        Literal["inline", "reference"],
        opt.option("Whether rows hold patches, or name their pictures and videos, which pretrain keye finds in --media."),
    ] = "inline",
    rejects: Annotated[
        str | None, opt.value("FILE", "Write what was left out to FILE as JSON Lines, with the reasons.")
    ] = None,
    report: opt.ReportFile = None,
    as_json: opt.AsJson = False,
    jobs: Annotated[
        int | None, opt.value("N", "Processes that examine documents. Default: the cores, under several ranks 1.", least=1)
    ] = None,
    seed: opt.Seed = 0,
) -> int:
    """Mix conversations of five modes by ratio, checked, cleaned and optionally packed.

    Every answer is held against the format of its mode; what breaks it is left out and counted. Exact and near duplicates and
    what repeats an evaluation set are left out. Records depend on what the sources hold, the ratio and the seed, not on the
    order of the sources, jobs or ranks. A source that cannot be read, or a mode with too few samples, is reported, the rest is
    written, and the exit code is 65. A stopped run continues when the same command is run again.
    """
    import os
    from contextlib import ExitStack
    from functools import partial

    from kvtools.artifact.files import Sink, stamps
    from kvtools.artifact.history import extend
    from kvtools.artifact.state import state_folder
    from kvtools.artifact.stream import Head, Writer
    from kvtools.keye.data.chat_template import ChatTemplate
    from kvtools.keye.data.media import Media
    from kvtools.keye.data.processor import Processor
    from kvtools.keye.mix import ratio as ratios
    from kvtools.keye.mix.evaluation import read_evaluation
    from kvtools.keye.mix.examine import Examiner, Rules
    from kvtools.keye.mix.journal import open_journal
    from kvtools.keye.mix.mixture import Request, Tally, choose, summary
    from kvtools.keye.mix.mixture import report as report_of
    from kvtools.keye.mix.pool import Pool
    from kvtools.keye.mix.rejects import Rejects
    from kvtools.keye.mix.sources import Origins, documents, sources_of
    from kvtools.keye.mix.workers import Workers, examined
    from kvtools.keye.mix.write import Packing, write
    from kvtools.progress import progress
    from kvtools.world import Stop

    given = {"think": think, "no_think": no_think, "auto": auto, "agentic": agentic, "video": video}
    modes = tuple(mode for mode, names in given.items() if names)
    sources = sources_of(given)
    opt.refuse_if(
        (not sources, "no source is given. Give files of conversations, as --think FILE --no-think FILE."),
        (epochs is not None and (ratio or number), "--epochs stands in place of --ratio and -n. Give one or the other."),
        (patches == "reference" and length is None, "--patches reference is of packed rows. Give --length S, too."),
        (as_json and run.output == "-", "--json and the records cannot both go to stdout. Give -o FILE."),
    )
    run.refuse_shared_stdin(*(source.src for source in sources))
    frame_counts = _frame_counts(frames)
    weights = _numbers("--ratio", ratio, modes) or tuple(Fraction(ratios.REPORT_RATIO[mode]) for mode in modes)
    passes = _numbers("--epochs", epochs, modes)
    recipe: dict[str, Any] = {
        "ratio": None if passes else ":".join(map(str, weights)), "number": number, "epochs": epochs, "repeat": repeat,
        "seed": seed, "frames": frames, "repair": repair, "max_tokens": max_tokens, "min_agreement": min_agreement,
        "run_code": run_code, "length": length, "patches": patches,
    }  # fmt: skip
    if run.print_config:
        return run.print_recipe(recipe)
    if not any(source.src == "-" or os.path.exists(source.src) for source in sources):
        raise Missing(f"{sources[0].src}: no such file or directory. {READABLE}")
    for source in sources:
        run.refuse_own_input(source.src, report=report)
    run.refuse_existing(report, rejects)
    world, folder, origins = run.world, state_folder(run.output), Origins()

    template, roots = ChatTemplate.open(tokenizer), [source.root for source in sources]
    most = min((n for n in (max_tokens, length) if n is not None), default=None)
    if tokenizer is None and most is not None:
        run.info("no --tokenizer is given: a token is a byte of UTF-8, as of a model that is trained without one.")
    rules = Rules(repair, most, frame_counts, is_code_run=run_code, is_packed=length is not None)
    request = Request(modes, ratios.whole(weights), number, passes, is_repeated=repeat, seed=seed, frames=frame_counts)
    open_media = partial(Media, media or [], roots=roots)
    n_jobs = jobs or (1 if world.size > 1 else len(os.sched_getaffinity(0)))
    stop = Stop() if folder is not None else False  # before the workers, which must not heed the signals either
    with ExitStack() as stack:
        examination = Head("examined", run.history(), {**recipe, "files": stamps(tokenizer, *against or [], *media or [])})
        journal = stack.enter_context(open_journal(folder, examination, world, start_over=run.force))
        opened = stack.enter_context(open_media())
        evaluation = read_evaluation(against, opened) if against else None
        workers = stack.enter_context(Workers(lambda: Examiner(rules, Processor(template, open_media()), evaluation), n_jobs))
        results = examined(documents(sources, origins), workers, world, journal, stop)
        if not world.is_root:
            for _ in results:
                raise AssertionError("results go to rank 0")
            return int(world.broadcast(None))
        with Pool() as pool, Rejects(rejects, force=run.force, is_strict=run.strict) as reject:
            tally = Tally()
            results = progress(results, total=None, unit="documents", label="coldstart-mix", quiet=run.quiet)
            tally.collect(results, pool, reject)
            tally.clean(pool, min_agreement=min_agreement, reject=reject)
            plan = choose(pool, request)
            if not plan.n:
                names = ", ".join(source.name for source in sources)
                raise Corrupt(f"{names}: no sample is left. {' '.join(reject.lines()) or tally.hint()}")
            for line in reject.lines():
                run.log(line)
            history = extend("coldstart-mix", run.argv, before=origins.histories, inputs=origins.digests, stamp=run.stamp)
            head = Head("conversation" if length is None else "sequence", history, recipe)
            packing = Packing(Processor(template, opened), length, names_media=patches == "reference") if length else None
            try:
                with Writer(Sink(run.output, force=run.force, keep_partial=True), head, level=run.compress) as writer:
                    writer.resume(start_over=run.force)
                    fill = write(pool, writer, packing, stop)
            except Stopped:
                world.broadcast(Stopped.code)
                raise
            figures = report_of(tally, pool, plan, fill)
            run.write_report(report, figures)
    code = Corrupt.code if plan.short or reject.lines() else 0
    world.broadcast(code)
    run.info(summary(figures, tally))
    if plan.short:
        run.warn(plan.lacks())
    if as_json:
        run.print_json(figures)
    return code


def _numbers(option: str, text: str | None, modes: tuple[str, ...]) -> tuple[Fraction, ...]:
    """The numbers of an option, one a mode; none where it is not given. Raises Usage."""
    from kvtools.keye.mix.ratio import parse_numbers
    from kvtools.skipped import counted

    if text is None:
        return ()
    with raising(Usage, option, "Give numbers such as 2:1."):
        numbers = tuple(parse_numbers(text))
    if len(numbers) != len(modes):
        listed = ", ".join(modes)
        has = f"{counted(len(numbers), 'number')} for {counted(len(modes), 'mode')}"
        raise Usage(f"{option} {text} has {has}. Give one each for {listed}.")
    return numbers


def _frame_counts(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise Usage(f"--frames {text} is not a list of numbers. Give them with commas, as 16,32.")
    return tuple(dict.fromkeys(map(int, parts)))
