"""The stages of training: which parts are trained in each, from what data, and how fast.

Source: Keye-VL's report (arXiv 2507.01949 sections 2.1, 3 and 4; spec/keye.md 3): stage 0 matches images with texts, stage 1
trains the projector alone, stages 2 and 3 everything, stage 3 several times on different mixtures whose weights are then
averaged (`kvtools merge`). It gives no learning rates and no lengths: those here are our choice, for models of width 128, and
fall as models widen. Post-training (`sft`, `cold-start`) is the same loss on other data.
"""

from dataclasses import dataclass

PARTS = {"tower": "visual.", "projector": "mlp_AR.", "decoder": "model."}  # names of weights; `lm_head.` is the decoder's


@dataclass(frozen=True)
class Stage:
    """summary: what is trained. trains: parts of the model, all others are frozen. lr: the peak, of a model 128 wide.
    has_adapters: of those parts, low-rank adapters alone learn."""

    summary: str
    trains: frozenset[str]
    lr: float
    is_contrastive: bool = False
    has_adapters: bool = False

    @property
    def needs_visuals(self) -> bool:
        """Whether nothing is learnt of text alone, since the decoder is not trained."""
        return "decoder" not in self.trains

    def learns(self, name: str) -> bool:
        """Whether the weight of that name, in Keye's own naming, is trained."""
        part = next((part for part, prefix in PARTS.items() if name.startswith(prefix)), "decoder")
        return part in self.trains and (not self.has_adapters or ".lora_" in name)


_ALL = frozenset(PARTS)

STAGES = {
    "matching": Stage("pictures against texts, by a sigmoid", frozenset({"tower"}), 1e-3, is_contrastive=True),
    "alignment": Stage("the projector alone", frozenset({"projector"}), 2e-4),
    "multitask": Stage("everything", _ALL, 2e-3),
    "annealing": Stage("everything, on a better mixture", _ALL, 5e-4),
    "sft": Stage("everything, on instructions", _ALL, 3e-4),
    "cold-start": Stage("everything, on five modes of answering", _ALL, 3e-4),
}


def peak_lr(stage: str, width: int) -> float:
    """The peak learning rate of a stage for a part of that width: beyond 128 inverse to it, as maximal update parametrisation
    has it (arXiv 2203.03466)."""
    return STAGES[stage].lr * min(1.0, 128 / width)
