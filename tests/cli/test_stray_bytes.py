"""Names with bytes that are not UTF-8, which Linux allows: they work, or one sentence says what to do."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from vtexport.build import build
from vtexport.bundle.paths import check_name
from vtexport.bundle.reader import open_bundle
from vtexport.cli.console import command_line
from vtexport.cli.main import main
from vtexport.errors import UsageError
from vtexport.runtime.pipeline import Pipeline

STRAY = os.fsdecode(b"caf\xe9")
SHOWN = "caf\\udce9"
PLAN = ("--plan", "prunesid-16")
NO_UTF8 = "holds bytes that are not UTF-8"


class Call:
    """Runs commands with streams as a process has them; pytest's own replace what they cannot show."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self._monkeypatch = monkeypatch

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        """Exit code, stdout and the last line on stderr."""
        streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2)]
        with self._monkeypatch.context() as patched:
            for name, stream in zip(("stdout", "stderr"), streams, strict=True):
                patched.setattr(sys, name, stream)
            code = main([str(argument) for argument in arguments])
        out, err = (stream.buffer.getvalue().decode() for stream in streams)  # type: ignore[attr-defined]
        return code, out, (err.strip().splitlines() or [""])[-1]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Call:
    return Call(monkeypatch)


@pytest.fixture
def stray(tmp_path: Path) -> Path:
    folder = tmp_path / STRAY
    folder.mkdir()
    return folder


def test_images_and_pictures(tiny_bundle: Path, photo: Path, stray: Path, call: Call) -> None:
    image = Path(shutil.copy(photo, stray / "photo.jpg"))
    code, out, _ = call("run", tiny_bundle, *PLAN, "--image", image, "--prompt", "x?", "--max-new-tokens", 1)
    assert code == 0
    code, out, _ = call("show", tiny_bundle, *PLAN, "--image", image, "-o", stray / "kept.png", "--json")
    assert (code, (stray / "kept.png").is_file()) == (0, True)
    assert json.loads(out)["picture"] == str(stray / "kept.png")
    code, _, said = call("show", tiny_bundle, *PLAN, "--image", stray / "none.jpg")
    assert (code, f"{SHOWN}/none.jpg does not exist" in said) == (1, True)


def test_bundles_are_described_and_not_run(tiny_bundle: Path, photo: Path, stray: Path, call: Call) -> None:
    bundle = shutil.copytree(tiny_bundle, stray / "bundle")
    code, out, _ = call("inspect", bundle, "--verify", "--json")
    assert (code, json.loads(out)["verified"]) == (0, True)
    for arguments in (
        ["run", bundle, *PLAN, "--image", photo, "--prompt", "x?"],
        ["show", bundle, *PLAN, "--image", photo],
        ["doctor", bundle],
        ["eval", bundle, *PLAN, "--limit", "1", "-o", stray / "eval"],
    ):
        code, _, said = call(*arguments)
        assert code == 2
        assert SHOWN in said
        assert said.endswith(f"{NO_UTF8}; rename the bundle's folder")


def test_a_link_with_a_plain_name_serves(tiny_bundle: Path, photo: Path, stray: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").symlink_to(shutil.copytree(tiny_bundle, stray / "bundle"))
    assert Pipeline.open(tmp_path / "plain", "prunesid-16").generate(photo, "x?", max_new_tokens=1).token_ids


def test_builds_refuse_before_any_work(tiny_checkpoint: Path, stray: Path, tmp_path: Path, call: Call) -> None:
    for model, output, step in (
        (tiny_checkpoint, stray / "bundle", "choose another -o/--output"),
        (shutil.copytree(tiny_checkpoint, stray / "checkpoint"), tmp_path / "b", "rename the checkpoint's folder"),
        (STRAY, tmp_path / "b", "rename the checkpoint's folder"),
        (f"owner/{STRAY}", tmp_path / "b", "rename the checkpoint's folder"),
    ):
        code, _, said = call("build", "--model", model, "--method", "none", "-o", output)
        assert (code, said.endswith(f"{NO_UTF8}; {step}")) == (2, True), said
        assert not output.exists()
    with pytest.raises(UsageError, match="choose another cache folder"):
        build("mini", tmp_path / "b", keep=64, weights="random", cache_dir=stray)
    assert [path.name for path in stray.iterdir()] == ["checkpoint"]


def test_evaluations(tiny_bundle: Path, photo: Path, stray: Path, call: Call) -> None:
    shutil.copy(photo, stray / "photo.jpg")
    questions = stray / "questions.jsonl"
    questions.write_text(json.dumps({"image": "photo.jpg", "question": "x?", "answer": "y"}) + "\n")
    ask = ("eval", tiny_bundle, *PLAN, "--dataset", questions, "-o", stray / "out", "--max-new-tokens", 1, "--json")
    code, out, said = call(*ask)
    assert code == 0, said
    saved = json.loads((stray / "out" / "eval.json").read_text())
    assert (saved["dataset"], json.loads(out)["dataset"]) == (str(questions), str(questions))


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "BUNDLE", "--plan", STRAY, "--image", "x", "--prompt", "x?"],
        ["run", "BUNDLE", "--device", STRAY, "--image", "x", "--prompt", "x?"],
        ["run", STRAY, "--image", "x", "--prompt", "x?"],
        ["build", "--model", "mini", "--method", STRAY],
        ["build", "--model", "mini", "--set", f"{STRAY}=1"],
        ["build", "--model", "mini", "--precision", STRAY],
        ["build", "--model", "mini", "--target", STRAY],
        ["compile", "BUNDLE", "--target", "rtx", "--compute-capability", STRAY],
        ["eval", "BUNDLE", "--dataset", STRAY],
        ["sweep", "BUNDLE", "--methods", STRAY, "--no-plot"],
        ["adapt", "BUNDLE", "--images", STRAY],
    ],
)
def test_every_other_argument_is_refused_by_its_value(tiny_bundle: Path, arguments: list[str], call: Call) -> None:
    code, _, said = call(*[tiny_bundle if each == "BUNDLE" else each for each in arguments])
    assert code in {1, 2}
    assert "unexpected" not in said
    assert "no valid text" not in said


def test_the_recorded_command_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["vtexport", "eval", STRAY, "é"])
    assert command_line() == f"vtexport eval '{SHOWN}' 'é'"


def test_names_in_other_scripts_are_no_matter(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    name = "bündel 包 \N{GRINNING FACE}"
    check_name(name, "")
    copy = shutil.copytree(tiny_bundle, tmp_path / name)
    assert open_bundle(copy).verify() == []
    assert Pipeline.open(copy, "prunesid-16").generate(photo, "x?", max_new_tokens=1).token_ids
