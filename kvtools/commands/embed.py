"""`kvtools embed`: items in, a stream of vectors out."""

import json
from typing import Annotated, Any

import typer

from kvtools.options import Compress, Force, KeysFile, Output, Quiet, ReportFile, Seed, Stamp, Strict, Verbose

EXAMPLES = [
    "kvtools embed --dim 16 keywords.json -o words.kvs",
    "kvtools embed --dim 8 films.item | kvtools info --records -",
]
EXIT_CODES = (0, 2, 65, 66, 73, 74, 141)
SEE_ALSO = ("kvtools pairs", "kvtools info", "kvtools-stream(5)")


def main(
    ctx: typer.Context,
    items: Annotated[
        str, typer.Argument(metavar="ITEMS", help="JSON, RecBole .item, CSV, TSV, .npy or stream; - is stdin.")
    ] = "-",
    dim: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Dimensions made of text. Default: 128; vectors keep their own.")
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(metavar="FIELD", help="Take text from that field or column; may be repeated.")
    ] = None,
    numeric: Annotated[
        list[str] | None, typer.Option(metavar="COL", help="Append the numbers of that column; may be repeated.")
    ] = None,
    key: Annotated[
        str | None, typer.Option("--id", metavar="COL", help="The column that names the item. Default: item_id or id.")
    ] = None,
    keys: KeysFile = None,
    words: Annotated[bool, typer.Option("--words", help="Cut terms into words too: hair-mask says hair, and mask.")] = False,
    power_iterations: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Decompose coarsely, by N power iterations. Default: until it converges."),
    ] = None,
    normalize: Annotated[bool, typer.Option("--normalize/--no-normalize", help="Make every vector unit norm.")] = True,
    seed: Seed = 0,
    report: ReportFile = None,
    output: Output = "-",
    compress: Compress = None,
    force: Force = False,
    strict: Strict = False,
    stamp: Stamp = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Turn what is said of items into a stream of `embedding` records: vectors, and the key of each.

    Terms and text become TF-IDF, then a truncated SVD, then unit norm. Vectors that are there already, as .npy with --keys,
    as an `embedding` stream or as `video` records with an embedding, are checked, put into batches and made unit norm.
    Items of which nothing is said, and vectors that are zero, NaN or infinite, are told and left out; the exit code is
    then 65.
    """
    from kvtools.artifact import is_stream
    from kvtools.artifact.files import Sink, is_same_file, open_source, refuse_existing
    from kvtools.artifact.history import extend
    from kvtools.artifact.stream import Head, Reader, Writer
    from kvtools.artifact.strings import pack
    from kvtools.errors import Corrupt, Usage
    from kvtools.onerec.items import lsa, vectors
    from kvtools.onerec.items.catalogue import read_catalogue
    from kvtools.skipped import SkippedRows

    if is_same_file(items, output):
        raise Usage(f"{items}: both input and output. Name another output.")
    for dst in (output, report):
        refuse_existing(dst or "-", force=force)
    name = "stdin" if items == "-" else items
    file = open_source(items)
    skipped, told, before = SkippedRows(), {}, []
    config: dict[str, Any] = {"normalize": normalize, "seed": seed}
    if vectors.is_npy(file) or is_stream(file):
        for option, value in (("--dim", dim), ("--text", text), ("--numeric", numeric), ("--id", key), ("--words", words)):
            if value:
                raise Usage(f"{option}: {name} holds vectors, which keep their width and have no fields. Leave it out.")
        if is_stream(file):
            reader = Reader(file, name)
            if reader.head.kind not in ("embedding", "video"):
                raise Corrupt(f"{name}: {reader.head.kind} records found, embedding or video expected.")
            before = [reader.head.history]
            blocks = vectors.read_stream(reader, name, skipped)
        elif keys is None:
            raise Usage(f"{name}: no names for its rows. Give them with --keys FILE.")
        else:
            blocks = vectors.read_npy(file, name, vectors.read_keys(keys))
        blocks = vectors.skip_bad(blocks, name, skipped)
        if normalize:
            blocks = ((batch, lsa.unit(x_nD.astype("float64")).astype("float32")) for batch, x_nD in blocks)
    else:
        catalogue, skipped = read_catalogue(file, name, text=text or [], numeric=numeric or [], key=key)
        config |= {"dim": dim or 128, "text": text or [], "numeric": numeric or [], "words": words}
        config |= {"power_iterations": power_iterations}
        terms = catalogue.words() if words else catalogue.terms
        try:
            made = lsa.embed(
                catalogue.keys, terms, catalogue.numbers, dim or 128,
                is_unit=normalize, n_powers=power_iterations, seed=seed,
            )  # fmt: skip
        except ValueError as fault:
            raise Usage(f"--dim {dim or 128}: {fault}. Give a smaller --dim.") from None
        silent = sorted(set(range(len(catalogue.keys))) - {*made.kept.tolist(), *made.lonely.tolist()})
        skipped.add("items of which nothing is said left out", len(silent), (catalogue.keys[row] for row in silent))
        fate = "given a random direction each" if normalize else "left out"
        skipped.add(
            f"items whose terms lie outside of the dimensions kept, {fate}",
            len(made.lonely),
            (catalogue.keys[row] for row in made.lonely),
            is_skipped=not normalize,
        )
        told = {"terms": made.n_terms, "explained_share": made.explained_share}
        blocks = iter([([catalogue.keys[row] for row in made.kept], made.vectors)])
        skipped.report(name, lambda _: None, strict=strict)
    head = Head("embedding", extend("embed", ctx.obj.argv, before=before, stamp=stamp), config)
    n_items = width = 0
    with Writer(Sink(output, force=force), head, level=compress) as writer:
        for batch, x_nD in vectors.batches(blocks):
            writer.write(f"{writer.n_records:08d}", {"vectors": x_nD, **pack("keys", batch)})
            n_items, width = n_items + len(batch), x_nD.shape[1]
        code = skipped.report(name, ctx.obj.log, strict=strict)
        if not n_items:
            raise Corrupt(f"{name}: no item left to write.")
    if report:
        line = {"items": n_items, "dim": width, **told, "findings": skipped.to_json()}
        sink = Sink(report, force=force)
        sink.write([json.dumps(line, ensure_ascii=False).encode() + b"\n"])
        sink.commit()
    return code
