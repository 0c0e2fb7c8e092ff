"""`vtexport eval` and `vtexport sweep` as a user meets them."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import vtexport.build
from vtexport.bundle.reader import open_bundle
from vtexport.checkpoint.resolve import locate
from vtexport.cli import sweep
from vtexport.cli.eval import say_report
from vtexport.cli.main import main
from vtexport.errors import InputError, UsageError
from vtexport.eval.report import Report
from vtexport.export.plan import PlanSpec, make_plans, shape_of
from vtexport.pruning import get_method, make_options

LIMITS = ("--limit", "12", "--max-new-tokens", "4", "--threads", "1")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_eval_of_scenes(eval_bundle: Path, tmp_path: Path, capsys: Any) -> None:
    code, out, err = call(capsys, "eval", eval_bundle, *LIMITS)
    assert code == 0
    assert f"{eval_bundle} on scenes: 12 questions about " in out
    for said in (
        "none",
        "prunesid-8",
        "prunesid-16",
        "existence as POPE scores it",
        "mean of question answering",
        "of none's, %",
    ):
        assert said in out
    assert "records in tiny-eval, where the same command goes on" in err
    assert {path.name for path in (tmp_path / "tiny-eval").iterdir()} == {"records", "eval.json"}

    code, out, err = call(capsys, "eval", eval_bundle, *LIMITS, "--plan", "prunesid-16", "--json", "--quiet")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert [plan["plan"] for plan in result["plans"]] == ["none", "prunesid-16"]  # with the unpruned one
    assert json.loads((tmp_path / "tiny-eval" / "eval.json").read_text()) == result
    for key in ("samples", "images", "bad_lines", "settings", "machine", "unpruned"):
        assert key in result
    code, out, _ = call(
        capsys, "eval", eval_bundle, *LIMITS, "--plan", "prunesid-16,prunesid-8", "--no-baseline", "--json"
    )
    assert [plan["plan"] for plan in json.loads(out)["plans"]] == ["prunesid-16", "prunesid-8"]


def test_the_page_on_mini_shows_the_result_that_is_kept(capsys: Any) -> None:
    """docs/mini.md has what `vtexport eval` printed when it left benchmarks/results/mini.json."""
    root = Path(__file__).parents[2]
    kept = json.loads((root / "benchmarks" / "results" / "mini.json").read_text())
    say_report(msgspec.convert(kept, Report))
    printed = "".join(f"    {line}\n" if line else "\n" for line in capsys.readouterr().out.splitlines())
    page = (root / "docs" / "mini.md").read_text()
    assert f"    {kept['command']}\n" in page
    assert printed in page, f"docs/mini.md does not show this result:\n{printed}"


def test_eval_with_bad_lines(eval_bundle: Path, photo: Path, tmp_path: Path, capsys: Any) -> None:
    good = {"image": str(photo), "question": "What is this?", "answer": "x"}
    lines = [json.dumps(good), *["x"] * 25, json.dumps({**good, "image": "nowhere.png"})]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    code, out, err = call(capsys, "eval", eval_bundle, "--dataset", "d.jsonl", "--plan", "none", *LIMITS)
    assert code == 1
    assert "d.jsonl: 1 question about 1 image\n" in out
    assert "line 2: it is not JSON in UTF-8" in err
    assert "and 6 more, in tiny-eval/eval.json" in err
    assert err.strip().splitlines()[-1] == (
        "vtexport: 26 of d.jsonl's lines could not be used; the result is of the others"
    )
    assert len(json.loads((tmp_path / "tiny-eval" / "eval.json").read_text())["bad_lines"]) == 26


@pytest.mark.parametrize("verb", [["eval"], ["sweep", "--no-plot"]])
def test_a_plan_that_fails(eval_bundle: Path, tmp_path: Path, capsys: Any, verb: list[str]) -> None:
    """The others are in the result, and the exit code is the failed one's."""
    broken = tmp_path / "broken"
    shutil.copytree(eval_bundle, broken)
    graph = broken / "onnx" / "prunesid-8.prune.onnx"
    graph.write_bytes(bytes(graph.stat().st_size))
    code, out, err = call(capsys, verb[0], broken, *verb[1:], *LIMITS, "--json")
    assert code == 4
    result = json.loads(out)
    assert {plan["plan"] for plan in result["plans"]} == {"none", "prunesid-16"}
    assert [failed["plan"] for failed in result["failed"]] == ["prunesid-8"]
    assert err.strip().splitlines()[-1].startswith("vtexport: prunesid-8 is not in the result: ")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["eval", "{bundle}", "--dataset", "no.jsonl"], 1, "no.jsonl does not exist; give a JSONL file, or scenes"),
        (["eval", "{bundle}", "--plan", "x"], 2, "has no plan 'x'"),
        (["eval", "{bundle}", "--limit", "0"], 2, "the limit is 0; give a whole number from 1"),
        (["eval", "{bundle}", "--jobs", "0"], 2, "jobs is 0; give a whole number from 1"),
        (["eval", "{bundle}", "--max-new-tokens", "0"], 2, "max_new_tokens is 0"),
        (["eval", "{bundle}", "--device", "abacus"], 2, "device 'abacus' is not known"),
        (["eval", "nowhere"], 1, "nowhere is not a folder"),
        (["eval", "{photos}"], 4, "it is not a bundle"),
        (["eval", "{bundle}", "--output", "{photo}"], 1, "cannot be written"),
        (["sweep", "nowhere", "--no-plot"], 1, "nowhere is not a folder"),
        (["sweep", "{bundle}", "--no-plot", "--methods", "nuwa"], 2, "has no plan to compare (nuwa: "),
        (["sweep", "{bundle}", "--no-plot", "--keep", "9"], 2, "has no plan to compare; give --model to build some"),
        (["sweep", "{bundle}", "--no-plot", "--plot", "x.png"], 2, "exclude each other"),
        (["sweep", "{bundle}", "--no-plot", "--model", "{tiny}"], 2, "give --methods NAME,NAME or --methods all"),
        (["sweep", "{bundle}", "--no-plot", "--model", "{tiny}", "--methods", "prunsid"], 2, "did you mean 'prunesid'"),
        (["sweep", "{bundle}", "--no-plot", "--dataset", "no.jsonl"], 1, "no.jsonl does not exist"),
        (["sweep", "{bundle}", "--no-plot", "--model", "./x", "--methods", "nuwa"], 2, "there is no folder ./x"),
        (
            ["sweep", "{bundle}", "--no-plot", "--model", "{tiny}", "--methods", "nuwa", "--precision", "fp16"],
            2,
            "is in fp32, not fp16; leave --precision out",
        ),
    ],
)
def test_errors_are_one_sentence_with_the_right_code(
    arguments: list[str], code: int, message: str, eval_bundle: Path, tiny_checkpoint: Path, photo: Path, capsys: Any
) -> None:
    places = {"tiny": tiny_checkpoint, "bundle": eval_bundle, "photo": photo, "photos": photo.parent}
    got, out, err = call(capsys, *(argument.format(**places) for argument in arguments), "--quiet")
    last = err.strip().splitlines()[-1]
    assert (got, out) == (code, "")
    assert message in last
    assert last.startswith("vtexport: ")


