from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtexport.pruning.ops.prunesid import allocate


@pytest.mark.parametrize(
    ("sizes", "survivors", "keep", "slots", "taken"),
    [
        ([6, 2, 9, 0, 11], [5, 1, 3, 0, 7], 16, 1, [4, 2, 3, 0, 6]),  # computed from the rules by another program
        ([10, 2, 3, 1], [2, 1, 1, 1], 16, 1, [9, 2, 3, 1]),
        ([9, 9], [1, 1], 5, 0, [3, 2]),  # shares of 3 end at 1.5, an exact half, which goes up to the even 2 ...
        ([9, 9], [1, 1], 7, 0, [3, 4]),  # ... and at 2.5, which goes down to 2
        ([4, 4], [0, 0], 5, 1, [3, 1]),  # nothing survived: one each, the rest to the first group with room
        ([4], [1], 4, 1, [3]),
    ],
)
def test_known_budgets(sizes: list[int], survivors: list[int], keep: int, slots: int, taken: list[int]) -> None:
    assert allocate(sizes, survivors, keep=keep, cls_slots=slots) == taken


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_rules(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=20).filter(any))
    survivors = [data.draw(st.integers(0, size)) for size in sizes]
    slots = data.draw(st.integers(0, 1))
    keep = data.draw(st.integers(sum(map(bool, sizes)), sum(sizes))) + slots
    taken = allocate(sizes, survivors, keep=keep, cls_slots=slots)
    assert sum(taken) == keep - slots
    assert all(bool(alive) <= took <= size for took, alive, size in zip(taken, survivors, sizes, strict=True))
    cap = 5 * -(-keep // 64)
    bounds = [min(cap, alive) for alive in survivors]
    if sum(bounds) >= keep and all(alive or not size for alive, size in zip(survivors, sizes, strict=True)):
        assert all(took <= bound for took, bound in zip(taken, bounds, strict=True))
