"""`kvtools tokenize-video`: videos to a stream of patches with the times of their frames."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kvtools import options as opt
from kvtools.errors import Corrupt, Died, NothingDone, Stopped

if TYPE_CHECKING:
    from kvtools.artifact.stream import Writer
    from kvtools.video.pool import Outcome

EXAMPLES = [
    "kvtools tokenize-video clip.mp4 -o clip.kvs",
    "kvtools tokenize-video --fps 1 videos/ | kvtools info --records -",
    "kvtools tokenize-video --encoder keye.safetensors videos/ | kvtools embed - | kvtools info --records -",
]
EXIT_CODES = (0, 2, 65, 66, 73, 74, 75, 141)
SEE_ALSO = ("kvtools info", "kvtools cat", "kvtools check", "kvtools-stream(5)")
COMMON = ("output", "compress", "force", "strict", "config", "print_config", "dry_run", "stamp")
GROUPS = {"Sampling of frames": ("--min-frames", "--max-frames", "--start", "--end", "--pick", "--decoder")}

REMEDIES = {
    "damaged": "Repair or fetch the file again.",
    "unreadable": "Look at its name and its permissions.",
    "unfit": "Give other limits of time, frames or tokens, or leave it out.",
    "model": "Give another model.",
    "late": "Give a longer --timeout, or leave it out.",
}


def main(
    run: opt.Invocation,
    videos: Annotated[list[str] | None, opt.argument("VIDEO|DIR", "Videos, and folders of videos or of frames.")] = None,
    list_file: Annotated[str | None, opt.value("FILE", "Read paths from FILE, one a line; - is stdin.", "--list")] = None,
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
    timeout: Annotated[float, opt.value("SECONDS", "Time limit of one clip.", least=0.001)] = 60.0,
    jobs: Annotated[int | None, opt.value("N", "Clips decoded at once. Default: the number of cores.", least=1)] = None,
    shard: opt.Shard = None,
) -> int:
    """Turn videos into a stream of `video` records: patches, their grid, and the time of each frame.

    With --encoder each record also holds a model's visual tokens and an embedding, which kvtools semid-build and kvtools embed
    read. A bad video is reported, the others are written, and the exit code is then 65. A run that writes a file and was
    stopped or killed resumes when it is run again. Under mpiexec or srun the ranks share the clips; the records and their
    order do not depend on the number of ranks.
    """
    from kvtools.artifact.files import Sink
    from kvtools.artifact.history import portable
    from kvtools.artifact.stream import Head, Writer
    from kvtools.progress import progress
    from kvtools.train.device import resolve_device
    from kvtools.video.inputs import find_clips, read_list
    from kvtools.video.patch import Budget
    from kvtools.video.recipe import VideoRecipe
    from kvtools.video.sample import FrameSampling
    from kvtools.video.spread import spread
    from kvtools.world import Stop
    from kvtools.world import shard as take_shard

    opt.refuse_if(
        (fps <= 0, f"--fps {fps:g} is not above 0. Give a rate such as 2."),
        (max_tokens > 57_000, f"--max-tokens {max_tokens} is more than a record of 128 MiB holds. Give at most 57000."),
        (end is not None and (start or 0) > end, f"--start {start or 0:g} is after --end {end or 0:g}. Give a later --end."),
    )
    budget = Budget(max_tokens, *opt.parse_range(frame_tokens, "--frame-tokens"))
    recipe = VideoRecipe(FrameSampling(fps, frames, min(min_frames, max_frames), max_frames, start, end), budget, pick, decoder)
    config_fields, embedder = recipe.to_json(), None
    world = run.world
    if encoder is not None:
        compute_device, compute_dtype = resolve_device(device, dtype, rank=world.rank)
        config_fields |= {"encoder": encoder if run.print_config else portable([encoder])[0], "dtype": compute_dtype}
    if run.print_config:
        return run.print_recipe(config_fields)
    if world.is_root:
        named = [*(videos or []), *(read_list(list_file) if list_file else [])]
        opt.refuse_if((not named, "no video is given. Name videos or folders, or give --list."))
        clips = take_shard(find_clips(named), shard)
    if run.dry_run and world.is_root:
        for key, path in clips:
            typer.echo(f"{key}\t{path}")
        typer.echo(f"{len(clips)} clips to {run.output}", err=True)
    if run.dry_run:
        return 0
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
        for _ in tokenize(world.broadcast(None), recipe, world, stop):
            raise AssertionError("outcomes go to rank 0")
        return int(world.broadcast(None))

    before, inputs = ([embedder.history], [embedder.digest]) if embedder else ([], [])
    head = Head("video", run.history(before, inputs), config_fields)
    sink = Sink(run.output, force=run.force, keep_partial=True)
    with Writer(sink, head, level=run.compress) as writer:
        done = writer.resume(start_over=run.force)
        todo = world.broadcast([clip for clip in clips if clip[0] not in done])
        outcomes = progress(
            tokenize(todo, recipe, world, stop), total=len(todo), unit="clips", label="tokenize-video", quiet=run.quiet
        )
        codes, stopped = _write(writer, outcomes, run.log, n_clips=len(clips), strict=run.strict)
        is_mixed = writer.n_records > 0 or len(set(codes)) > 1
        code = 0 if not codes else Corrupt.code if is_mixed else codes[0]
        world.broadcast(stopped.code if stopped else code)
        if stopped:
            raise stopped
        if codes and writer.n_records == 0:
            raise Died(code, is_agreed=True)  # without a record the output stays as it was
    return code


def _write(
    writer: "Writer", outcomes: Iterable["Outcome"], log: Callable[[str], None], *, n_clips: int, strict: bool
) -> tuple[list[int], Stopped | None]:
    """Write the records and log the faults; returns the codes of the faults, and what to raise if the work was stopped."""
    codes: list[int] = []
    is_stopped, n_before = False, writer.n_records
    for outcome in outcomes:
        if not outcome.is_done:
            is_stopped = True  # later records are of ranks that were not asked to stop; the next run makes them again
        elif is_stopped:
            continue
        elif outcome.record is not None:
            with outcome.record as record:
                writer.write_pieces(outcome.key, record)
        else:
            log(f"{outcome.key}: {outcome.fault}. {REMEDIES[outcome.cause]}")
            codes.append(outcome.code)
            if strict:
                raise Died(outcome.code)
    if not is_stopped:
        return codes, None
    if writer.n_records == n_before and not codes:
        return codes, NothingDone("stopped before a clip was done. Give the job more time.")
    return codes, Stopped(f"stopped after {writer.n_records} of {n_clips} clips. Run again to continue.")
