"""`kvtools merge`: several models of one shape become their average."""

import math
import os
from typing import Annotated

import typer

from kvtools.options import Force, Inputs, Output, Quiet, Stamp, Verbose

EXAMPLES = [
    "kvtools merge a.safetensors b.safetensors -o merged.safetensors",
    "kvtools merge --weights 2,1 a.safetensors b.safetensors | kvtools sum -",
]
EXIT_CODES = (0, 2, 65, 66, 73, 74, 141)
SEE_ALSO = ("kvtools answer", "kvtools pretrain onerec", "kvtools convert", "kvtools info")

# what is true of one of the models, and not of their average
_OF_ONE = ("kind", "config", "history", "crc32", "merged", "step", "validation", "loss", "tokens", "seconds")


def main(
    ctx: typer.Context,
    inputs: Inputs = None,
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="W,W,...", help="How much of each, as 1,1,2. Default: all the same.")
    ] = None,
    output: Output = "-",
    force: Force = False,
    stamp: Stamp = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Average the weights of model bags, tensor by tensor, in float64; each keeps its type.

    The models must be of one system and architecture, with tensors of the same names, types and shapes. What is no floating
    point number, such as a tokenizer, must be equal in all.
    """
    from kvtools.artifact import Bag, open_artifact
    from kvtools.artifact.bag import write_bag
    from kvtools.artifact.digest import Digest
    from kvtools.artifact.files import Sink, is_same_file, refuse_existing
    from kvtools.artifact.history import extend
    from kvtools.errors import Corrupt, Missing, Usage
    from kvtools.train.averaging import average

    names = inputs or []
    if len(names) < 2:
        raise Usage(f"{len(names)} models found, two or more expected.")
    if names.count("-") > 1 or any(is_same_file(src, output) for src in names):
        raise Usage("inputs: stdin twice, or the output among them, found. Name each once.")
    parts = _parts(weights, len(names))
    refuse_existing(output, force=force)
    bags: list[Bag] = []
    for src in names:
        if os.path.isdir(src):
            raise Missing(f"{src}: a directory found, a model in one file expected. kvtools convert makes one of it.")
        bag = open_artifact(src)
        if not isinstance(bag, Bag) or bag.kind != "model":
            kind = bag.kind if isinstance(bag, Bag) else bag.head.kind
            raise Corrupt(f"{src}: {kind or 'a foreign bag'} found, a model expected. See kvtools info.")
        for word in ("system", "architecture"):
            if bags and bag.fields.get(word) != bags[0].fields.get(word):
                raise Corrupt(f"{src}: another {word} than in {names[0]} found; models of one shape can be averaged.")
        bags.append(bag)
    try:
        merged = average([bag.tensors for bag in bags], parts, names)
    except ValueError as fault:
        raise Corrupt(f"{fault}.") from None
    digests = [str(Digest.of_bag(bag.tensors)) for bag in bags]
    fields = {word: value for word, value in bags[0].fields.items() if word not in _OF_ONE}
    history = extend("merge", ctx.obj.argv, before=[bag.history for bag in bags], inputs=digests, stamp=stamp)
    write_bag(
        Sink(output, force=force),
        "model",
        merged,
        config=bags[0].fields.get("config", {}),
        history=history,
        merged={"inputs": digests, "weights": parts},
        **fields,
    )
    return 0


def _parts(words: str | None, n_models: int) -> list[float]:
    from kvtools.errors import Usage

    try:
        parts = [float(word) for word in words.split(",")] if words is not None else [1.0] * n_models
    except ValueError:
        parts = []
    if len(parts) != n_models or not all(0 <= part < math.inf for part in parts) or not sum(parts):
        raise Usage(f"--weights {words}: {n_models} numbers of 0 or more, not all 0, expected, as 1,1,2.")
    return parts
