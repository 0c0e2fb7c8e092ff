"""`--keep` of methods that prune inside the language model: a mean over the layers, or a refusal that helps."""

from __future__ import annotations

import re

import pytest

from vtexport.errors import UsageError
from vtexport.pruning import ModelShape, Schedule, get_method, make_options
from vtexport.pruning.budget import mean_tokens

GRID = (8, 8)


def schedule(name: str, keep: object, layers: int) -> Schedule:
    method = get_method(name)
    return method.plan(make_options(method, {}), ModelShape(GRID, layers), keep)  # type: ignore[arg-type]


@pytest.mark.parametrize("layers", [4, 7, 16, 32])
@pytest.mark.parametrize("name", ["vitcop", "nuwa", "fastv", "pyramiddrop"])
def test_every_budget(name: str, layers: int) -> None:
    """Within 2 % and never rising, or refused; what the refusal names is possible, and nothing beyond its range is."""
    possible, refusals = [], {}
    for keep in range(66):
        try:
            made = schedule(name, keep, layers)
        except UsageError as error:
            refusals[keep] = str(error)
            continue
        counts = [made.visual_tokens, *(step.keep for step in made.steps)]
        assert counts == sorted(counts, reverse=True)
        assert counts[-1] >= 1
        assert [step.tokens for step in made.steps] == counts[:-1]
        mean = mean_tokens(counts[0], [(step.layer, step.keep) for step in made.steps], layers)
        assert abs(mean - keep) <= 0.02 * keep
        assert made.keep == keep
        possible.append(keep)
    assert len(possible) > 10
    for keep, said in refusals.items():
        least, most = map(int, re.findall(r"from (\d+) to (\d+)", said)[0])
        assert (least, most) == (possible[0], possible[-1])
        if least < keep < most:
            below, above = map(int, re.findall(r"of which (\d+) and (\d+) are the nearest", said)[0])
            assert below == max(each for each in possible if each < keep)
            assert above == min(each for each in possible if each > keep)


@pytest.mark.parametrize("keep", [None, True, 20.0, "20"])
@pytest.mark.parametrize("name", ["vitcop", "nuwa", "fastv", "pyramiddrop"])
def test_what_is_no_whole_number_is_refused(name: str, keep: object) -> None:
    with pytest.raises(UsageError, match=rf"keep={keep!r} is not allowed for {name} on this model; give a whole"):
        schedule(name, keep, 8)


@pytest.mark.parametrize(("name", "layers"), [("vitcop", 2), ("pyramiddrop", 3), ("nuwa", 1), ("fastv", 1)])
def test_too_few_layers(name: str, layers: int) -> None:
    with pytest.raises(UsageError, match=f"of a decoder of {layers}"):
        schedule(name, 20, layers)
