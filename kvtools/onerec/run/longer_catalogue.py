"""A model with items that came after its training: their codes say what they are like, and nothing else is known of them.

The catalogue that the model was trained with stands first, unchanged. A later item has no row of its own in the item table, no
interactions and no neighbours; where items are scored beside their codes, its score begins as that of the least popular ones.
So it is recommended where its codes are, behind the items of the same codes that people have taken.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from kvtools.errors import Corrupt
from kvtools.onerec.recommend.cooccurrence import Cooccurrence
from kvtools.onerec.recommend.item_counts import ItemCounts
from kvtools.onerec.run.checkpoint import Checkpoint, new_model
from kvtools.onerec.semantic_ids.ids import SemanticIds

_RARE_SHARE = 0.1  # of the scored items, by popularity: what a later item's score begins with


def with_later_items(checkpoint: Checkpoint, ids: SemanticIds, model: str, items: str) -> Checkpoint:
    """The checkpoint with the catalogue of ids. model, items: what messages call the two.

    Raises Corrupt unless the catalogue begins with the model's own, with equal keys and codes.
    """
    old = checkpoint.ids
    n_old = len(old)
    is_longer = len(ids) > n_old and ids.codes_NS.shape[1] == old.codes_NS.shape[1]
    is_longer = is_longer and bool((ids.keys[:n_old] == old.keys).all()) and np.array_equal(ids.codes_NS[:n_old], old.codes_NS)
    if not is_longer:
        raise Corrupt(
            f"{model}: this model was trained with other IDs than those of {items}. Give its own IDs, or these with later "
            "items appended by kvtools semid-build --codebook --append."
        )
    grown = new_model(checkpoint.model.config, ids, checkpoint.encoder, checkpoint.user_vocabularies)
    before = checkpoint.model.state_dict()
    weights = {name: _grown(before[name], like) for name, like in grown.state_dict().items()}
    counts = _counts(checkpoint.counts, len(ids))
    if "item_scores.scored" in weights:
        scored, bias = before["item_scores.scored"], before["item_scores.bias"]
        n_more = len(weights["item_scores.scored"]) - len(scored)
        weights["item_scores.scored"] = torch.cat([scored, torch.arange(n_old, n_old + n_more)])
        popularity = torch.from_numpy(counts.popularity)[scored]
        rare = torch.argsort(popularity, stable=True)[: max(1, int(_RARE_SHARE * len(scored)))]
        later = bias[rare].mean()
        weights["item_scores.bias"] = torch.cat([bias, later.expand(n_more)])
        if len(scored) == n_old:  # in training there were no others, whose score would be known
            weights["item_scores.rest"] = later.reshape(1)
    grown.load_state_dict(weights)
    grown.eval()
    return replace(checkpoint, model=grown, ids=ids, counts=counts)


def _grown(weight: Tensor, like: Tensor) -> Tensor:
    """The weight with rows of 0 at its end, as many as its counterpart in the larger model has more."""
    if weight.shape == like.shape:
        return weight
    return torch.cat([weight, weight.new_zeros(len(like) - len(weight), *weight.shape[1:])])


def _counts(counts: ItemCounts, n_items: int) -> ItemCounts:
    """The counts of a larger catalogue, whose later items have none."""
    n_more = n_items - len(counts.popularity)
    damped_II = counts.cooccurrence.damped_II.copy()
    damped_II.resize((n_items, n_items))
    return ItemCounts(
        np.append(counts.popularity, np.zeros(n_more, counts.popularity.dtype)),
        np.append(counts.latest, np.full(n_more, -np.inf)),
        Cooccurrence(damped_II, counts.cooccurrence.settings),
    )
