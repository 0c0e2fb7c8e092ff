"""The plot of a sweep, drawn into files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from made_up_records import answered, report

from vtexport.errors import InputError, MissingDependencyError
from vtexport.eval.plot import draw, label, lines
from vtexport.eval.report import Report


@pytest.fixture
def swept() -> Report:
    runs = {}
    for name in ("none", "b-16", "a-16", "a-64"):
        rows = [answered(n + 1, n % 2, image=f"i{n}", task="colour") for n in range(4)]
        runs[name] = [*rows, answered(9, 1, image="i9", task="grounding")]
    return report(runs)


def test_a_line_a_method(swept: Report) -> None:
    for plan in swept.plans:
        plan.tokens_per_layer = -float(plan.keep or 0)
    assert {name: [plan.plan for plan in plans] for name, plans in lines(swept).items()} == {
        "a": ["a-64", "a-16"],  # by the tokens that were there, not by the budget
        "b": ["b-16"],
    }
    other = swept.plans[1]
    other.plan = "b-16-order-raster"
    assert label(other) == "b-order-raster"


@pytest.mark.parametrize(("name", "start"), [("x.png", b"\x89PNG"), ("x.PDF", b"%PDF")])
def test_files(name: str, start: bytes, swept: Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    draw(swept, tmp_path / "new" / name, "a title")
    assert (tmp_path / "new" / name).read_bytes().startswith(start)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]


def test_an_svg_names_panels_and_methods(swept: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")
    draw(swept, tmp_path / "x.svg", "a title")
    text = (tmp_path / "x.svg").read_text()
    assert text.startswith("<?xml")
    for said in ("question answering", "grounding", "mean over all tasks", "unpruned", ">a<", ">b<", "a title"):
        assert said in text
    for plan in swept.plans:
        plan.grounding = None
    draw(swept, tmp_path / "y.svg", "a title")
    assert "grounding" not in (tmp_path / "y.svg").read_text()


def test_other_kinds_of_file(swept: Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    with pytest.raises(InputError, match=r"x.txt is no kind of picture .* .png, .svg, .pdf"):
        draw(swept, tmp_path / "x.txt", "")


def test_without_matplotlib(swept: Report, tmp_path: Path, blocked_import: Callable[[str], None]) -> None:
    blocked_import("matplotlib")
    with pytest.raises(MissingDependencyError, match=r"pip install 'vtexport\[plot\]' or give --no-plot"):
        draw(swept, tmp_path / "x.png", "")
