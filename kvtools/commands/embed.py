"""`kvtools embed`: items in, a stream of vectors out."""

from collections.abc import Iterator
from itertools import repeat
from typing import Annotated, Any

from kvtools import options as opt

EXAMPLES = [
    "kvtools embed --dim 16 keywords.json -o words.kvs",
    "kvtools embed --dim 8 films.item | kvtools info --records -",
]
EXIT_CODES = (0, 2, 65, 66, 73, 74, 75, 141)
SEE_ALSO = ("kvtools pairs", "kvtools info", "kvtools-stream(5)")
COMMON = ("output", "compress", "force", "strict", "stamp")


def main(
    run: opt.Invocation,
    items: Annotated[str, opt.argument("ITEMS", "JSON, RecBole .item, CSV, TSV, .npy or stream; - is stdin.")] = "-",
    dim: Annotated[int | None, opt.value("N", "Dimensions of text. Default: 128; vectors keep their own.", least=1)] = None,
    text: Annotated[list[str] | None, opt.value("FIELD", "Take text from that field or column; may be repeated.")] = None,
    numeric: Annotated[list[str] | None, opt.value("COL", "Append the numbers of that column; may be repeated.")] = None,
    key: Annotated[str | None, opt.value("COL", "Column of the item's key. Default: item_id or id.", "--id")] = None,
    keys: opt.KeysFile = None,
    words: Annotated[bool, opt.option("Cut terms into words too: hair-mask becomes hair and mask.", "--words")] = False,
    power_iterations: Annotated[
        int | None, opt.value("N", "Compute a coarse SVD by N power iterations. Default: converged.", least=0)
    ] = None,
    normalize: Annotated[bool, opt.option("Scale every vector to unit norm.", "--normalize/--no-normalize")] = True,
    like: Annotated[
        str | None,
        opt.value("STREAM", "Project the items by the fit of STREAM, an earlier output, with its options.", "--like"),
    ] = None,
    seed: opt.Seed = 0,
    report: opt.ReportFile = None,
) -> int:
    """Embed item text as vectors (TF-IDF and SVD), in a stream of `embedding` records with the key of each.

    Terms and text become TF-IDF, then a truncated SVD, then unit norm. Vectors in an .npy with --keys, in an `embedding`
    stream or in `video` records are checked, put into batches and made unit norm. Items without text, and vectors that are
    zero, NaN or infinite, are reported and left out; the exit code is then 65.
    From a file into a file, a run that was stopped while it wrote goes on when the same command is run again.
    """
    from kvtools.artifact import source_name
    from kvtools.artifact.blob import encode
    from kvtools.artifact.files import open_source
    from kvtools.artifact.resumable import stop_between, write_all
    from kvtools.artifact.strings import pack
    from kvtools.errors import Corrupt, Usage, raising
    from kvtools.onerec.items import lsa, vectors
    from kvtools.onerec.items.basis import open_basis
    from kvtools.onerec.items.catalogue import read_catalogue
    from kvtools.skipped import SkippedRows

    name = source_name(items)
    run.refuse_own_input(items, report=report)
    run.refuse_shared_stdin(items, like)
    run.refuse_existing(report)
    fitted = {"--dim": dim, "--words": words, "--power-iterations": power_iterations, "--no-normalize": not normalize}
    opt.refuse_if(
        *(
            (
                like and value not in (None, False),
                f"{option} cannot be combined with --like, whose fit decides it. Leave it out.",
            )
            for option, value in fitted.items()
        )
    )
    file = open_source(items)
    skipped, figures, basis = SkippedRows(), {}, None
    history: list[dict[str, Any]] = []
    config: dict[str, Any] = {"normalize": normalize, "seed": seed}
    if vectors.is_vectors(file):
        options = {"--dim": dim, "--text": text, "--numeric": numeric, "--id": key, "--words": words, "--like": like}
        opt.refuse_if(
            *(
                (
                    value,
                    f"{option} cannot be used with {name}, whose vectors keep their width and have no fields. Leave it out.",
                )
                for option, value in options.items()
            )
        )
        blocks, history, before = vectors.open_vectors(items, file, keys, skipped)
        config |= {"fit": before["fit"]} if "fit" in before else {}
        blocks = vectors.skip_bad(blocks, name, skipped)
        if normalize:
            blocks = ((batch, lsa.unit(x_nD.astype("float64")).astype("float32")) for batch, x_nD in blocks)
    else:
        config |= {"dim": dim or 128, "text": text or [], "numeric": numeric or [], "words": words}
        config |= {"power_iterations": power_iterations}
        if like is not None:
            basis, config, history = open_basis(like)
            text, numeric = text or config["text"], numeric or config["numeric"]
        normalize, words = config["normalize"], config["words"]
        with raising(Usage, name, "Name what there is with --text, --numeric or --id, or leave them out."):
            catalogue, skipped = read_catalogue(file, name, text=text or [], numeric=numeric or [], key=key)
        terms = catalogue.words() if words else catalogue.terms
        with raising(Usage, name, "Give another --dim, or items with more text."):
            embedded = lsa.embed(
                catalogue.keys, terms, catalogue.numbers, config["dim"],
                is_unit=normalize, n_powers=power_iterations, seed=config["seed"], like=basis,
            )  # fmt: skip
        basis = embedded.basis.fitting(vectors.n_batches(*embedded.vectors.shape))
        config |= {"fit": basis.to_json()}
        unprojected = [catalogue.keys[row] for row in embedded.unprojected]
        has_text = {*embedded.kept.tolist(), *embedded.unprojected.tolist()}
        without_text = [key for row, key in enumerate(catalogue.keys) if row not in has_text]
        skipped.add("items of which nothing is said left out", len(without_text), without_text)
        reason = (
            "items whose terms lie outside of the dimensions kept, given a random direction each"
            if normalize
            else "items whose terms lie outside of the dimensions kept, left out"
        )
        skipped.add(reason, len(unprojected), unprojected, is_skipped=not normalize)
        figures = {
            "terms": embedded.n_terms,
            "unshared_items": embedded.n_unshared,
            "explained_share": embedded.explained_share,
        }
        if like is None and 2 * embedded.n_unshared > len(embedded.kept):
            run.info(
                f"{name}: {embedded.n_unshared} of {len(embedded.kept)} items share no term with another, and their vectors "
                "cannot tell what is alike. Give --words, or more text with --text."
            )
        blocks = iter([([catalogue.keys[row] for row in embedded.kept], embedded.vectors)])
        skipped.report(name, lambda _: None, strict=run.strict)
    parts = basis.parts(vectors.n_batches(*embedded.vectors.shape)) if basis else repeat({})
    shapes = []

    def encoded() -> Iterator[tuple[str, list[memoryview]]]:
        for number, ((batch, x_nD), part) in enumerate(zip(vectors.batches(blocks), parts, strict=False)):
            shapes.append(x_nD.shape)
            word = f"{number:08d}"
            yield word, encode({"vectors": x_nD, **pack("keys", batch), **part}, {"kind": "embedding", "key": word})

    stop = stop_between([items], run.output)
    with run.writer("embedding", config, before=[history], keep_partial=stop is not None) as writer:
        write_all(writer, encoded(), stop)
        code = skipped.report(name, run.log, strict=run.strict)
        if not shapes:
            raise Corrupt(f"{name}: there is no item left to write. Look at the input.")
    n_items, width = sum(n for n, _ in shapes), shapes[-1][1]
    run.write_report(report, {"items": n_items, "dim": width, **figures, "findings": skipped.to_json()})
    return code
