"""Option types of the commands that train; light, as kvtools.options, since every `--help` loads them."""

from typing import Annotated, Literal

import typer

StateFolder = Annotated[
    str | None,
    typer.Option(
        "--state",
        metavar="DIR",
        help="Where a stopped run is kept. Default: .NAME.state beside the output.",
        show_default=False,
    ),
]
StepLog = Annotated[
    str | None,
    typer.Option("--log", metavar="FILE", help="Append a line of JSON a step and an epoch.", show_default=False),
]
Precision = Annotated[
    Literal["auto", "float32", "bfloat16"],
    typer.Option("--dtype", help="Precision of products; auto is bfloat16 on cuda."),
]
Peak = Annotated[
    float | None,
    typer.Option(
        "--peak",
        metavar="FLOPS",
        min=1,
        help="FLOP/s of a device at best, for the log's mfu. Default: measured.",
        show_default=False,
    ),
]
