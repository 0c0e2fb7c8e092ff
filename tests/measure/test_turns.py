"""Order of the turns."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise

from hypothesis import given
from hypothesis import strategies as st

from vtexport.measure.turns import orders


@given(st.integers(1, 6), st.integers(0, 1000))
def test_every_block_has_each_plan_at_each_place_once(count: int, seed: int) -> None:
    plans = [f"p{number}" for number in range(count)]
    turns = list(islice(orders(plans, seed), 3 * count))
    assert turns == list(islice(orders(plans, seed), 3 * count))
    for turn in turns:
        assert sorted(turn) == plans
    for begin in range(0, len(turns), count):
        block = turns[begin : begin + count]
        for place in range(count):
            assert sorted(turn[place] for turn in block) == plans


def test_no_plan_always_follows_the_same_one() -> None:
    turns = list(islice(orders("abcd", 0), 400))
    followed = Counter(pair for turn in turns for pair in pairwise(turn))
    assert len(followed) == 12
    assert max(followed.values()) < 2 * min(followed.values())
