"""SVG from numbers: sizes in proportion, whatever the numbers."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtexport.measure.statistics import figures
from vtexport.report.figures import COLOURS, Point, axis, chart, legend, marks, number, share, stacked_bar, ticks

amounts = st.floats(0, 1e6, allow_subnormal=False)


def tree(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def percent(element: ElementTree.Element, name: str) -> float:
    return float(element.attrib[name].removesuffix("%"))


@given(st.lists(amounts, min_size=1, max_size=7), st.floats(1, 3))
def test_parts_are_as_wide_as_their_share(values: list[float], wider: float) -> None:
    whole = max(sum(values) * wider, 1e-3)
    rects = tree(stacked_bar([(f"part {i}", value) for i, value in enumerate(values)], whole, "bar")).findall("rect")
    drawn = [value for value in values if share(value, whole)]
    assert len(rects) == len(drawn)
    at = 0.0
    for rect, value in zip(rects, drawn, strict=True):
        assert percent(rect, "width") == pytest.approx(100 * value / whole, abs=1e-3)
        assert percent(rect, "x") == pytest.approx(at, abs=1e-3)
        at += 100 * value / whole
    assert at <= 100 + 1e-3


@given(st.floats(allow_nan=True, allow_infinity=True), st.floats(allow_nan=True, allow_infinity=True))
def test_a_share_is_of_the_width_whatever_the_numbers(value: float, whole: float) -> None:
    assert 0 <= share(value, whole) <= 100


@given(st.floats(1e-200, 1e200))
def test_ticks_are_even_and_within(whole: float) -> None:
    found = ticks(whole)
    assert found[0] == 0
    assert found[-1] <= whole * (1 + 1e-8)
    assert 5 <= len(found) <= 12
    assert found[-1] + found[1] > whole * (1 - 1e-8)


def test_no_ticks_of_nothing() -> None:
    assert ticks(0) == ticks(-1) == ticks(math.nan) == ticks(math.inf) == [0.0]


@given(st.lists(st.floats(0.1, 1e5), min_size=1, max_size=30))
def test_marks_stand_at_the_figures(values: list[float]) -> None:
    found = figures(values)
    whole = found.max
    svg = tree(marks(found, whole, "m"))
    dot = svg.find("circle")
    span, p90 = svg.findall("line")
    mark = svg.find("svg")
    assert dot is not None
    assert mark is not None
    assert percent(dot, "cx") == pytest.approx(100 * found.p50 / whole, abs=1e-3)
    assert percent(p90, "x1") == percent(p90, "x2") == pytest.approx(100 * found.p90 / whole, abs=1e-3)
    assert percent(mark, "x") == pytest.approx(100 * found.p99 / whole, abs=1e-3)
    assert percent(span, "x1") == pytest.approx(100 * found.min / whole, abs=1e-3)
    assert percent(span, "x2") == pytest.approx(100, abs=1e-3)


def test_a_chart_has_every_point_in_proportion() -> None:
    series = {"a": [Point("a-8", 8, 40.0), Point("a-16", 16, 80.0)], "b": [Point("b", 64, 100.0)]}
    svg = tree(chart(series, "c"))[0]
    dots = {dot.findtext("title", "").partition(":")[0]: dot for dot in svg.findall("circle")}
    assert set(dots) == {"a-8", "a-16", "b"}
    assert percent(dots["a-16"], "cx") == pytest.approx(2 * percent(dots["a-8"], "cx"), abs=1e-3)
    assert percent(dots["b"], "cx") == pytest.approx(8 * percent(dots["a-8"], "cx"), abs=1e-3)
    height = 200 - float(dots["a-8"].attrib["cy"])
    assert 200 - float(dots["a-16"].attrib["cy"]) == pytest.approx(2 * height)
    assert [line.attrib["class"] for line in svg.findall("line") if "curve" in line.attrib["class"]] == ["curve c0"]


@given(st.lists(st.tuples(amounts, amounts), max_size=5))
def test_a_chart_takes_any_points(points: list[tuple[float, float]]) -> None:
    svg = tree(chart({"a": [Point("p", *each) for each in points]}, "c"))[0]
    assert len(svg.findall("circle")) == len(points)
    for dot in svg.findall("circle"):
        assert 0 <= percent(dot, "cx") <= 100
        assert 0 <= float(dot.attrib["cy"]) <= 200


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (123.456, "123.5"),
        (1.234, "1.23"),
        (0.01234, "0.0123"),
        (1e-5, "1e-05"),
        (1e7, "1e+07"),
        (-2, "-2.00"),
    ],
)
def test_numbers_for_people(value: float, shown: str) -> None:
    assert number(value) == shown


def test_colours_begin_again() -> None:
    drawn = legend([str(each) for each in range(COLOURS + 1)])
    assert re.findall(r'class="(c\d)"', drawn) == [*(f"c{each}" for each in range(COLOURS)), "c0"]


def test_an_axis_names_its_unit_once() -> None:
    assert axis(100.0, "ms").count("ms") == 1
