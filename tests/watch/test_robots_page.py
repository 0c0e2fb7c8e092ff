"""The page for robots against the code: its application runs, and its table has the keys of a line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from slow_answers import MovedTime, Scripted, SlowPipeline

from vtexport.cli.watch import line
from vtexport.errors import InputError
from vtexport.watch import Observation, Watcher

PAGE = (Path(__file__).parents[2] / "docs" / "robots.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def application() -> dict[str, Any]:
    """The names of the page's program."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {"__name__": "application"}
    exec(compile("from __future__ import annotations\n" + code, "robots.md", "exec"), names)
    return names


def test_the_application_drives_and_stops(application: dict[str, Any], tiny_bundle: Path, tmp_path: Path) -> None:
    image = np.random.default_rng(2).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    speeds: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(application, "policy", lambda seen: 0.0 if seen is None else 0.3)
        opened = Watcher.open
        patch.setattr(application["Watcher"], "open", lambda *given, **more: opened(*given, plan="prunesid-16", **more))
        application["drive"](str(tiny_bundle), str(tmp_path), speeds.append, lambda: 0.3 not in speeds[-1:])
    assert speeds[0] == speeds[-1] == 0.0
    assert set(speeds) <= {0.0, 0.3}


def test_a_failure_of_the_camera_stops_it(application: dict[str, Any], tiny_bundle: Path) -> None:
    speeds: list[float] = []
    with pytest.raises(InputError, match="there is no "):
        application["drive"](f"{tiny_bundle}", "no_such_folder", speeds.append, lambda: True)
    assert speeds == []


def test_its_policy(application: dict[str, Any]) -> None:
    time = MovedTime()
    image = np.zeros((8, 8, 3), np.uint8)
    (seen,) = Watcher(SlowPipeline(time), Scripted(time, [(0.0, image)]), "x?", time=time)  # type: ignore[arg-type]
    assert seen.answer is not None

    def said(text: str, **fields: Any) -> Observation:
        from dataclasses import replace

        assert seen.answer is not None
        return replace(seen, answer=replace(seen.answer, text=text), **fields)

    policy = application["policy"]
    assert policy(said(" Yes.")) == 0.3
    for stops in (None, said("No"), said("yes", late=True), said("yes", cut=True), said("")):
        assert policy(stops) == 0.0


def test_every_key_of_a_line_is_on_the_page() -> None:
    time = MovedTime()
    images = [np.full((8, 8, 3), level, np.uint8) for level in (0, 255)]
    source = Scripted(time, [(0.0, images[0]), (1.0, images[1]), (2.0, Path("/no/such.png"))])
    seen = list(Watcher(SlowPipeline(time), source, "x?", time=time, on_change=0.1))  # type: ignore[arg-type]
    keys = {key for each in seen for key in line(each)} | {"file", "position_s"}
    table = PAGE.partition("## A line")[2].partition("## In an application")[0]
    assert keys - {"question"} == set(
        re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)))
    )