def test_sweep_knows_which_plans_a_build_would_make(tiny_checkpoint: Path, eval_bundle: Path) -> None:
    """By the bundle's manifest, for every method: the same names and the same refusals."""
    located = locate(str(tiny_checkpoint))
    spec = located.family.model_spec(located.config, located.folder)
    manifest = open_bundle(eval_bundle).manifest
    builder = sweep.builder(argparse.Namespace(model=str(tiny_checkpoint), bundle=str(eval_bundle), quiet=True))

    def said(name: Callable[[], str]) -> str:
        try:
            return name()
        except UsageError as error:
            return f"refused: {error}"

    def planned(method: str, keep: int) -> tuple[PlanSpec, ...]:
        chosen = get_method(method)
        return make_plans(chosen, [keep], make_options(chosen, {}), shape_of(spec))

    found = {
        (method, keep): said(lambda method=method, keep=keep: builder.plan_name(method, keep, manifest))
        for method in [*(set(builder.methods) - {"none"}), "prunsid"]
        for keep in (64, 40, 16, 9, 1)
    }
    assert found == {
        (method, keep): said(lambda method=method, keep=keep: planned(method, keep)[0].name) for method, keep in found
    }
    assert found["prunesid", 16] == "prunesid-16"
    assert found["pyramiddrop", 1].startswith("refused: ")


