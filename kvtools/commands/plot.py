"""`kvtools plot`: what people would rather look at than read."""

import json
from typing import Annotated, Any

import typer

from kvtools.options import Force, Output, Quiet, Verbose, require

EXAMPLES = ["kvtools plot items.ids -o items.png", "kvtools semid-build --codes 64 items.kvs | kvtools plot - -o items.svg"]
EXIT_CODES = (0, 2, 65, 66, 73, 74, 141)
SEE_ALSO = ("kvtools semid-build", "kvtools pretrain keye", "kvtools pretrain onerec", "kvtools etree-train", "kvtools info")


def main(
    ctx: typer.Context,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT", help="A semantic-id bag, the log of etree-train, or logs of pretrain; - is stdin."),
    ] = None,
    output: Output = "-",
    force: Force = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Draw an artifact, or a log.

    Of semantic IDs it shows how evenly each level uses its codes, and how many items share an ID; of training over a tree,
    accuracy against rounds, local epochs, bytes and simulated seconds; of pretraining, loss and accuracy against steps, several
    logs one after the other. The name of the output tells the form: .png, .svg or
    .pdf; on stdout it is PNG. The same input gives the same bytes.
    """
    from kvtools.artifact import Bag, open_artifact
    from kvtools.artifact.files import Sink, open_source
    from kvtools.draw.codes import draw_codes
    from kvtools.draw.curves import NEEDED, draw_curves
    from kvtools.draw.losses import draw_losses, parts_of
    from kvtools.draw.page import FORMATS, image
    from kvtools.errors import Corrupt

    form = output.rpartition(".")[2].lower() if output != "-" and "." in output else "png"
    require(form in FORMATS, "-o", output, "a name that ends in .png, .svg or .pdf")
    names = inputs or ["-"]
    src, name = names[0], "stdin" if names[0] == "-" else names[0]
    file = open_source(src)
    if bytes(file.peek(1)[:1]) == b"{":  # type: ignore[attr-defined]
        logs = {name: _lines(file, name), **{other: _lines(open_source(other), other) for other in names[1:]}}
        if all("loss" in line and "step" in line for lines in logs.values() for line in lines[:1]):
            try:
                figure = draw_losses([part for of, lines in logs.items() for part in parts_of(lines, of)])
            except ValueError as fault:
                raise Corrupt(f"{', '.join(logs)}: {fault}.") from None
        else:
            lines = [line for each in logs.values() for line in each]
            missing = next((key for line in lines for key in NEEDED if key not in line), None)
            if missing:
                raise Corrupt(f"{name}: lines without {missing!r} found, the log of etree-train or of pretrain expected.")
            figure = draw_curves(lines)
    else:
        require(len(names) == 1, "INPUT", f"{len(names)} of them", "one where it is no log")
        bag = open_artifact(src, file)
        if not isinstance(bag, Bag) or bag.kind != "semantic-id" or "quality" not in bag.fields:
            kind = (bag.kind if isinstance(bag, Bag) else bag.head.kind) or "foreign bag"
            raise Corrupt(f"{name}: {kind} found, semantic-id with its report expected. There is no picture of others yet.")
        n_levels, n_codes, _ = bag.tensors["codebooks"].shape
        figure = draw_codes(bag.tensors["codes"], n_levels, n_codes, bag.fields["quality"])
    sink = Sink(output, force=force)
    sink.write([image(figure, form)])
    sink.commit()
    return 0


def _lines(file: Any, name: str) -> list[dict[str, Any]]:
    from kvtools.errors import Corrupt

    try:
        lines = [json.loads(line) for line in file if line.strip()]
    except ValueError as fault:
        raise Corrupt(f"{name}: {fault}; JSON Lines expected.") from None
    if not lines or not all(isinstance(line, dict) for line in lines):
        raise Corrupt(f"{name}: no lines of JSON objects found, the log of a training expected.")
    return lines
