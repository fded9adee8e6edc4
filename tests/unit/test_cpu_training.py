"""Tables and dropout of training on CPUs, against torch's own."""

import pytest
import torch
from torch import nn

from kvtools.onerec.model.cpu_training import add_dropped, dropout, sum_of_rows


@pytest.mark.parametrize("threads", [1, 2])
def test_sums_of_rows_and_their_gradients_are_those_of_embeddings_to_the_bit(threads):
    torch.manual_seed(0)
    tables = [nn.Embedding(n, 8) for n in (300, 16, 16)]
    indices = [torch.randint(0, table.num_embeddings, (7, 50)) for table in tables]
    slope = torch.randn(8, 50, 7).permute(2, 1, 0)  # as a product's gradient comes: not contiguous
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        plain = tables[0](indices[0]) + tables[1](indices[1]) + tables[2](indices[2])
        wanted = torch.autograd.grad(plain, [table.weight for table in tables], slope)
        ours = sum_of_rows(tables, indices)
        found = torch.autograd.grad(ours, [table.weight for table in tables], slope)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(ours, plain)
    assert all(map(torch.equal, found, wanted))


def test_a_frozen_table_gets_no_gradient():
    tables = [nn.Embedding(5, 4).requires_grad_(False), nn.Embedding(5, 4)]
    sum_of_rows(tables, [torch.arange(5)] * 2).sum().backward()
    assert tables[0].weight.grad is None
    assert torch.equal(tables[1].weight.grad, torch.ones(5, 4))


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.9])
def test_dropout_drops_its_part_and_keeps_the_mean(rate):
    torch.manual_seed(1)
    ones = torch.ones(1001, 99, requires_grad=True)
    dropped = dropout(ones, rate)
    is_kept = dropped != 0
    assert 1 - is_kept.float().mean() == pytest.approx(rate, abs=0.005)
    assert torch.allclose(dropped[is_kept], torch.tensor(1 / (1 - rate)), rtol=2e-4)
    # neighbours in a draw of 64 bits are dropped independently
    together = (~is_kept[:, 1:] & ~is_kept[:, :-1]).float().mean()
    assert together == pytest.approx(rate**2, abs=0.005)
    dropped.sum().backward()
    assert torch.equal(ones.grad, dropped)


def test_what_is_added_is_dropped_as_by_dropout_of_the_same_seed():
    x, total = torch.randn(31, 7), torch.randn(31, 7)
    torch.manual_seed(2)
    alone = dropout(x, 0.3)
    torch.manual_seed(2)
    assert torch.allclose(add_dropped(total, x, 0.3), total + alone, atol=1e-6)
    assert add_dropped(total, x, 0.0).equal(total + x)
