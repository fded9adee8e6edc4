"""Beam search over semantic IDs: the best IDs of each user, their log-probabilities, nothing illegal by construction.

The context is computed once a user and its keys and values serve all beams; only the few codes of an ID have keys of their
own. Log-probabilities are the model's over all codes, before what the trie forbids is left out, so that beam scores are
those of an exact ranking. Equal scores come in any order. Source: OneRec Technical Report section 2.5 for the use; its widths
are 512, and ours anything from 1.

A prefix has at least the score of all that begins with it. So a search knows what it may have missed: nothing that scores more
than the best of what it left out on the way.

Legend: B users, W beams, K codes of a level, V children, M = B * W, U distinct IDs, S levels.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kvtools.onerec.model.layers import Past
from kvtools.onerec.model.onerec import Context, OneRec
from kvtools.onerec.model.trie import Trie


@dataclass(frozen=True)
class Beams:
    """Best first. ids int64 (B, W): numbers of the trie's IDs, -1 where there is none; scores float32 (B, W), -inf there;
    codes int64 (B, W, S). missed_B float32: no ID that is not here has more than this; -inf where all are here."""

    ids: Tensor
    scores: Tensor
    codes: Tensor
    missed_B: Tensor


@torch.inference_mode()
def search(model: OneRec, context: Context, trie: Trie, n_beams: int, *, barred_BU: Tensor | None = None) -> Beams:
    """The n_beams best legal IDs. barred_BU: bool (B, U), IDs a user shall not be given. Exact where n_beams is at least
    the number of prefixes of every level but the last, and of IDs asked for."""
    front = _Front(model, context)
    prefix_BW = torch.zeros(front.n_users, 1, dtype=torch.long, device=front.score_BW.device)
    for level in range(model.n_levels):
        logits_MK = front.logits(level)
        child_MV, is_there = trie.children(level, prefix_BW.flatten())
        # the normaliser spans all codes, but only scores of children are looked up
        gain_MV = logits_MK.gather(1, trie.codes[level][child_MV]) - logits_MK.logsumexp(1, keepdim=True)
        total_BX = (front.score_BW.view(-1, 1) + gain_MV).masked_fill_(~is_there, -math.inf).view(front.n_users, -1)
        child_BX = child_MV.view(front.n_users, -1)
        if barred_BU is not None and level == model.n_levels - 1:
            total_BX = total_BX.masked_fill(barred_BU.gather(1, child_BX), -math.inf)
        best_BW = front.choose(total_BX, n_beams)
        prefix_BW = child_BX.gather(1, best_BW)
        if level < model.n_levels - 1:
            front.go_on(level, best_BW // child_MV.shape[1], trie.codes[level][prefix_BW])
    is_found = front.score_BW > -math.inf
    return Beams(torch.where(is_found, prefix_BW, -1), front.score_BW, trie.ids_US[prefix_BW], front.missed_B)


@torch.inference_mode()
def search_freely(model: OneRec, context: Context, n_beams: int) -> Beams:
    """As `search`, with every code allowed: what the model would say by itself. `ids` are all -1; the codes tell."""
    front = _Front(model, context)
    codes_BWS = torch.zeros(front.n_users, 1, 0, dtype=torch.long, device=front.score_BW.device)
    for level in range(model.n_levels):
        gain_MK = front.logits(level).log_softmax(1)
        best_BW = front.choose((front.score_BW.view(-1, 1) + gain_MK).view(front.n_users, -1), n_beams)
        parent_BW, code_BW = best_BW // gain_MK.shape[1], best_BW % gain_MK.shape[1]
        before_BWS = codes_BWS.gather(1, parent_BW.unsqueeze(2).expand(-1, -1, level))
        codes_BWS = torch.cat([before_BWS, code_BW.unsqueeze(2)], dim=2)
        if level < model.n_levels - 1:
            front.go_on(level, parent_BW, code_BW)
    return Beams(torch.full_like(front.score_BW, -1, dtype=torch.long), front.score_BW, codes_BWS, front.missed_B)


class _Front:
    """The beams of all users between two levels: scores, keys and values of the codes so far, and neighbours that agree."""

    def __init__(self, model: OneRec, context: Context) -> None:
        self.model, self.n_users = model, len(context.mask_BTC)
        self._attends, self._evidence = model.attends(context), context.evidence
        self._x_M1D = model.first(context)
        self._past: list[Past] | None = None
        self.score_BW = torch.zeros(self.n_users, 1, device=self._x_M1D.device)
        self.missed_B = torch.full((self.n_users,), -math.inf, device=self._x_M1D.device)
        self._agree_MN = None if context.evidence is None else context.evidence.start()

    def logits(self, level: int) -> Tensor:
        """Scores of the next code of all beams, float32 (B * W, K)."""
        h_M1D, self._past = self.model.decode(self._x_M1D, self._attends, self._past)
        return self.model.logits(level, h_M1D[:, 0], self._evidence, self._agree_MN)

    def choose(self, total_BX: Tensor, n_beams: int) -> Tensor:
        """The places of the best scores, int64 (B, W); they become the beams' scores."""
        best = total_BX.topk(min(n_beams + 1, total_BX.shape[1]), dim=1)
        if total_BX.shape[1] > n_beams:
            self.missed_B = torch.maximum(self.missed_B, best.values[:, n_beams])
        self.score_BW = best.values[:, :n_beams].contiguous()
        return best.indices[:, :n_beams]

    def go_on(self, level: int, parent_BW: Tensor, code_BW: Tensor) -> None:
        """Every beam takes a code after that of its parent."""
        n_before = len(self._x_M1D) // self.n_users
        first_B1 = torch.arange(self.n_users, device=parent_BW.device).unsqueeze(1) * n_before
        parent_M = (parent_BW + first_B1).flatten()
        assert self._past is not None, "logits come first"
        self._past = [(k[parent_M], v[parent_M]) for k, v in self._past]
        self._x_M1D = self.model.after(level, code_BW.flatten())
        if self._evidence is not None and self._agree_MN is not None:
            self._agree_MN = self._evidence.follow(level, self._agree_MN[parent_M], code_BW.flatten())


