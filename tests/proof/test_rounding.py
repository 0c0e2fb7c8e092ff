"""Rounding made visible: its size, what it leaves out, and that it leaves nothing behind."""

from __future__ import annotations

import pytest
import torch

from vtexport.dtypes import DTYPES
from vtexport.proof.rounding import rounded


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_outputs_move_by_their_last_place(precision: str) -> None:
    layer = torch.nn.Linear(64, 64)
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    before = layer(x)
    with rounded(torch.nn.Sequential(layer), precision, seed=1):
        during = layer(x)
    share = ((during - before) / before).abs().max()
    assert DTYPES[precision].epsilon / 2 < share <= 1.5 * DTYPES[precision].epsilon
    assert torch.equal(layer(x), before)


def test_seeds_and_what_is_left_out() -> None:
    first, second, table = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.Embedding(4, 4)
    model, x, ids = torch.nn.ModuleList([first, second, table]), torch.ones(1, 4), torch.tensor([1])
    clean = first(x), second(x), table(ids)
    with rounded(model, "float16", seed=1, without=second):
        one = first(x)
        assert torch.equal(second(x), clean[1])
        assert torch.equal(table(ids), clean[2])
    with rounded(model, "float16", seed=2):
        other = first(x)
    with rounded(model, "float16", seed=1):
        again = first(x)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
