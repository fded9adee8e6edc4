"""A very small Keye-VL whose answers are random letters that often end, and sums to ask it."""

import torch

from kvtools.artifact.files import Sink
from kvtools.keye.checkpoint.weights import save
from kvtools.keye.data.chat_template import ChatTemplate
from kvtools.keye.model.config import LanguageConfig, ModelConfig, VisionConfig
from kvtools.keye.model.keye import Keye

SUMS = [{"id": f"s{n}", "prompt": f"{n}+1=?", "answer": n + 1} for n in range(6)]


def start_model(path):
    """Write the model."""
    template = ChatTemplate.open(None)
    torch.manual_seed(0)
    model = Keye(
        ModelConfig(
            VisionConfig(16, 32, 1, 2, table_side=4),
            LanguageConfig(16, 32, 2, 2, 1, 8, vocabulary=template.size),
            image_token=template.image_token,
            video_token=template.video_token,
        )  # fmt: skip
    )
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[template.tokenizer.ids["<|im_end|>"]] = 0.1
    save(Sink(str(path)), model, tokenizer_json=template.to_bytes(), fields={}, history=[])
