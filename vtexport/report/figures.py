"""Figures as inline SVG, drawn from numbers alone.

Sideways everything is in percent and upright in pixels, so that a figure fits a phone and its text keeps its size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vtexport.measure.record import Figures
from vtexport.report.markup import Html, join, tag

COLOURS = 7  # classes c0 to c6 of the page's style
_BAR, _MARK, _PLOT = 22, 26, 200  # pixels high
_TICKS = 4  # at the least, or the axis says little
_NEAR_THE_EDGE = 92.0  # percent, from which on a tick's text ends at the tick instead of standing around it


@dataclass(frozen=True)
class Point:
    """One plan in a chart."""

    label: str
    x: float
    y: float


def share(value: float, whole: float) -> float:
    """Percent of `whole`, from 0 to 100; 0 where it is none, as of a whole that is 0 or not finite."""
    if not (math.isfinite(value) and math.isfinite(whole)) or whole <= 0:
        return 0.0
    return min(100.0, max(0.0, 100 * value / whole))


def number(value: float) -> str:
    """A figure for people, with three digits or more: 0.0123, 1.23, 123.4."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    size = abs(value)
    if 0.01 <= size < 1e6:
        return f"{value:.{1 if size >= 100 else 2 if size >= 1 else 4}f}"
    return f"{value:.3g}"


def stacked_bar(parts: Sequence[tuple[str, float]], whole: float, label: str, unit: str = "ms") -> Html:
    """Parts beside each other, `whole` being the full width; part i has the colour i."""
    rects, at = [], 0.0
    for index, (name, value) in enumerate(parts):
        width = share(value, whole)
        if width:
            title = tag("title", f"{name}: {number(value)} {unit}")
            rects.append(
                tag("rect", title, class_=_fill(index), x=_percent(at), width=_percent(width), y=0, height=_BAR)
            )
        at += width
    return tag("svg", *rects, class_="bar", width="100%", height=_BAR, role="img", aria_label=label)


def marks(figures: Figures, whole: float, label: str) -> Html:
    """A line from the least to the largest sample, with a dot at the median, a tick at p90 and a diamond at p99."""
    middle = _MARK / 2
    least, most, p90, p99 = (
        _percent(share(value, whole)) for value in (figures.min, figures.max, figures.p90, figures.p99)
    )
    title = tag(
        "title",
        f"{label}: p50 {number(figures.p50)}, p90 {number(figures.p90)}, p99 {number(figures.p99)} ms; "
        f"{number(figures.min)} to {number(figures.max)} ms",
    )
    diamond = tag("path", d="M0 -6 L6 0 L0 6 L-6 0 Z", class_="p99")
    return tag(
        "svg",
        title,
        tag("line", class_="range", x1=least, x2=most, y1=middle, y2=middle),
        tag("line", class_="p90", x1=p90, x2=p90, y1=middle - 8, y2=middle + 8),
        # A nested picture, because a path has no percent.
        tag("svg", diamond, x=p99, y=middle, class_="mark", overflow="visible"),
        tag("circle", class_="p50", cx=_percent(share(figures.p50, whole)), cy=middle, r=5),
        class_="marks",
        width="100%",
        height=_MARK,
        role="img",
        aria_label=label,
    )


def axis(whole: float, unit: str) -> Html:
    """Ticks from 0 to `whole` under bars that have this scale."""
    parts: list[Html] = [tag("line", class_="axis", x1="0%", x2="100%", y1=1, y2=1)]
    for value in ticks(whole):
        at = share(value, whole)
        anchor = "start" if not value else "end" if at > _NEAR_THE_EDGE else "middle"
        text = f"{value:g} {unit}" if not value else f"{value:g}"
        parts.append(tag("line", class_="axis", x1=_percent(at), x2=_percent(at), y1=1, y2=6))
        parts.append(tag("text", text, x=_percent(at), y=19, text_anchor=anchor))
    return tag("svg", *parts, class_="scale", width="100%", height=24, aria_hidden="true")


def chart(series: Mapping[str, Sequence[Point]], label: str) -> Html:
    """Points joined by lines, a colour each series, both axes from 0."""
    points = [point for each in series.values() for point in each]
    wide, high = (_rounded_up(max((value for value in values), default=1.0)) for values in _columns(points))
    drawn: list[Html] = []
    for value in ticks(high):
        y = _upright(value, high)
        drawn.append(tag("line", class_="grid", x1="0%", x2="100%", y1=y, y2=y))
        drawn.append(tag("text", f"{value:g}", x=-6, y=f"{float(y) + 4:.2f}", text_anchor="end"))
    for value in ticks(wide):
        at = share(value, wide)
        anchor = "start" if not value else "end" if at > _NEAR_THE_EDGE else "middle"
        drawn.append(tag("text", f"{value:g}", x=_percent(at), y=_PLOT + 18, text_anchor=anchor))
    for index, each in enumerate(series.values()):
        ordered = sorted(each, key=lambda point: (point.x, point.y))
        for before, after in itertools.pairwise(ordered):
            (x1, y1), (x2, y2) = (
                (_percent(share(point.x, wide)), _upright(point.y, high)) for point in (before, after)
            )
            drawn.append(tag("line", class_=f"curve {_fill(index)}", x1=x1, y1=y1, x2=x2, y2=y2))
        for point in ordered:
            title = tag("title", f"{point.label}: {number(point.x)}, {number(point.y)}")
            cx, cy = _percent(share(point.x, wide)), _upright(point.y, high)
            drawn.append(tag("circle", title, class_=_fill(index), cx=cx, cy=cy, r=5))
    picture = tag("svg", *drawn, class_="chart", width="100%", height=_PLOT + 24, role="img", aria_label=label)
    return tag("div", picture, class_="plot")


def legend(names: Sequence[str | None]) -> Html:
    """Names with their colours, in the order of the parts; None takes a colour and is not shown."""
    return tag("p", *(_key(index, name) for index, name in enumerate(names) if name is not None), class_="legend")


def ticks(whole: float) -> list[float]:
    """Round values from 0 to `whole`, at least four steps; only 0 where it is none."""
    if not math.isfinite(whole) or whole <= 0:
        return [0.0]
    step = _step(whole)
    return [count * step for count in range(math.floor(whole / step * (1 + 1e-9)) + 1)]


def _step(whole: float) -> float:
    """1, 2 or 5 times a power of ten that goes into `whole` at least four times."""
    power = 10.0 ** math.floor(math.log10(whole / _TICKS))
    if not power:  # below the least double
        return whole
    return max((factor * power for factor in (1, 2, 5) if factor * power * _TICKS <= whole), default=power)


def _rounded_up(value: float) -> float:
    """The next tick, so that no point lies on the edge's far side."""
    if not math.isfinite(value) or value <= 0:
        return 1.0
    step = _step(value)
    return math.ceil(value / step * (1 - 1e-9)) * step


def _columns(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [point.x for point in points], [point.y for point in points]


def _upright(value: float, whole: float) -> str:
    return f"{_PLOT * (1 - share(value, whole) / 100):.2f}"


def _percent(value: float) -> str:
    return f"{value:.4f}%"


def _fill(index: int) -> str:
    return f"c{index % COLOURS}"


def _key(index: int, name: str) -> Html:
    swatch = tag("svg", tag("rect", class_=_fill(index), width=12, height=12), width=12, height=12, aria_hidden="true")
    return tag("span", join((swatch, " ", name)))
