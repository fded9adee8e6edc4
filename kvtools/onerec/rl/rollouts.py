"""Groups of items that a model proposes to each user, and the log-probabilities of their IDs, with gradients.

A user's context is computed once and serves the whole group. Log-probabilities are the model's over all codes, also where a
trie allowed only those of the catalogue, so that they equal the scores of a beam search. Not here: rewards and objectives.

Legend: B users, G items a group, S levels, U distinct IDs, K codes a level, V children of a prefix, M = B * G.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kvtools.onerec.model import beam
from kvtools.onerec.model.beam import SearchState
from kvtools.onerec.model.onerec import Context, OneRec
from kvtools.onerec.model.trie import Trie


@dataclass(frozen=True)
class Group:
    """What each user is proposed."""

    codes_BGS: Tensor  # int64
    logp_BG: Tensor  # float32: of whole IDs, by the model that proposed them; -inf where a search found too few
    ids_BG: Tensor  # int64: numbers of the trie's IDs, -1 where no item has these codes

    @property
    def is_there_BG(self) -> Tensor:
        """Which proposals there are, legal or not: bool (B, G)."""
        return self.logp_BG > -math.inf


def beams(model: OneRec, context: Context, trie: Trie, n: int, *, barred_BU: Tensor | None = None) -> Group:
    """The n best IDs of the catalogue; fewer where it is smaller, or where a beam has only barred IDs to end in.

    barred_BU: bool (B, U), IDs that a user must not get.
    """
    found = beam.search(model, context, trie, n, barred_BU=barred_BU)
    # clones, since tensors of inference mode can have no part in a gradient
    return Group(found.codes.clone(), found.scores.clone(), found.ids.clone())


def free_beams(model: OneRec, context: Context, trie: Trie, n: int) -> Group:
    """The n best sequences of codes, whether an item has them or not."""
    found = beam.search_freely(model, context, n)
    codes_BGS = found.codes.clone()
    return Group(codes_BGS, found.scores.clone(), trie.numbers(codes_BGS.flatten(0, 1)).view(found.scores.shape))


@torch.no_grad()
def samples(
    model: OneRec, context: Context, trie: Trie, uniform_BGS: Tensor, *, is_free: bool = False, barred_BU: Tensor | None = None
) -> Group:
    """Independent draws, code by code, with repetitions.

    uniform_BGS: float, from 0 to 1, what decides each code. is_free: every code may follow; else those of the catalogue, by the
    model's probabilities among them. barred_BU: as for `beams`; a draw that has only barred IDs to end in is not there.
    """
    state, (n_users, n_draws, _) = SearchState(model, context), uniform_BGS.shape
    parent_BG = torch.zeros(n_users, n_draws, dtype=torch.long, device=uniform_BGS.device)
    prefix_M = torch.zeros(n_users * n_draws, dtype=torch.long, device=uniform_BGS.device)
    score_M, codes = torch.zeros_like(prefix_M, dtype=torch.float32), []
    for level in range(model.n_levels):
        logp_MK = state.logits(level).log_softmax(1)
        if level == 0:
            logp_MK = logp_MK.repeat_interleave(n_draws, 0)
        allowed_MV, code_MV = logp_MK, torch.arange(logp_MK.shape[1], device=logp_MK.device).expand_as(logp_MK)
        if not is_free:
            child_MV, is_there = trie.children(level, prefix_M)
            if barred_BU is not None and level == model.n_levels - 1:
                is_there = is_there & ~barred_BU.repeat_interleave(n_draws, 0).gather(1, child_MV)
            code_MV = trie.codes[level][child_MV]
            allowed_MV = logp_MK.gather(1, code_MV).masked_fill(~is_there, -math.inf)
        drawn_M1 = _draw(allowed_MV, uniform_BGS[:, :, level].reshape(-1))
        code_M = code_MV.gather(1, drawn_M1)[:, 0]
        score_M = score_M + torch.where(
            (allowed_MV > -math.inf).any(1), logp_MK.gather(1, code_M.unsqueeze(1))[:, 0], -math.inf
        )
        codes.append(code_M)
        if not is_free:
            prefix_M = child_MV.gather(1, drawn_M1)[:, 0]
        if level < model.n_levels - 1:
            state.extend(level, parent_BG, code_M.view(n_users, n_draws))
            parent_BG = torch.arange(n_draws, device=parent_BG.device).expand(n_users, -1)
    codes_BGS, score_BG = torch.stack(codes, 1).view(uniform_BGS.shape), score_M.view(n_users, n_draws)
    ids_BG = trie.numbers(codes_BGS.flatten(0, 1)).view(n_users, n_draws)
    return Group(codes_BGS, score_BG, torch.where(score_BG > -math.inf, ids_BG, -1))


def _draw(logp_MV: Tensor, uniform_M: Tensor) -> Tensor:
    """Which column each row draws, int64 (M, 1): the first whose cumulative probability is above the row's number."""
    cumulative_MV = logp_MV.double().softmax(1).nan_to_num().cumsum(1)
    point_M1 = (uniform_M.double() * cumulative_MV[:, -1]).unsqueeze(1)
    drawn_M1 = torch.searchsorted(cumulative_MV, point_M1, right=True)
    return drawn_M1.clamp(max=logp_MV.shape[1] - 1)


def path_log_probs(model: OneRec, context: Context, codes_BGS: Tensor) -> tuple[Tensor, Tensor]:
    """The log-probability of each code of each ID given the codes before it, float32 (B, G, S), with gradients; and the entropy
    of the choices on the way, nats, float32 (B,), without, the mean over levels and paths."""
    state, (n_users, n_paths, n_levels) = SearchState(model, context), codes_BGS.shape
    parent_BG = torch.zeros(n_users, n_paths, dtype=torch.long, device=codes_BGS.device)
    levels, entropy_B = [], torch.zeros(n_users, device=codes_BGS.device)
    for level in range(n_levels):
        logp_MK = state.logits(level).log_softmax(1)
        logp_BWK = logp_MK.view(n_users, -1, logp_MK.shape[1])
        # all paths of a user share the first choice: one row for all of them
        wanted_BG = codes_BGS[:, :, level]
        if level == 0:
            levels.append(logp_BWK[:, 0].gather(1, wanted_BG))
        else:
            levels.append(logp_BWK.gather(2, wanted_BG.unsqueeze(2))[:, :, 0])
        with torch.no_grad():
            entropy_B = entropy_B - (logp_BWK.exp() * logp_BWK).sum(2).mean(1) / n_levels
        if level < n_levels - 1:
            state.extend(level, parent_BG, wanted_BG)
            parent_BG = torch.arange(n_paths, device=parent_BG.device).expand(n_users, -1)
    return torch.stack(levels, 2), entropy_B


def first_users(context: Context, n: int) -> Context:
    """The context of the first n users."""
    sources = context.copy_sources
    n_targets = context.mask_BTC.shape[1]
    return Context(
        [keys[:n] for keys in context.keys],
        [values[:n] for values in context.values],
        context.mask_BTC[:n],
        None if context.target_kv is None else [(k[:n], v[:n], there[:n]) for k, v, there in context.target_kv],
        context.slots_BT[:n],
        None if sources is None else type(sources)(*(x[: n * n_targets] for x in vars(sources).values())),
        None if context.recent_MD is None else context.recent_MD[: n * n_targets],
    )
