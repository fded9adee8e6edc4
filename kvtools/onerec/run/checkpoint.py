"""A trained generator with all that it needs to recommend: weights, catalogue, codings, and what the training part counted.

Kept in one `model` bag: weights under their names in `OneRec`, the catalogue under `catalogue.`, counts under `counts.`.
The JSON tells the architecture, which pathways are on and why others are off, and the digest of the IDs.
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
from kvtools.errors import Corrupt
from kvtools.onerec.interactions import users
from kvtools.onerec.interactions.features import Codings
from kvtools.onerec.model.config import ModelConfig
from kvtools.onerec.model.onerec import OneRec, VocabularySizes
from kvtools.onerec.recommend.cooccurrence import Cooccurrence, Settings
from kvtools.onerec.semantic_ids.ids import SemanticIds
from kvtools.train.meta_init import meta_init

_SYSTEM = "onerec"


@dataclass(frozen=True)
class Counted:
    """What the training part says of items: how often each was taken up, when last, and what goes together."""

    popularity: np.ndarray  # int64 (N,)
    latest: np.ndarray  # float64 (N,): the last time it was taken up, -inf where never
    near: Cooccurrence


@dataclass(frozen=True)
class Generator:
    """`model` is in eval mode."""

    model: OneRec
    ids: SemanticIds
    codings: Codings
    static: Sequence[users.Vocabulary]
    counted: Counted
    pathways: dict[str, str] = field(default_factory=dict)  # name → "on", or why it is off
    recipe: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def time_column(self) -> int | None:
        names = list(self.codings.features)
        return names.index("time") if "time" in names else None


def make(config: ModelConfig, ids: SemanticIds, codings: Codings, static: Sequence[users.Vocabulary]) -> OneRec:
    """A model of random weights, by torch's generator."""
    vocabulary = VocabularySizes(ids.vocab_sizes, len(ids), codings.features, tuple(v.n_codes for v in static))
    return OneRec(config, vocabulary, torch.from_numpy(ids.codes_NS))


def save(sink: Sink, made: Generator, *, told: Mapping[str, Any], history: list[dict[str, Any]]) -> None:
    """Write a `model` bag. told: further JSON fields, such as the step and the validation."""
    near = made.counted.near
    tensors = {name: x.detach().cpu().numpy() for name, x in made.model.state_dict().items()}
    tensors |= made.ids.tensors("catalogue.")
    tensors |= {
        "counts.popularity": made.counted.popularity,
        "counts.latest": made.counted.latest,
        "counts.near.data": near.damped_II.data.astype(np.float32),
        "counts.near.indices": near.damped_II.indices.astype(np.int32),
        "counts.near.indptr": near.damped_II.indptr.astype(np.int64),
    }
    words = {
        "system": _SYSTEM,
        "architecture": made.model.config.to_json(),
        "codings": made.codings.to_json(),
        "static": [v.to_json() for v in made.static],
        "near": vars(near.settings),
        "pathways": made.pathways,
        "semantic_ids": made.ids.digest,
        "parameters": sum(p.numel() for p in made.model.parameters()),
        **told,
    }
    write_bag(sink, "model", tensors, config=made.recipe, history=history, **words)


def load(artifact: Any, name: str) -> Generator:
    """The generator of a `model` bag. Raises Corrupt for other artifacts, other systems, and weights that are not there."""
    fields = artifact.fields if isinstance(artifact, Bag) else {}
    if fields.get("kind") != "model" or fields.get("system") != _SYSTEM:
        found = (fields.get("system") or artifact.kind) if isinstance(artifact, Bag) else artifact.head.kind
        raise Corrupt(
            f"{name}: {found or 'a foreign bag'} found, a model of onerec expected. Train one: kvtools pretrain onerec."
        )
    try:
        return _put_together(artifact, name)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as fault:
        told = f"{type(fault).__name__}: {fault}"  # a field or a tensor that is not there, or is not as this version writes it
        raise Corrupt(f"{name}: a model whose parts do not fit this version found ({told}). Train it again.") from None


def _put_together(artifact: Bag, name: str) -> Generator:
    tensors, fields = artifact.tensors, artifact.fields
    ids = SemanticIds.from_tensors(tensors, name, "catalogue.")
    if ids.digest != fields["semantic_ids"]:
        raise Corrupt(f"{name}: a catalogue of IDs {ids.digest} found, {fields['semantic_ids']} expected.")
    static = [users.Vocabulary.of(words) for words in fields["static"]]
    codings = Codings.from_json(fields["codings"])
    config = ModelConfig(**fields["architecture"])
    _require_shapes(config, ids, codings, static, tensors, name)
    model = make(config, ids, codings, static)
    model.load_state_dict({weight: torch.from_numpy(np.array(tensors[weight])) for weight in model.state_dict()})
    shape = (len(ids), len(ids))
    parts = (tensors["counts.near.data"], tensors["counts.near.indices"], tensors["counts.near.indptr"])
    damped = sparse.csr_array(tuple(np.array(part) for part in parts), shape=shape)
    damped.check_format(full_check=True)
    near = Cooccurrence(damped, Settings(**fields["near"]))
    counted = Counted(np.array(tensors["counts.popularity"]), np.array(tensors["counts.latest"]), near)
    model.eval()
    return Generator(model, ids, codings, static, counted, fields["pathways"], fields["config"], artifact.history)


def _require_shapes(
    config: ModelConfig,
    ids: SemanticIds,
    codings: Codings,
    static: Sequence[users.Vocabulary],
    tensors: Mapping[str, np.ndarray],
    name: str,
) -> None:
    """Raise Corrupt unless the weights are there as the architecture has them; takes no memory for what it says there is."""
    n_layers = config.encoder_layers + config.decoder_layers
    if n_layers > len(tensors):
        raise Corrupt(f"{name}: {n_layers} layers found in {len(tensors)} tensors.")
    with meta_init():
        wanted = make(config, ids, codings, static).state_dict()
    for weight, like in wanted.items():
        found = list(tensors[weight].shape) if weight in tensors else None
        if found != list(like.shape):
            raise Corrupt(f"{name}: {weight}: {found or 'nothing'} found, {list(like.shape)} expected.")