@torch.inference_mode()
def rank_all(model: OneRec, context: Context, trie: Trie, *, n_rows: int = 1 << 14) -> Tensor:
    """float32 (B, U): the log-probability of every ID, by full forward passes without any cache: the oracle of `search`.

    Costs as many passes of a few tokens as there are prefixes of all codes but the last; n_rows of them at a time.
    """
    n_users, n_levels = len(context.mask_BTC), model.n_levels
    if n_levels == 1:
        stems_XS, stem_of_U = trie.ids_US[:1, :0], torch.zeros_like(trie.ids_US[:, 0])
    else:
        stems_XS, stem_of_U = torch.unique(trie.ids_US[:, :-1], dim=0, return_inverse=True)
    first_BD = model.first(context)
    gains: list[Tensor] = []
    step = max(1, n_rows // n_users)
    for stems_xS in torch.split(stems_XS, step):
        n_stems = len(stems_xS)
        tokens = [first_BD.repeat_interleave(n_stems, 0)]
        tokens += [model.after(level, stems_xS[:, level].repeat(n_users)) for level in range(n_levels - 1)]
        h_MSD, _ = model.decode(torch.cat(tokens, dim=1), model.attends(context))
        evidence = context.evidence
        agree_MN = evidence.start().repeat_interleave(n_stems, 0) if evidence else None
        log_p = []
        for level in range(n_levels):
            log_p.append(model.logits(level, h_MSD[:, level], evidence, agree_MN).log_softmax(1))
            if evidence is not None and agree_MN is not None and level < n_levels - 1:
                agree_MN = evidence.follow(level, agree_MN, stems_xS[:, level].repeat(n_users))
        stem_M1 = torch.arange(n_users * n_stems, device=h_MSD.device).unsqueeze(1) % n_stems
        path_M = sum(log_p[level].gather(1, stems_xS[stem_M1[:, 0], level].unsqueeze(1)) for level in range(n_levels - 1))
        gains.append((path_M + log_p[-1]).view(n_users, n_stems, -1))
    all_BXK = torch.cat(gains, dim=1)
    return all_BXK[:, stem_of_U, trie.ids_US[:, -1]]
