"""A trained model with all that it needs to recommend: weights, catalogue, feature encoder, and the training part's counts.

Kept in one `model` bag: weights under their names in `OneRec`, the catalogue under `catalogue.`, counts under `counts.`.
The JSON holds the architecture, which pathways are on and why others are off, and the digest of the IDs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy import sparse

from kvtools.artifact import Bag
from kvtools.artifact.bag import write_bag
from kvtools.artifact.files import Sink
from kvtools.artifact.open import open_bag, source_name
from kvtools.errors import Corrupt, reason_of
from kvtools.onerec.interactions import users
from kvtools.onerec.interactions.features import FeatureEncoder
from kvtools.onerec.model.config import ModelConfig
from kvtools.onerec.model.onerec import OneRec, VocabularySizes
from kvtools.onerec.recommend.cooccurrence import Cooccurrence, Settings
from kvtools.onerec.recommend.item_counts import ItemCounts
from kvtools.onerec.semantic_ids.ids import SemanticIds
from kvtools.train.meta_init import meta_init

_SYSTEM = "onerec"
_MADE_BY = "kvtools pretrain onerec"


@dataclass(frozen=True)
class Checkpoint:
    """What a model bag holds. `model` is in eval mode."""

    model: OneRec
    ids: SemanticIds
    encoder: FeatureEncoder
    user_vocabularies: Sequence[users.Vocabulary]
    counts: ItemCounts
    pathways: dict[str, str] = field(default_factory=dict)  # name → "on", or why it is off
    recipe: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    seed: int = 0  # of the clusters of the lifelong pathway
    trained_on: np.ndarray | None = None  # int64, sorted: hashes of the training pairs; None of an earlier version's model

    @classmethod
    def open(cls, src: str) -> "Checkpoint":
        """From a `model` bag. Raises Corrupt for other artifacts, models of other systems, and parts that do not fit."""
        bag, name = open_bag(src, "model", made_by=_MADE_BY), source_name(src)
        if bag.fields.get("system") != _SYSTEM:
            system = bag.fields.get("system") or "another system"
            raise Corrupt(f"{name}: this is a model of {system}, and one of onerec is needed. Make one with {_MADE_BY}.")
        try:
            return _read(bag, name)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as fault:
            # a field or a tensor is missing, or is not as this version writes it
            reason = reason_of(fault)
            raise Corrupt(f"{name}: this version of kvtools cannot read the model ({reason}). Train it again.") from None

    def save(self, sink: Sink, *, history: list[dict[str, Any]], **fields: Any) -> None:
        """Write a `model` bag. fields: further JSON fields, such as the step and the validation."""
        cooccurrence = self.counts.cooccurrence
        tensors = {name: x.detach().cpu().numpy() for name, x in self.model.state_dict().items()}
        tensors |= self.ids.tensors("catalogue.")
        tensors |= {
            "counts.popularity": self.counts.popularity,
            "counts.latest": self.counts.latest,
            "counts.near.data": cooccurrence.damped_II.data.astype(np.float32),
            "counts.near.indices": cooccurrence.damped_II.indices.astype(np.int32),
            "counts.near.indptr": cooccurrence.damped_II.indptr.astype(np.int64),
        }
        if self.trained_on is not None:
            tensors["counts.trained_on"] = self.trained_on.view(np.uint8).reshape(-1, 8)
        fields = {
            "system": _SYSTEM,
            "architecture": self.model.config.to_json(),
            "codings": self.encoder.to_json(),
            "static": [vocabulary.to_json() for vocabulary in self.user_vocabularies],
            "near": vars(cooccurrence.settings),
            "pathways": self.pathways,
            "semantic_ids": self.ids.digest,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            **({"seed": self.seed} if self.seed != self.recipe.get("seed", self.seed) else {}),
            **fields,
        }
        write_bag(sink, "model", tensors, config=self.recipe, history=history, **fields)


def new_model(
    config: ModelConfig, ids: SemanticIds, encoder: FeatureEncoder, user_vocabularies: Sequence[users.Vocabulary]
) -> OneRec:
    """A model with random weights, drawn by torch's generator."""
    vocabulary = VocabularySizes(ids.vocab_sizes, len(ids), encoder.features, tuple(v.n_codes for v in user_vocabularies))
    return OneRec(config, vocabulary, torch.from_numpy(ids.codes_NS))


def _read(bag: Bag, name: str) -> Checkpoint:
    tensors, fields = bag.tensors, bag.fields
    ids = SemanticIds.from_tensors(tensors, name, "catalogue.")
    if ids.digest != fields["semantic_ids"]:
        raise Corrupt(f"{name}: the catalogue has digest {ids.digest}, and {fields['semantic_ids']} is noted. Train it again.")
    vocabularies = [users.Vocabulary.of(words) for words in fields["static"]]
    encoder, config = FeatureEncoder.from_json(fields["codings"]), ModelConfig(**fields["architecture"])
    n_layers = config.encoder_layers + config.decoder_layers
    if n_layers > len(tensors):
        raise Corrupt(f"{name}: the architecture has {n_layers} layers, and there are {len(tensors)} tensors. Train it again.")
    with meta_init():  # takes no memory for the sizes that the file claims
        _require_shapes(tensors, new_model(config, ids, encoder, vocabularies).state_dict(), name)
    model = new_model(config, ids, encoder, vocabularies)
    model.load_state_dict({weight: torch.from_numpy(np.array(tensors[weight])) for weight in model.state_dict()})
    parts = (tensors[f"counts.near.{part}"] for part in ("data", "indices", "indptr"))
    damped_II = sparse.csr_array(tuple(np.array(part) for part in parts), shape=(len(ids), len(ids)))
    damped_II.check_format(full_check=True)
    cooccurrence = Cooccurrence(damped_II, Settings(**fields["near"]))
    counts = ItemCounts(np.array(tensors["counts.popularity"]), np.array(tensors["counts.latest"]), cooccurrence)
    model.eval()
    seed = int(fields.get("seed", fields["config"].get("seed", 0)))
    pairs = tensors.get("counts.trained_on")
    trained_on = None if pairs is None else np.array(pairs).reshape(-1).view(np.int64)
    return Checkpoint(
        model, ids, encoder, vocabularies, counts, fields["pathways"], fields["config"], bag.history, seed, trained_on
    )


def _require_shapes(tensors: Mapping[str, np.ndarray], expected: Mapping[str, torch.Tensor], name: str) -> None:
    """Raise Corrupt unless every weight is there in its shape."""
    for weight, like in expected.items():
        shape = list(tensors[weight].shape) if weight in tensors else "missing"
        if shape != list(like.shape):
            raise Corrupt(f"{name}: weight {weight} is {shape}, and {list(like.shape)} is needed. Train the model again.")
