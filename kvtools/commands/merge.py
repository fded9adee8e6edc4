"""`kvtools merge`: average models of one architecture, or add adapters to one."""

import math
import os
from typing import Annotated

from kvtools import options as opt

EXAMPLES = [
    "kvtools merge a.safetensors b.safetensors -o merged.safetensors",
    "kvtools merge --weights 2,1 a.safetensors b.safetensors | kvtools sum -",
    "kvtools merge keye.safetensors --adapter adapter -o tuned.safetensors",
]
EXIT_CODES = (0, 2, 65, 66, 73, 74, 141)
SEE_ALSO = ("kvtools answer", "kvtools pretrain onerec", "kvtools convert", "kvtools info")
COMMON = ("output", "force", "stamp")

# fields that are true of one model, and not of the average
_OF_ONE = ("kind", "config", "history", "crc32", "merged", "step", "validation", "loss", "tokens", "seconds")


def main(
    run: opt.Invocation,
    inputs: opt.Inputs = None,
    weights: Annotated[
        str | None, opt.value("W,W,...", "The weight of each model, as 1,1,2. Default: all equal.", "--weights")
    ] = None,
    adapters: Annotated[
        list[str] | None,
        opt.value("FOLDER", "Add a low-rank adapter of pretrain keye --lora or of peft; may be repeated.", "--adapter"),
    ] = None,
) -> int:
    """Average the weights of models, tensor by tensor, in float64; each tensor keeps its type. Or add adapters to a Keye-VL.

    Models to average are bags: safetensors files with a kind. All must be of one system and architecture, with tensors of the
    same names, types and shapes. What is no floating point number, such as a tokenizer, must be equal in all.

    With --adapter one model is given, a bag or a Hugging Face directory, and the adapter's products are added to its weights. A
    DST that ends in / becomes a directory for transformers.
    """
    from kvtools.artifact.bag import Bag, write_bag
    from kvtools.artifact.digest import Digest
    from kvtools.artifact.open import open_bag
    from kvtools.errors import Corrupt, Missing
    from kvtools.train.average_models import average

    names = inputs or []
    if adapters:
        return _add_adapters(run, names, adapters, weights)
    opt.refuse_if(
        (len(names) < 2, "fewer than two models are given. Give two or more."),
        (names.count("-") > 1, "- is given more than once. Name each model once."),
    )
    run.refuse_own_input(*names)
    parts = _parse_weights(weights, len(names))
    run.refuse_existing()
    bags: list[Bag] = []
    for src in names:
        if os.path.isdir(src):
            raise Missing(f"{src}: this is a directory. Make one file of the model with kvtools convert.")
        bag = open_bag(src, "model", made_by="kvtools pretrain or kvtools convert")
        for field in ("system", "architecture"):
            if bags and bag.fields.get(field) != bags[0].fields.get(field):
                raise Corrupt(f"{src}: its {field} differs from that of {names[0]}. Average models of one {field}.")
        bags.append(bag)
    try:
        merged = average([bag.tensors for bag in bags], parts, names)
    except ValueError as fault:
        raise Corrupt(f"{fault}. Give models of one architecture, with finite weights.") from None
    digests = [str(Digest.of_bag(bag.tensors)) for bag in bags]
    fields = {field: value for field, value in bags[0].fields.items() if field not in _OF_ONE}
    fields |= {"config": bags[0].fields.get("config", {}), "merged": {"inputs": digests, "weights": parts}}
    write_bag(run.sink(), "model", merged, history=run.history([bag.history for bag in bags], digests), **fields)
    return 0


def _add_adapters(run: opt.Invocation, names: list[str], adapters: list[str], weights: str | None) -> int:
    from kvtools.artifact.directory import new_directory
    from kvtools.keye.checkpoint.adapters import adapted, open_adapter, tensors_digest
    from kvtools.keye.checkpoint.weights import open_weights, write

    opt.refuse_if(
        (len(names) != 1, f"--adapter changes one model, and {len(names)} are given. Give its base model alone."),
        (weights is not None, "--weights is for averages, and --adapter is given. Leave one out."),
    )
    run.refuse_own_input(*names, *adapters)
    is_directory = run.output.endswith("/")
    run.refuse_existing(is_directory=is_directory)
    model = open_weights(names[0])
    digest, histories = tensors_digest(model), [model.history]
    for src in adapters:
        adapter = open_adapter(src)
        if adapter.digest not in (None, digest):
            run.warn(f"{src}: it was trained on another model than {names[0]}. It is added all the same.")
        model = adapted(model, adapter)
        histories.append(adapter.history)
    history = run.history(histories)
    if is_directory:
        with new_directory(run.output, force=run.force) as folder:
            write(model, folder, history=history)
    else:
        write(model, run.sink(), history=history)
    return 0


def _parse_weights(text: str | None, n_models: int) -> list[float]:
    try:
        parts = [float(part) for part in text.split(",")] if text is not None else [1.0] * n_models
    except ValueError:
        parts = []
    is_wrong = len(parts) != n_models or not all(0 <= part < math.inf for part in parts) or not sum(parts)
    sentence = f"--weights {text} does not fit {n_models} models. Give one of 0 or more for each, not all 0, as 1,1,2."
    opt.refuse_if((is_wrong, sentence))
    return parts
