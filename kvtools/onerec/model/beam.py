"""Beam search over semantic IDs: the best IDs of each user and their log-probabilities, only IDs of the catalogue.

The context is computed once a user and its keys and values serve all beams; only the few codes of an ID have keys of their
own. Log-probabilities are the model's over all codes, before those that the trie forbids are left out, so that beam scores are
those of an exact ranking. Equal scores come in any order. Source: OneRec Technical Report section 2.5 for the use; its widths
are 512, and ours anything from 1.

A prefix has at least the score of every ID that begins with it. So a search can bound what it missed: no ID outside the beams
scores more than the best prefix that was dropped on the way.

Legend: B users, W beams, K codes of a level, V children, M = B * W, U distinct IDs, S levels.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kvtools.onerec.model.evidence import Evidence
from kvtools.onerec.model.layers import KVCache
from kvtools.onerec.model.onerec import Context, OneRec
from kvtools.onerec.model.trie import Trie

_N_SCORES = 1 << 25  # held at a time: 128 MiB, of which a pass holds a few


def n_users_at_once(trie: Trie, n_codes: int, n_beams: int, n_scores: int = _N_SCORES) -> int:
    """How many users a search takes together, at least 1: each holds a score of every code for every beam, and one of every ID
    that the catalogue has where items are scored or IDs are barred. n_codes: of the largest level."""
    return max(1, n_scores // max(n_beams * n_codes, int(trie.n_ids)))


@dataclass(frozen=True)
class Beams:
    """The results of a search, best first."""

    ids: Tensor  # int64 (B, W): numbers of the trie's IDs, -1 where there is none
    scores: Tensor  # float32 (B, W): log-probabilities, -inf where there is no ID
    codes: Tensor  # int64 (B, W, S)
    missed_B: Tensor  # float32: no ID outside the beams scores more than this; -inf where there is none


@torch.inference_mode()
def search(model: OneRec, context: Context, trie: Trie, n_beams: int, *, barred_BU: Tensor | None = None) -> Beams:
    """The n_beams best IDs of the catalogue. barred_BU: bool (B, U), IDs that a user must not get. Exact where n_beams is at
    least the number of prefixes of every level but the last, and of IDs asked for."""
    state = SearchState(model, context)
    prefix_BW = torch.zeros(state.n_users, 1, dtype=torch.long, device=state.score_BW.device)
    for level in range(model.n_levels):
        logits_MK = state.logits(level)
        child_MV, is_there = trie.children(level, prefix_BW.flatten())
        # the normaliser spans all codes, but only scores of children are looked up
        gain_MV = logits_MK.gather(1, trie.codes[level][child_MV]) - logits_MK.logsumexp(1, keepdim=True)
        total_BX = (state.score_BW.view(-1, 1) + gain_MV).masked_fill_(~is_there, -math.inf).view(state.n_users, -1)
        child_BX = child_MV.view(state.n_users, -1)
        if barred_BU is not None and level == model.n_levels - 1:
            total_BX = total_BX.masked_fill(barred_BU.gather(1, child_BX), -math.inf)
        best_BW = state.keep_best(total_BX, n_beams)
        prefix_BW = child_BX.gather(1, best_BW)
        if level < model.n_levels - 1:
            state.extend(level, best_BW // child_MV.shape[1], trie.codes[level][prefix_BW])
    is_found = state.score_BW > -math.inf
    return Beams(torch.where(is_found, prefix_BW, -1), state.score_BW, trie.ids_US[prefix_BW], state.missed_B)


@torch.inference_mode()
def search_freely(model: OneRec, context: Context, n_beams: int) -> Beams:
    """As `search`, without the trie: every code may follow. `ids` are all -1; the codes say which IDs were found."""
    state = SearchState(model, context)
    codes_BWS = torch.zeros(state.n_users, 1, 0, dtype=torch.long, device=state.score_BW.device)
    for level in range(model.n_levels):
        gain_MK = state.logits(level).log_softmax(1)
        best_BW = state.keep_best((state.score_BW.view(-1, 1) + gain_MK).view(state.n_users, -1), n_beams)
        parent_BW, code_BW = best_BW // gain_MK.shape[1], best_BW % gain_MK.shape[1]
        before_BWS = codes_BWS.gather(1, parent_BW.unsqueeze(2).expand(-1, -1, level))
        codes_BWS = torch.cat([before_BWS, code_BW.unsqueeze(2)], dim=2)
        if level < model.n_levels - 1:
            state.extend(level, parent_BW, code_BW)
    return Beams(torch.full_like(state.score_BW, -1, dtype=torch.long), state.score_BW, codes_BWS, state.missed_B)


class SearchState:
    """The prefixes of all users between two levels: scores, keys and values of the codes so far, and the evidence.

    score_BW: float32 (B, W). missed_B: float32 (B,).
    """

    def __init__(self, model: OneRec, context: Context) -> None:
        self.model, self.n_users = model, len(context.mask_BTC)
        self._context, self._attentions = context, context.attentions()
        self._x_M1D = model.begin_token(context)
        self._caches: list[KVCache] | None = None
        self.score_BW = torch.zeros(self.n_users, 1, device=self._x_M1D.device)
        self.missed_B = torch.full((self.n_users,), -math.inf, device=self._x_M1D.device)
        self._evidence: Evidence | None = None

    def logits(self, level: int) -> Tensor:
        """Scores of the next code of all beams, float32 (M, K)."""
        h_M1D, self._caches = self.model.decode(self._x_M1D, self._attentions, self._caches)
        if self._evidence is None:
            self._evidence = self.model.evidence(self._context, h_M1D[:, 0])
        return self.model.logits(level, h_M1D[:, 0], self._evidence)

    def keep_best(self, total_BX: Tensor, n_beams: int) -> Tensor:
        """Where the best scores stand, int64 (B, W); they become the beams' scores, and the best of the others is noted."""
        best = total_BX.topk(min(n_beams + 1, total_BX.shape[1]), dim=1)
        if total_BX.shape[1] > n_beams:
            self.missed_B = torch.maximum(self.missed_B, best.values[:, n_beams])
        self.score_BW = best.values[:, :n_beams].contiguous()
        return best.indices[:, :n_beams]

    def extend(self, level: int, parent_BW: Tensor, code_BW: Tensor) -> None:
        """Every beam continues one of the beams before, by a code."""
        n_before = len(self._x_M1D) // self.n_users
        first_B1 = torch.arange(self.n_users, device=parent_BW.device).unsqueeze(1) * n_before
        parent_M = (parent_BW + first_B1).flatten()
        assert self._caches is not None and self._evidence is not None, "logits come first"  # noqa: PT018
        self._caches = [(k[parent_M], v[parent_M]) for k, v in self._caches]
        self._x_M1D = self.model.code_token(level, code_BW.flatten())
        self._evidence = self._evidence.take(parent_M).follow(level, code_BW.flatten())


