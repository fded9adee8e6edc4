"""IDs for new items by the codebooks of earlier IDs: old codes never change, and vectors stream through."""

import numpy as np

from kvtools.errors import Corrupt, raising
from kvtools.onerec.items.vectors import VectorSource
from kvtools.onerec.semantic_ids import collisions, quality
from kvtools.onerec.semantic_ids.aligned_vectors import align_like
from kvtools.onerec.semantic_ids.ids import SemanticIds
from kvtools.onerec.semantic_ids.nearest import CodebookIndex, fastest
from kvtools.onerec.semantic_ids.rqkmeans import encode
from kvtools.onerec.semantic_ids.rqvae import PREFIX, decode, latents_of


def assign(ids: SemanticIds, name: str, source: VectorSource, *, device: str, remedy: str, is_appended: bool) -> SemanticIds:
    """IDs of the source's vectors, after the old items where they are appended, and the report on them.

    name: what messages call the old IDs. remedy: keep, extend or nearest, the way out of collisions; old items, where appended
    to, keep their codes. Holds the last level's residuals only where items may move. Raises Corrupt for vectors of another
    width; ValueError where the old IDs have a further token and the new ones would not, or the other way round.
    """
    n_levels, n_codes, n_width = ids.codebooks_LKD.shape
    old_MS = ids.codes_NS if is_appended else np.empty((0, n_levels + (remedy == "extend")), np.int32)
    if old_MS.shape[1] > n_levels and remedy != "extend":
        raise ValueError("its IDs have a further token, and the new ones would have none")
    if old_MS.shape[1] == n_levels and remedy == "extend":
        raise ValueError("its IDs have no further token, and the new ones would have one")
    networks = {tensor.removeprefix(PREFIX): array for tensor, array in ids.weights.items() if tensor.startswith(PREFIX)}
    backend = fastest(device, n_width, n_codes)
    indexes = [CodebookIndex(codebook_KD, backend) for codebook_KD in ids.codebooks_LKD]
    codes, residuals, square = [np.empty((0, n_levels), np.int32)], [np.empty((0, n_width), np.float32)], 0.0
    n_numbers = 0
    for raw_BD in source:
        with raising(Corrupt, name, "Give vectors from where the old ones came."):
            x_BD = align_like(ids, raw_BD)
            latent_BD = latents_of(x_BD, networks) if networks else x_BD
        if latent_BD.shape[1] != n_width:
            raise Corrupt(
                f"{name}: its codebooks are {n_width} wide, and the vectors {x_BD.shape[1]}. Give vectors of that width."
            )
        codes_BL, left_BD = encode(latent_BD, indexes)
        codes.append(codes_BL)
        error_BD = x_BD - decode(codes_BL, ids.codebooks_LKD, networks) if networks else left_BD
        square += float(np.square(error_BD, dtype=np.float64).sum())
        n_numbers += x_BD.size
        if remedy == "nearest":
            residuals.append(left_BD)
    codes_NS = codes_NL = np.concatenate(codes)
    counts: dict[str, int] = {}
    if remedy == "extend":
        codes_NS = collisions.extend(codes_NL, old_MS)
    elif remedy == "nearest":
        together = np.concatenate([old_MS, codes_NL])
        rows_P = collisions.colliding(together, len(old_MS))
        left_PD = np.concatenate(residuals)[rows_P - len(old_MS)].astype(np.float64)
        moved, n_stuck, before, after = collisions.move_residuals(together, rows_P, left_PD, ids.codebooks_LKD[-1])
        codes_NS, square = moved[len(old_MS) :], square + after - before
        counts = {"moved": int((codes_NS != codes_NL).any(axis=1).sum()), "stuck": n_stuck}
    report = {**ids.config, "collisions": remedy, "dim": n_width, "mse": square / n_numbers, **counts}
    keys = np.concatenate([ids.keys[: len(old_MS)], source.keys])
    codes_NS = np.concatenate([old_MS, codes_NS])
    report |= quality.describe(codes_NS, n_levels, n_codes)
    report |= {"new_items": len(codes_NL), "fit_mse": ids.report.get("fit_mse", ids.report.get("mse"))}
    return SemanticIds(keys, codes_NS, ids.codebooks_LKD, ids.config, report, ids.weights, ids.encoder, fit=ids.fit)


def note_on_fit(ids: SemanticIds, name: str, source: VectorSource, *, is_other_allowed: bool) -> str:
    """A note where nothing tells whether the vectors are of the fit that the IDs were made from, else an empty one.

    name: what messages call the IDs. Raises Corrupt where they are of another fit, whose dimensions mean something else, unless
    that is allowed.
    """
    if ids.fit is None or source.fit == ids.fit:
        return ""
    if source.fit is None:
        return f"{source.name}: nothing tells whether its vectors are of fit {ids.fit}, as those of {name} are."
    if not is_other_allowed:
        raise Corrupt(
            f"{name}: its vectors are of fit {ids.fit}, and those of {source.name} are of fit {source.fit}. Make the new ones "
            "with kvtools embed --like, or give --other-fit to assign codes anyway."
        )
    return ""
