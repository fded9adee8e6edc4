"""A mixture of SwiGLU experts, balanced by a bias on the routing scores instead of an auxiliary loss.

Source: OneRec Technical Report section 2.2.2 for the layer; the balancing after Wang et al. 2024 (arXiv 2408.15664): a bias
an expert is added to the router's scores for the choice only, and after every step goes down where the expert had more than
the mean load, and up where it had less; there by a fixed amount. Our choices, the report being silent: an amount
in proportion to the excess or the lack, which does not overshoot for good; how large it is; sigmoid scores; and gates that add
up to 1 over the chosen experts. All experts have the same width; none is shared.

Legend: M tokens, D width, E experts, A active ones a token, F hidden width.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as nf

_BIAS_LR = 1e-2  # how far the bias goes a step, at most; at 2e-3 the load of small models was uneven for several epochs
_RECENT = 0.05  # weight of a step in the logged load: single steps are uneven by chance, and their average counts


class Experts(nn.Module):
    """A feed-forward layer of experts. In training `load`, float64 (E,), counts each expert's tokens."""

    router: nn.Linear
    bias: Tensor
    load: Tensor
    recent: Tensor

    def __init__(self, width: int, n_experts: int, n_active: int, hidden: int) -> None:
        super().__init__()
        self.n_active = n_active
        self._counts = True
        self.router = nn.Linear(width, n_experts, bias=False)
        self.up = nn.Parameter(torch.empty(n_experts, width, 2 * hidden))
        self.down = nn.Parameter(torch.empty(n_experts, hidden, width))
        self.register_buffer("bias", torch.zeros(n_experts))
        self.register_buffer("load", torch.zeros(n_experts, dtype=torch.float64), persistent=False)
        self.register_buffer("recent", torch.zeros(n_experts))
        # small, so that the first choices differ: the router's inputs have much in common
        nn.init.normal_(self.router.weight, std=0.1 * width**-0.5)
        nn.init.normal_(self.up, std=width**-0.5)
        nn.init.normal_(self.down, std=hidden**-0.5)

    def forward(self, x_MD: Tensor, is_token_M: Tensor | None = None) -> Tensor:
        """(M, D) -> (M, D): of each token the gated sum over its experts. is_token_M: bool, False for padding, which does not
        count as load; all True where None."""
        # the choice is made in float32 whatever the other dtypes are: another rounding could choose another expert
        with torch.autocast(x_MD.device.type, enabled=False):
            score_ME = nf.linear(x_MD.float(), self.router.weight.float()).sigmoid()
            chosen_MA = (score_ME.detach() + self.bias).topk(self.n_active, dim=1).indices
            gate_MA = score_ME.gather(1, chosen_MA)
            gate_MA = gate_MA / gate_MA.sum(1, keepdim=True)
        expert_J = chosen_MA.flatten()  # J = M * A pairs of a token and an expert
        count_E = torch.bincount(expert_J, minlength=len(self.bias))
        if self.training and self._counts:
            self.load += (
                count_E if is_token_M is None else torch.bincount(chosen_MA[is_token_M].flatten(), minlength=len(self.bias))
            )
        order_J = expert_J.argsort(stable=True)
        parts = torch.split(x_MD[order_J // self.n_active], count_E.tolist())
        # unbind, not up[e]: the gradient of an index is as large as all experts together
        outs = []
        for part, up, down in zip(parts, self.up.unbind(), self.down.unbind(), strict=True):
            gate, value = (part @ up).chunk(2, dim=1)
            outs.append((nf.silu(gate) * value) @ down)
        back_J = torch.empty_like(order_J)
        back_J[order_J] = torch.arange(len(order_J), device=order_J.device)
        out_MAD = torch.cat(outs)[back_J].view(*chosen_MA.shape, -1)
        return (out_MAD * gate_MA.unsqueeze(2).to(out_MAD.dtype)).sum(1)

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Within it, tokens are no load: for what is computed once more."""
        self._counts = False
        try:
            yield
        finally:
            self._counts = True

    def rebalance(self, load_E: Tensor) -> float:
        """Move the bias by the tokens each expert had in a step, float (E,): by how far they lie below the mean, in means, at
        most 1. Returns max / mean of the load of about the last 20 steps."""
        fraction_E = load_E / load_E.sum().clamp(min=1)
        lack_E = (fraction_E.mean() - fraction_E) / fraction_E.mean().clamp(min=1e-9)
        self.bias += (_BIAS_LR * lack_E.clamp(-1, 1)).to(self.bias)
        self.bias -= self.bias.mean()  # only differences matter
        self.recent.lerp_(fraction_E.to(self.recent), _RECENT)
        return float(self.recent.max() / self.recent.mean().clamp(min=1e-9))
