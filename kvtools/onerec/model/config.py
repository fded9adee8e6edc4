"""The configuration of OneRec models: the four sizes of the report's Table 1, and `tiny` for two cores.

Source: OneRec Technical Report (arXiv 2506.13695 v4), Table 1 and sections 2.2 and 2.3. Our reading, which gives Table 1's
counts within 1 % for 0.121b and 0.935b: code embeddings are shared by input and output, the dense feed-forward has two
matrices, experts are SwiGLU of 2/3 * 4 * width rounded up to 128, all seven features are there, and the lifelong pathway's
QFormer and tables of item and author ids are left out of the count. For 0.015b and 2.633b no reading does: the first must
count tables that the report does not give, and for the second we take experts of half that width in all 24 layers
(2.68 billion, 1.8 % above).
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the shapes of a model's weights. Our choices where the report is silent: see the comments."""

    width: int = 128
    encoder_layers: int = 2
    decoder_layers: int = 2
    heads: int = 4
    hidden: int = 256  # of a dense feed-forward
    decoder_hidden: int = 0  # of the decoder's, where it is another
    experts: int = 0  # 0: dense
    active: int = 2  # experts a token
    expert_hidden: int = 0
    moe: Literal["decoder", "both"] = "decoder"
    decoder: Literal["cross", "lazy"] = "cross"  # lazy: OneRec-V2, which has no encoder
    attention: Literal["causal", "full"] = "causal"  # full is the report's; causal lets all targets of a row share one pass
    short: int = 20
    positive: int = 256
    lifelong: int = 2000  # 0: off; items after compression
    queries: int = 128  # tokens that summarise the lifelong pathway
    near: int = 0  # neighbours: items that go with the latest ones by co-occurrence in the training part; 0: off
    near_tokens: bool = False  # whether neighbours are tokens of the context too, beside copy logits
    near_share: float = 0.0  # of the probability, which goes straight to neighbours in a search; 0: none
    feature_width: int = 128
    author_width: int = 512
    static_width: int = 64
    item_table: bool = False  # an embedding an item beside that of its codes
    item_scores: int = 0  # items that are scored beside the codes, the most popular ones at most; 0: off
    recent: bool = False  # whether the latest items take part in scoring items directly, beside the decoder's first state
    dropout: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Field names to values, as artifacts store them."""
        return asdict(self)


_WIDE = ModelConfig(width=1024, encoder_layers=4, decoder_layers=4, heads=8, hidden=2048)
SIZES: dict[str, ModelConfig] = {
    "tiny": ModelConfig(
        width=64, hidden=128, experts=8, expert_hidden=64, positive=32, lifelong=64, queries=16, feature_width=16,
        author_width=32, static_width=16, item_table=True, item_scores=16384, recent=True,
    ),
    "0.015b": ModelConfig(),
    "0.121b": _WIDE,
    "0.935b": replace(_WIDE, experts=24, active=2, expert_hidden=2816),
    "2.633b": replace(
        _WIDE, encoder_layers=12, decoder_layers=12, experts=24, active=4, expert_hidden=1408, moe="both"
    ),
}  # fmt: skip


def dense_twin(config: ModelConfig) -> ModelConfig:
    """The dense model of equal active work a token: a SwiGLU expert has three matrices, a dense layer two."""
    if not config.experts:
        return config
    hidden = config.active * config.expert_hidden * 3 // 2
    return replace(config, experts=0, decoder_hidden=hidden, hidden=hidden if config.moe == "both" else config.hidden)