@torch.inference_mode()
def rank_all(model: OneRec, context: Context, trie: Trie, *, n_rows: int = 1 << 14) -> Tensor:
    """float32 (B, U): the log-probability of every ID, by full forward passes without any cache: the exact answer of `search`.

    Costs as many passes of a few tokens as there are prefixes of all codes but the last; n_rows of them at a time.
    """
    n_users, last = len(context.mask_BTC), model.n_levels - 1
    if last:
        stems_XS, stem_of_U = torch.unique(trie.ids_US[:, :-1], dim=0, return_inverse=True)
    else:
        stems_XS, stem_of_U = trie.ids_US[:1, :0], torch.zeros_like(trie.ids_US[:, 0])
    begin_M1D, attentions = model.begin_token(context), context.attentions()
    first = model.evidence(context, model.decode(begin_M1D, attentions)[0][:, 0])
    scores: list[Tensor] = []
    for stems_xS in torch.split(stems_XS, max(1, n_rows // n_users)):
        n_stems = len(stems_xS)
        codes_MS = stems_xS.repeat(n_users, 1)
        tokens = [begin_M1D.repeat_interleave(n_stems, 0)]
        tokens += [model.code_token(level, codes_MS[:, level]) for level in range(last)]
        h_MSD, _ = model.decode(torch.cat(tokens, dim=1), attentions)
        evidence = first.take(torch.arange(n_users, device=h_MSD.device).repeat_interleave(n_stems))
        path_M1 = torch.zeros(len(h_MSD), 1, device=h_MSD.device)
        for level in range(last):
            log_p_MK = model.logits(level, h_MSD[:, level], evidence).log_softmax(1)
            path_M1 = path_M1 + log_p_MK.gather(1, codes_MS[:, level : level + 1])
            evidence = evidence.follow(level, codes_MS[:, level])
        log_p_MK = model.logits(last, h_MSD[:, last], evidence).log_softmax(1)
        scores.append((path_M1 + log_p_MK).view(n_users, n_stems, -1))
    return torch.cat(scores, dim=1)[:, stem_of_U, trie.ids_US[:, -1]]
