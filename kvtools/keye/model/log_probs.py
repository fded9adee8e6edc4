"""Log-probabilities of the targets of packed rows, with gradients: what training by rewards and preferences is made of.

Not here: losses (train/objectives), and the log-probabilities of what is being drawn (generate.py), which are the same numbers.
Legend: S tokens of a row, D width, V vocabulary.
"""

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kvtools.keye.model.inputs import PackedRow
from kvtools.keye.model.keye import Keye

_CHUNK_LOGITS = 1 << 24  # 64 MiB in float32


def log_probabilities(model: Keye, row: PackedRow, *, everywhere: bool = False) -> Tensor:
    """Log-probability of each target of a packed row given the tokens before it, float32 (S,), with gradients; 0 elsewhere.

    everywhere: of all tokens but the first of each conversation, targets or not. Logits exist for a chunk of targets at a time,
    and are computed again for gradients. Raises ValueError for a target that begins a conversation.
    """
    device = model.output_VD.device
    is_first_S = row.before < 0
    is_scored_S = ~is_first_S if everywhere else row.targets.astype(bool)
    if (is_scored_S & is_first_S).any():
        raise ValueError("the first token of a conversation is a target, and no token stands before it")
    before_S = torch.from_numpy(row.before).to(device)
    tokens_S = torch.tensor(row.tokens, dtype=torch.long, device=device)
    hidden_SD = model.encode_row(row)
    scored = torch.from_numpy(np.flatnonzero(is_scored_S)).to(device)
    n_chunk = max(1, _CHUNK_LOGITS // model.config.language.vocabulary)
    parts = [
        checkpoint(_token_logprobs, model, hidden_SD.index_select(0, before_S[index]), tokens_S[index], use_reentrant=False)
        for index in torch.split(scored, n_chunk)
    ]
    zeros_S = hidden_SD.new_zeros(len(row), dtype=torch.promote_types(hidden_SD.dtype, torch.float32))
    return zeros_S.index_copy(0, scored, torch.cat(parts))


def _token_logprobs(model: Keye, hidden_SD: Tensor, tokens_S: Tensor) -> Tensor:
    logits_SV = model.logits(hidden_SD)
    wide_SV = logits_SV.to(torch.promote_types(logits_SV.dtype, torch.float32))
    return wide_SV.gather(1, tokens_S[:, None])[:, 0] - wide_SV.logsumexp(1)