def test_sweep_builds_what_is_missing(tiny_checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    methods = ("--model", tiny_checkpoint, "--methods", "random,pyramiddrop", "--keep", "16,8")
    code, out, err = call(capsys, "sweep", "b", *methods, *LIMITS, "--no-plot")
    assert code == 0
    assert "exporting none: 64 -> 64 visual tokens" in err
    assert "exporting random-16" in err
    assert "left out: pyramiddrop at 8: " in err
    assert [line.split()[0] for line in out.splitlines()[3:6]] == ["none", "random-16", "random-8"]
    assert "left out: pyramiddrop at 8" in out
    assert "question answering" in out
    assert {path.name for path in (tmp_path / "b-eval").iterdir()} == {"records", "sweep.json"}
    kept = json.loads((tmp_path / "b-eval" / "sweep.json").read_text())
    assert {(each["method"], each["keep"]) for each in kept["left_out"]} >= {("pyramiddrop", 8)}

    # Again: nothing is built and nothing is asked; another method is added.
    code, _, err = call(capsys, "sweep", "b", *methods, *LIMITS, "--no-plot")
    assert (code, "exporting" in err) == (0, False)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "b-eval" / "records").iterdir()}
    more = ("--model", tiny_checkpoint, "--methods", "random,uniform", "--keep", "16", "--json")
    code, out, _ = call(capsys, "sweep", "b", *more, *LIMITS, "--no-plot")
    assert [plan["plan"] for plan in json.loads(out)["plans"]] == ["none", "random-16", "uniform-16"]
    assert (
        before.items()
        <= {path: path.stat().st_mtime_ns for path in (tmp_path / "b-eval" / "records").iterdir()}.items()
    )


def test_a_build_that_fails_does_not_lose_the_others(
    tiny_checkpoint: Path, eval_bundle: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(eval_bundle, tmp_path / "b")
    build = vtexport.build.build

    def failing(*args: Any, method: str, **given: Any) -> Any:
        if method == "random":
            raise InputError("the disk is on fire; call somebody")
        return build(*args, method=method, **given)

    monkeypatch.setattr(vtexport.build, "build", failing)
    methods = ("--model", tiny_checkpoint, "--methods", "random,uniform,prunesid", "--keep", "16")
    code, out, err = call(capsys, "sweep", "b", *methods, *LIMITS, "--no-plot", "--json")
    assert code == 1
    result = json.loads(out)
    assert [plan["plan"] for plan in result["plans"]] == ["none", "prunesid-16", "uniform-16"]
    assert "left out: random at 16: the disk is on fire; call somebody" in err
    assert [(each["method"], each["keep"], each["exit_code"]) for each in result["left_out"]] == [("random", 16, 1)]
    alone = ("--model", tiny_checkpoint, "--methods", "random", "--keep", "16")
    code, _, err = call(capsys, "sweep", "b", *alone, *LIMITS, "--no-plot")
    assert (code, err.strip().splitlines()[-1]) == (1, "vtexport: the disk is on fire; call somebody")


def test_sweep_of_what_is_there(eval_bundle: Path, tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    code, out, err = call(capsys, "sweep", eval_bundle, *LIMITS, "--methods", "prunesid,vitcop", "--keep", "8")
    assert code == 0
    assert "left out: vitcop at 8: " in err
    assert "give --model to build it" in err
    assert [line.split()[0] for line in out.splitlines()[3:5]] == ["none", "prunesid-8"]
    assert out.strip().endswith("tiny-eval/sweep.json, tiny-eval/sweep.png")
    assert (tmp_path / "tiny-eval" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = call(capsys, "sweep", eval_bundle, *LIMITS, "--plot", "x.svg", "--json")
    assert [plan["plan"] for plan in json.loads(out)["plans"]] == ["none", "prunesid-16", "prunesid-8"]
    assert (tmp_path / "x.svg").exists()


def test_what_is_missing_is_said_before_the_work(
    eval_bundle: Path, tmp_path: Path, capsys: Any, blocked_import: Callable[[str], None]
) -> None:
    blocked_import("matplotlib")
    code, out, err = call(capsys, "sweep", eval_bundle, *LIMITS)
    assert (code, out) == (3, "")
    assert "pip install 'vtexport[plot]' or give --no-plot" in err
    blocked_import("joblib")
    for verb in (["eval", eval_bundle], ["sweep", eval_bundle, "--no-plot"]):
        code, out, err = call(capsys, *verb, *LIMITS, "--jobs", 2)
        assert (code, out) == (3, "")
        assert "pip install 'vtexport[jobs]'" in err
    assert list(tmp_path.iterdir()) == []
