"""Break-even on samples whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtexport.measure.break_even import Costs, break_even


def made_up(
    per_token: float, cost: float, budgets: list[int], *, noise: float = 0.0, turns: int = 40
) -> dict[str, Costs]:
    """Plans of a machine whose language model takes 50 ms and `per_token` more a token, of 576 in all."""
    random = np.random.default_rng(7)

    def plan(tokens: int, prune: float) -> Costs:
        around = random.normal(0, noise, turns) if noise else np.zeros(turns)
        return Costs(tokens, 50 + per_token * tokens + around, np.full(turns, prune))

    return {"none": plan(576, 1.0), **{f"m-{keep}": plan(keep, 1.0 + cost) for keep in budgets}}


@given(st.floats(0.01, 5), st.floats(0, 30), st.lists(st.integers(1, 500), min_size=1, max_size=4, unique=True))
def test_the_known_answer_of_a_line(per_token: float, cost: float, budgets: list[int]) -> None:
    """What is saved is per_token * (576 - k), so it equals the cost at 576 - cost / per_token tokens."""
    found = break_even("none", made_up(per_token, cost, budgets))
    assert found.tokens is not None
    assert found.tokens.value == pytest.approx(576 - cost / per_token, abs=1e-3)
    assert found.tokens.low == pytest.approx(found.tokens.value, abs=1e-3)
    assert found.ms_per_token == pytest.approx(per_token)
    assert found.prune_cost_ms == pytest.approx(cost, abs=1e-9)
    assert found.largest_residual_ms == pytest.approx(0, abs=1e-6)
    assert found.plans == [f"m-{keep}" for keep in budgets]


def test_the_interval_holds_the_answer_amid_noise() -> None:
    found = break_even("none", made_up(0.1, 10, [192, 128, 64], noise=3))
    assert found.tokens is not None
    assert found.tokens.low is not None
    assert found.tokens.high is not None
    assert found.tokens.low < 476 < found.tokens.high
    assert found.tokens.low < found.tokens.value < found.tokens.high
    assert "pruning pays below" in found.sentence
    assert "of 576 visual tokens here (95 % interval" in found.sentence


def test_where_pruning_costs_nothing_it_pays_at_every_budget() -> None:
    assert "pays at every budget below all 576" in break_even("none", made_up(0.1, -1, [64])).sentence


def test_where_it_costs_more_than_all_tokens_it_pays_at_none() -> None:
    found = break_even("none", made_up(0.1, 100, [64, 128]))
    assert "pays at no budget here: it takes more than it saves" in found.sentence


def test_where_the_time_does_not_fall_there_is_no_number() -> None:
    found = break_even("none", made_up(-0.1, 1, [64, 128]))
    assert found.tokens is None
    assert found.ms_per_token == pytest.approx(-0.1)
    assert "so pruning pays at no budget" in found.sentence
