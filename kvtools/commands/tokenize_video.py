"""`kvtools tokenize-video`: videos to a stream of patches with the times of their frames."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kvtools import options as opt
from kvtools.errors import Died

if TYPE_CHECKING:
    from kvtools.video.inputs import Clip
    from kvtools.video.run_report import RunReport

EXAMPLES = [
    "kvtools tokenize-video clip.mp4 -o clip.kvs",
    "kvtools tokenize-video --fps 1 videos/ | kvtools info --records -",
    "kvtools tokenize-video --encoder keye.safetensors videos/ | kvtools embed - | kvtools info --records -",
]
EXIT_CODES = (0, 2, 65, 66, 73, 74, 75, 141)
SEE_ALSO = ("kvtools info", "kvtools cat", "kvtools check", "kvtools-stream(5)")
COMMON = ("output", "compress", "force", "strict", "config", "print_config", "dry_run", "stamp")
GROUPS = {
    "Sampling of frames": ("--min-frames", "--max-frames", "--start", "--end", "--pick", "--decoder"),
    "Inputs and faults": ("--list0", "--root", "--mixed", "--salvage", "--report"),
}


def main(
    run: opt.Invocation,
    videos: Annotated[list[str] | None, opt.argument("VIDEO|DIR", "Videos, and folders of videos or of frames.")] = None,
    list_file: Annotated[
        str | None, opt.value("FILE", "Read paths from FILE, one a line, or JSON Lines; - is stdin.", "--list")
    ] = None,
    list0_file: Annotated[
        str | None, opt.value("FILE", "Read paths from FILE, each ended by NUL, as of find -print0.", "--list0")
    ] = None,
    root: Annotated[str | None, opt.value("DIR", "Folder that relative paths of a list start from.")] = None,
    fps: Annotated[float, opt.value("RATE", "Frames a second; for a folder of frames, the rate they were taken at.")] = 2.0,
    frames: Annotated[int | None, opt.value("N", "Take N frames a clip in place of --fps, evenly spread.", least=1)] = None,
    min_frames: Annotated[int, opt.value("N", "Take at least N frames, where the clip has them.", least=1)] = 4,
    max_frames: Annotated[int, opt.value("N", "Take at most N frames.", least=1)] = 768,
    max_tokens: Annotated[int, opt.value("N", "Most tokens a clip, of 28x28 pixels each; never exceeded.", least=1)] = 24_576,
    frame_tokens: opt.FrameTokens = "128:768",
    start: Annotated[
        float | None, opt.value("SECONDS", "Start of the clip, in seconds after the first frame.", least=0)
    ] = None,
    end: Annotated[float | None, opt.value("SECONDS", "End of the clip, in seconds after the first frame.", least=0)] = None,
    pick: Annotated[
        Literal["any", "reference", "key"],
        opt.option("Take frames from all, from those that other frames refer to, or from key frames."),
    ] = "any",
    decoder: Annotated[
        Literal["auto", "decord", "pyav"], opt.option("Library that decodes; auto is pyav, which was never slower.")
    ] = "auto",
    encoder: Annotated[
        str | None, opt.value("MODEL", "Add the visual tokens of a Keye-VL or SigLIP, and an embedding a clip.")
    ] = None,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    mixed: Annotated[
        Literal["refuse", "pad"], opt.option("Frames of another shape than a clip's first: refuse the clip, or pad them.")
    ] = "refuse",
    salvage: Annotated[bool, opt.option("Of a damaged clip, keep the frames that are whole.")] = False,
    report: Annotated[str | None, opt.value("FILE", "Write counts and every fault to FILE as JSON.")] = None,
    timeout: Annotated[
        float, opt.value("SECONDS", "Give a clip up when its decoder gives nothing for so long.", least=0.001)
    ] = 60.0,
    jobs: Annotated[int | None, opt.value("N", "Clips decoded at once. Default: the number of cores.", least=1)] = None,
    shard: opt.Shard = None,
) -> int:
    """Turn videos into a stream of `video` records: patches, their grid, and the time of each frame.

    With --encoder each record also holds a model's visual tokens and an embedding, which kvtools semid-build and kvtools embed
    read. A video of which a wanted frame is damaged is reported, the others are written, and the exit code is then 65. A run
    that writes a file and was stopped or killed resumes when it is run again. Under mpiexec or srun the ranks share the clips;
    the records and their order do not depend on the number of ranks.
    """
    from kvtools.artifact.files import Sink
    from kvtools.artifact.history import portable
    from kvtools.artifact.stream import Head, Writer
    from kvtools.progress import progress
    from kvtools.train.device import resolve_device
    from kvtools.video.inputs import Clip
    from kvtools.video.patch import Budget
    from kvtools.video.recipe import VideoRecipe
    from kvtools.video.run_report import RunReport
    from kvtools.video.sample import FrameSampling
    from kvtools.video.spread import spread
    from kvtools.world import Stop
    from kvtools.world import shard as take_shard

    opt.refuse_if(
        (fps <= 0, f"--fps {fps:g} is not above 0. Give a rate such as 2."),
        (not 1e-6 <= fps <= 1e6, f"--fps {fps:g} is not from 1e-06 to 1e+06. Give a rate such as 2."),
        (max_tokens > 57_000, f"--max-tokens {max_tokens} is more than a record of 128 MiB holds. Give at most 57000."),
        (end is not None and (start or 0) > end, f"--start {start or 0:g} is after --end {end or 0:g}. Give a later --end."),
    )
    budget = Budget(max_tokens, *opt.parse_range(frame_tokens, "--frame-tokens"))
    sampling = FrameSampling(fps, frames, min(min_frames, max_frames), max_frames, start, end)
    recipe = VideoRecipe(sampling, budget, pick, decoder, mixed, salvage)
    config_fields, embedder = recipe.to_json(), None
    world = run.world
    if encoder is not None:
        compute_device, compute_dtype = resolve_device(device, dtype, rank=world.rank)
        config_fields |= {"encoder": encoder if run.print_config else portable([encoder])[0], "dtype": compute_dtype}
    if run.print_config:
        return run.print_recipe(config_fields)
    run_report = RunReport(run.log, is_strict=run.strict)
    if world.is_root:
        run.refuse_existing(report)
        run.refuse_shared_stdin(list_file, list0_file, is_broadcast=True)
        clips = take_shard(_find(run, videos or [], {list_file: False, list0_file: True}, root, report, run_report), shard)
    if run.dry_run:
        return _show(run, clips, run.output) if world.is_root else 0
    if encoder is not None:
        from kvtools.keye.run.video_embedder import VideoEmbedder

        embedder = VideoEmbedder.open(encoder, device=compute_device, dtype=compute_dtype)
        most = embedder.max_tokens
        too_many = f"--max-tokens {max_tokens} is more than a record holds with --encoder. Give at most {most}."
        opt.refuse_if((max_tokens > most, too_many))
    stop = Stop()
    tokenize = partial(
        spread, n_jobs=jobs, timeout_s=timeout, finish=embedder.finish(max_tokens, stop.__bool__) if embedder else None
    )
    if not world.is_root:
        level, todo = world.broadcast(None)
        for _ in tokenize([Clip(*clip) for clip in todo], recipe, world, stop, level=level):
            raise AssertionError("outcomes go to rank 0")
        return int(world.broadcast(None))

    before, inputs = ([embedder.history], [embedder.digest]) if embedder else ([], [])
    head = Head("video", run.history(before, inputs), config_fields)
    sink = Sink(run.output, force=run.force, keep_partial=True)
    with Writer(sink, head, level=run.compress) as writer:
        done = writer.resume(start_over=run.force, keep=run_report.keeps(clips, sink))
        run_report.n_kept = len(done)
        level, todo = world.broadcast([writer.level, [clip for clip in clips if clip.key not in done]])
        todo = [Clip(*clip) for clip in todo]
        outcomes = progress(
            tokenize(todo, recipe, world, stop, level=level),
            total=len(todo),
            unit="clips",
            label="tokenize-video",
            quiet=run.quiet,
        )
        stopped = run_report.write(writer, outcomes, clips)
        code = run_report.code(has_records=writer.n_records > 0)
        world.broadcast(stopped.code if stopped else code)
        if stopped:
            raise stopped
        run.write_report(report, run_report.to_json())
        run_report.tell_summary(run.info)
        if code and writer.n_records == 0:
            raise Died(code, is_agreed=True)  # without a record the output stays as it was
    return code


def _show(run: opt.Invocation, clips: "Sequence[Clip]", dst: str) -> int:
    """What --dry-run prints."""
    for clip in clips:
        run.print(f"{clip.key}\t{clip.path}")
    typer.echo(f"{len(clips)} clips to {dst}", err=True)
    return 0


def _find(
    run: opt.Invocation,
    videos: list[str],
    lists: dict[str | None, bool],
    root: str | None,
    report: str | None,
    run_report: "RunReport",
) -> "list[Clip]":
    """The clips of the arguments and of the lists; lists: whether each ends its paths with NUL."""
    from kvtools.video.inputs import Search, nothing_found
    from kvtools.video.listing import Listed, read_list

    listed = [Listed(path) for path in videos]
    sources = [src for src in lists if src is not None]
    for src in sources:
        listed += read_list(src, root=root, is_nul=lists[src], reject=lambda where, why: run_report.fault(where, why, "line"))
    opt.refuse_if(
        (not listed and not run_report.faults, "no video is given. Name videos or folders, or give --list."),
        (root is not None and not sources, "--root is used only with --list. Give --list, or leave it out."),
    )
    search = Search()
    for each in listed:
        search.add(each.path, key=each.key, span=each.span, fields=each.fields)
    run_report.found(search, is_search=bool(sources) or len(search.clips) != len(listed))
    if not search.clips and run_report.faults:
        raise Died(run_report.code(has_records=False))
    if not search.clips:
        raise nothing_found([each.path for each in listed])
    frames = filter(search.has_frame, (run.output, report or "-"))
    run.refuse_own_input(*sources, *frames, *(clip.path for clip in search.clips), report=report)
    return search.keyed()
