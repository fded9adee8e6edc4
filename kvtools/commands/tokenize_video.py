"""`kvtools tokenize-video`: videos to a stream of patches with the times of their frames."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kvtools.errors import Corrupt, Died, Stopped
from kvtools.options import (
    Compress,
    Config,
    Device,
    DryRun,
    Dtype,
    Force,
    FrameTokens,
    Output,
    PrintConfig,
    Quiet,
    Shard,
    Stamp,
    Strict,
    Verbose,
    parse_range,
    refuse_if,
    to_toml,
)

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
GROUPS = {"Sampling of frames": ("--min-frames", "--max-frames", "--start", "--end", "--pick", "--decoder")}


def main(
    ctx: typer.Context,
    videos: Annotated[
        list[str] | None, typer.Argument(metavar="VIDEO|DIR", help="Videos, and folders of videos or of frames.")
    ] = None,
    list_file: Annotated[
        str | None, typer.Option("--list", metavar="FILE", help="Read paths from FILE, one a line; - is stdin.")
    ] = None,
    fps: Annotated[
        float, typer.Option(metavar="RATE", help="Frames a second; for a folder of frames, the rate they were taken at.")
    ] = 2.0,
    frames: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Take N frames a clip in place of --fps, evenly spread.")
    ] = None,
    min_frames: Annotated[int, typer.Option(metavar="N", min=1, help="Take at least N frames, where the clip has them.")] = 4,
    max_frames: Annotated[int, typer.Option(metavar="N", min=1, help="Take at most N frames.")] = 768,
    max_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="Most tokens a clip, of 28x28 pixels each; never exceeded.")
    ] = 24_576,
    frame_tokens: FrameTokens = "128:768",
    start: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=0, help="Start of the clip, in seconds after the first frame.")
    ] = None,
    end: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=0, help="End of the clip, in seconds after the first frame.")
    ] = None,
    pick: Annotated[
        Literal["any", "reference", "key"],
        typer.Option(help="Take frames from all, from those that other frames refer to, or from key frames."),
    ] = "any",
    decoder: Annotated[
        Literal["auto", "decord", "pyav"], typer.Option(help="Library that decodes; auto is pyav, which was never slower.")
    ] = "auto",
    encoder: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Add the visual tokens of a Keye-VL or SigLIP, and an embedding a clip.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    timeout: Annotated[float, typer.Option(metavar="SECONDS", min=0.001, help="Time limit of one clip.")] = 60.0,
    jobs: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Clips decoded at once. Default: the number of cores.")
    ] = None,
    shard: Shard = None,
    output: Output = "-",
    compress: Compress = None,
    force: Force = False,
    strict: Strict = False,
    config: Config = None,
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
    stamp: Stamp = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Turn videos into a stream of `video` records: patches, their grid, and the time of each frame.

    With --encoder each record also holds a model's visual tokens and an embedding, which kvtools semid-build and kvtools embed
    read. A bad video is reported, the others are written, and the exit code is then 65. A run that writes a file and was
    stopped or killed resumes when it is run again. Under mpiexec or srun the ranks share the clips; the records and their
    order do not depend on the number of ranks.
    """
    from kvtools.artifact.files import Sink
    from kvtools.artifact.history import extend, portable
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

    refuse_if(
        (fps <= 0, f"--fps {fps:g} is not above 0. Give a rate such as 2."),
        (max_tokens > 57_000, f"--max-tokens {max_tokens} is more than a record of 128 MiB holds. Give at most 57000."),
        (end is not None and (start or 0) > end, f"--start {start or 0:g} is after --end {end or 0:g}. Give a later --end."),
    )
    budget = Budget(max_tokens, *parse_range(frame_tokens, "--frame-tokens"))
    recipe = VideoRecipe(FrameSampling(fps, frames, min(min_frames, max_frames), max_frames, start, end), budget, pick, decoder)
    config_fields, embedder = recipe.to_json(), None
    world = ctx.obj.world
    if encoder is not None:
        compute_device, compute_dtype = resolve_device(device, dtype, rank=world.rank)
        config_fields |= {"encoder": encoder if print_config else portable([encoder])[0], "dtype": compute_dtype}
    if print_config:
        typer.echo(to_toml(config_fields), nl=False)
        return 0
    if world.is_root:
        named = [*(videos or []), *(read_list(list_file) if list_file else [])]
        refuse_if((not named, "no video is given. Name videos or folders, or give --list."))
        clips = take_shard(find_clips(named), shard)
    if dry_run and world.is_root:
        for key, path in clips:
            typer.echo(f"{key}\t{path}")
        typer.echo(f"{len(clips)} clips to {output}", err=True)
    if dry_run:
        return 0
    if encoder is not None:
        from kvtools.keye.run.video_embedder import VideoEmbedder

        embedder = VideoEmbedder.open(encoder, device=compute_device, dtype=compute_dtype)
        most = embedder.max_tokens
        too_many = f"--max-tokens {max_tokens} is more than a record holds with --encoder. Give at most {most}."
        refuse_if((max_tokens > most, too_many))
    stop = Stop()
    tokenize = partial(
        spread, n_jobs=jobs, timeout_s=timeout, finish=embedder.finish(max_tokens, stop.__bool__) if embedder else None
    )
    if not world.is_root:
        for _ in tokenize(world.broadcast(None), recipe, world, stop):
            raise AssertionError("outcomes go to rank 0")
        return int(world.broadcast(None))

    before, inputs = ([embedder.history], [embedder.digest]) if embedder else ([], [])
    history = extend("tokenize-video", ctx.obj.argv, before=before, inputs=inputs, stamp=stamp)
    head = Head("video", history, config_fields)
    sink = Sink(output, force=force, keep_partial=True)
    with Writer(sink, head, level=compress) as writer:
        done = writer.resume(start_over=force)
        todo = world.broadcast([clip for clip in clips if clip[0] not in done])
        outcomes = progress(
            tokenize(todo, recipe, world, stop), total=len(todo), unit="clips", label="tokenize-video", quiet=quiet
        )
        codes, is_stopped = _write(writer, outcomes, ctx.obj.log, strict=strict)
        is_mixed = writer.n_records > 0 or len(set(codes)) > 1
        code = 0 if not codes else Corrupt.code if is_mixed else codes[0]
        world.broadcast(Stopped.code if is_stopped else code)
        if is_stopped:
            raise Stopped(f"stopped after {writer.n_records} of {len(clips)} clips. Run again to continue.")
        if codes and writer.n_records == 0:
            raise Died(code, is_agreed=True)  # without a record the output stays as it was
    return code


def _write(
    writer: "Writer", outcomes: Iterable["Outcome"], log: Callable[[str], None], *, strict: bool
) -> tuple[list[int], bool]:
    """Write the records and log the faults; returns the codes of the faults, and whether the work was stopped."""
    codes: list[int] = []
    is_stopped = False
    for outcome in outcomes:
        if not outcome.is_done:
            is_stopped = True  # later records are of ranks that were not asked to stop; the next run makes them again
        elif is_stopped:
            continue
        elif outcome.record is not None:
            with outcome.record as record:
                writer.write_pieces(outcome.key, record)
        else:
            log(f"{outcome.key}: {outcome.fault}.")
            codes.append(outcome.code)
            if strict:
                raise Died(outcome.code)
    return codes, is_stopped
