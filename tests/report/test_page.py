"""The page and the short table: what they say is what the reports say, and nothing in them can do anything."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from made_up_measurement import header, plan_facts, sample
from made_up_reports import (
    HOSTILE,
    evaluated,
    measurement,
    put_evaluation,
    put_measurement,
    put_proof,
    put_validation,
    validated,
)
from PIL import Image

from vtexport.bundle.reader import open_bundle
from vtexport.cli.main import main
from vtexport.errors import InputError
from vtexport.measure.record import Failure, Gate
from vtexport.measure.report import make_report
from vtexport.report.budgets import budgets
from vtexport.report.collect import collect
from vtexport.report.figures import number
from vtexport.report.markdown import markdown
from vtexport.report.page import page
from vtexport.report.states import states

VOID = {"meta", "img"}


class Parsed(HTMLParser):
    """Elements that are closed in order, their attributes, and the text of every section."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {}
        self._section: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "section":
            self._section = dict(attrs)["id"] or ""
            self.sections[self._section] = ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "section":
            self._section = None

    def handle_data(self, data: str) -> None:
        if self._section is not None:
            self.sections[self._section] += data + " "


def parsed(bundle: Path, **more: Any) -> Parsed:
    found = Parsed(page(collect(open_bundle(bundle), **more)).decode())
    assert found.open == []
    return found


def words(bundle: Path, **more: Any) -> dict[str, str]:
    return {each.source: each.state for each in states(collect(open_bundle(bundle), **more))}


def test_the_page_is_whole_and_loads_nothing(full: Path) -> None:
    found = parsed(full)
    names = {tag for tag, _ in found.elements}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for _, attributes in found.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "data", "poster", "srcset", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/png;base64,", "#"))
    style = re.search(r"<style>(.*?)</style>", page(collect(open_bundle(full))).decode(), re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert "prefers-color-scheme: dark" in style[1]
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [str(attributes["href"]) for tag, attributes in found.elements if tag == "a"]
    assert links == [f"#{each}" for each in ids]


def test_every_figure_is_the_records(full: Path) -> None:
    found, report = parsed(full), measurement(full, energy=True)
    for plan in report.plans:
        for each in (plan.first_token_ms, plan.total_ms):
            for value in (each.p50, each.p90, each.p95, each.p99, each.max):
                assert f" {number(value)} " in found.sections["latency"]
        for stage in plan.stages_ms.values():
            assert f" {number(stage.p50)} " in found.sections["stages"]
    for ratio in report.ratios:
        assert f" {ratio.plan} : {ratio.over} " in found.sections["latency"]
        assert f" {ratio.ratio.value:.3f} " in found.sections["latency"]
    for joules in (4.0, 1.6, 2.0):
        assert f" {joules:.2f} " in found.sections["energy"]
    for accuracy in (80, 60, 70):
        assert f" {accuracy}.0 % ({accuracy - 10}.0 to {accuracy + 10}.0) " in found.sections["accuracy"]
    assert "0.0123 (bound 0.02)" in found.sections["parity"]
    assert " prunesid-8 - 1 pass 1 differs " in found.sections["parity"]
    assert "made up" in found.sections["environment"]
    for command in ("vtexport bench b", "vtexport validate b", "vtexport eval b", "vtexport prove b"):
        assert command in found.sections["commands"]


def test_states_of_a_full_bundle(full: Path) -> None:
    assert words(full) == {
        "validate": "pass", "bench": "measured", "soak": "pass", "eval": "measured", "proof": "measured",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("failed", "unknown", "word", "detail"),
    [
        ([], [], "pass", "held to max_ttft_ms 150, percentile 99, not slower than old.json by 5 %"),
        (["a: 9 ms over the limit"], ["b"], "fail", "a: 9 ms over the limit; b"),
        ([], ["a: not known"], "not checked", "a: not known"),
    ],
)
def test_limits_make_a_measurement_pass_or_fail(
    bare: Path, failed: list[str], unknown: list[str], word: str, detail: str
) -> None:
    limits = {"max_ttft_ms": 150.0, "percentile": 99.0}
    gate = Gate(limits=limits, against="old.json", tolerance=0.05, failed=failed, unknown=unknown)
    put_measurement(bare, msgspec.structs.replace(measurement(bare), gate=gate))
    found = {each.source: each for each in states(collect(open_bundle(bare)))}["bench"]
    assert (found.state, found.detail.split("; ", 1)[1]) == (word, detail)


def test_what_is_absent_is_named_with_its_command_and_is_no_pass(bare: Path) -> None:
    put_measurement(bare, measurement(bare))
    found = parsed(bare)
    said = words(bare)
    assert said.pop("bench") == "measured"
    assert set(said.values()) == {"not checked"}
    assert not any(attributes.get("class") == "badge pass" for _, attributes in found.elements)
    for section, command in {
        "soak": "--rate 1/s",
        "accuracy": "vtexport eval ",
        "kept": "vtexport prove ",
        "parity": "vtexport validate ",
    }.items():
        assert "Not checked: " in found.sections[section]
        assert command in found.sections[section]
    assert "energy of an answer was not measured" in found.sections["budgets"]
    assert "--energy" in found.sections["budgets"]
    assert "Not measured" in found.sections["energy"]
    adaptive = open_bundle(bare).manifest.adaptive_plans[0].name
    assert f"Not measured: {adaptive}." in found.sections["stages"]
    assert "With 12 samples" in found.sections["latency"]


def test_a_page_without_a_measurement_still_stands(bare: Path) -> None:
    put_validation(bare, validated(bare))
    found = parsed(bare)
    for section in ("stages", "latency", "energy"):
        assert "vtexport bench " in found.sections[section]
    assert words(bare)["bench"] == "not checked"


@pytest.mark.parametrize("verdict", ["fail", "skipped"])
def test_a_comparison_that_did_not_pass(bare: Path, verdict: Any) -> None:
    report = validated(bare)
    for _, check in report.checks:
        check.verdict, check.note = verdict, "for a test"
    put_validation(bare, report)
    assert words(bare)["validate"] == {"fail": "fail", "skipped": "not checked"}[verdict]
    assert "for a test" in parsed(bare).sections["parity"]


def test_reports_of_an_earlier_manifest_are_shown_and_not_checked(bare: Path) -> None:
    put_validation(bare, validated(bare, manifest_sha256="1" * 64))
    put_measurement(bare, measurement(bare, manifest_sha256="1" * 64))
    source = {"files": {"model.safetensors": "1" * 64}}
    put_evaluation(bare / "reports" / "eval.json", evaluated(bare, source=source))
    assert set(words(bare).values()) == {"not checked"}
    found = parsed(bare)
    for section in ("stages", "latency", "parity"):
        assert "the bundle's manifest.json has changed since" in found.sections[section]
    assert "of other weights" in found.sections["accuracy"]


def test_measurements_that_went_wrong_fail(bare: Path) -> None:
    failed = make_report(
        header(plan_facts("none")), [sample("none"), Failure(image="a.png", reason="broken", at_s=1.0)], "then"
    )
    put_measurement(bare, failed)
    put_measurement(bare, make_report(header(), [sample()], "then", "SIGTERM"), "soak.json")
    put_evaluation(bare / "reports" / "eval.json", evaluated(bare, bad_lines=[{"line": 3, "reason": "no answer"}]))
    for name in ("bench", "soak"):
        file = bare / "reports" / f"{name}.json"
        value = json.loads(file.read_text())
        value["header"]["manifest_sha256"] = validated(bare).manifest_sha256
        file.write_text(json.dumps(value))
    assert (words(bare)["bench"], words(bare)["eval"]) == ("fail", "fail")
    assert words(bare)["soak"] == "not checked"  # it has no figures of a rate
    assert "a.png: broken" in parsed(bare).sections["warnings"]
    assert "line 3: no answer" in parsed(bare).sections["warnings"]


@pytest.mark.parametrize("counted", ["missed", "dropped", "errors"])
def test_a_soak_with_a_late_answer_fails(bare: Path, counted: str) -> None:
    report = measurement(bare, soak=True)
    assert report.soak is not None
    setattr(report.soak, counted, 1)
    put_measurement(bare, report, "soak.json")
    assert words(bare)["soak"] == "fail"


def test_texts_of_files_are_only_text(bare: Path) -> None:
    report = make_report(
        header(plan_facts(HOSTILE), prompt=HOSTILE, command=HOSTILE, machine={"cpu": HOSTILE, HOSTILE: HOSTILE}),
        [sample(HOSTILE), Failure(image=HOSTILE, reason=HOSTILE, at_s=0.0)],
        "then",
    )
    report.warnings.append(HOSTILE + "\x1b[31m\u202e")
    put_measurement(bare, report)
    checked = validated(bare, backend=HOSTILE, without_proof={HOSTILE: HOSTILE}, notes=[HOSTILE])
    checked.plans[0].plan = checked.plans[0].checks[1].note = HOSTILE
    put_validation(bare, checked)
    asked = evaluated(bare, dataset=HOSTILE, settings={HOSTILE: [HOSTILE]})
    asked.plans[0].plan = asked.plans[0].method = HOSTILE
    put_evaluation(bare / "reports" / "eval.json", asked)
    put_proof(bare, {"prunesid-8": [1, 2]}, prompt=HOSTILE, origin=HOSTILE)
    text = page(collect(open_bundle(bare))).decode()
    assert "<script" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    found = Parsed(text)
    assert found.open == []
    assert not any(tag == "script" for tag, _ in found.elements)
    for section in ("summary", "stages", "latency", "budgets", "accuracy", "kept", "parity", "environment", "warnings"):
        assert '<script>alert("x")</script>' in found.sections[section], section
    short = markdown(collect(open_bundle(bare)))
    assert "<script" not in short
    assert "![z]" not in short


def test_kept_tokens_are_bright_on_the_image(bare: Path) -> None:
    put_measurement(bare, measurement(bare))
    put_proof(bare, {"prunesid-8": [0, 1], "none": list(range(16))})
    shown = [attributes for tag, attributes in parsed(bare).elements if tag == "img"]
    assert len(shown) == 2
    bright = {}
    for each in shown:
        data = base64.b64decode(str(each["src"]).removeprefix("data:image/png;base64,"))
        picture = Image.open(io.BytesIO(data)).convert("L")
        assert max(picture.size) <= 320
        assert (str(picture.width), str(picture.height)) == (each["width"], each["height"])
        bright[each["alt"]] = sum(picture.resize((8, 8)).tobytes())
    assert bright["none on image 1"] > bright["prunesid-8 on image 1"]  # all tokens, and two of them


def test_indices_beyond_the_grid_are_told_of(bare: Path) -> None:
    put_measurement(bare, measurement(bare))
    put_proof(bare, {"prunesid-8": [0, 10**6], "none": [0]})
    found = parsed(bare)
    assert len([tag for tag, _ in found.elements if tag == "img"]) == 1
    assert "prunesid-8, image 1: an index is beyond the" in found.sections["kept"]


def test_a_damaged_report_is_told_of_and_the_others_are_shown(full: Path) -> None:
    (full / "reports" / "validate.json").write_text("{")
    (full / "proof" / "image_1.png").write_bytes(b"")
    said = {each.source: each for each in states(collect(open_bundle(full)))}
    for name in ("validate", "proof"):
        assert said[name].state == "not checked"
        assert said[name].detail.startswith("cannot be used: ")
    assert said["bench"].state == "measured"
    assert "cannot be used" in parsed(full).sections["parity"]


def test_the_short_table_has_the_records_figures(full: Path) -> None:
    lines = markdown(collect(open_bundle(full))).splitlines()
    rows = {
        row[1].replace("\\", ""): row[2:-1]
        for row in ([cell.strip() for cell in line.split("|")] for line in lines)
        if len(row) > 3
    }
    plan = measurement(full).plans[0]
    times = [f"{number(value)} ms" for value in (plan.first_token_ms.p50, plan.first_token_ms.p99, plan.total_ms.p50)]
    name = plan.name
    expected = {
        "none": ["4.00 J", "80.00 %"],
        "prunesid-8": ["1.60 J", "60.00 %"],
        "prunesid-16": ["2.00 J", "70.00 %"],
    }
    assert rows[name][1:4] == times
    assert {each: row[4:6] for each, row in rows.items() if each in expected} == expected
    assert rows["prunesid-8"][6] == "1 pass, 1 differs"
    assert rows["none"][6] == "-"
    assert "- soak: **pass**, " in "\n".join(lines)


def test_the_verb(bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(bare)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "no report in reports/" in said[0]
    assert f"vtexport bench {bare}" in said[0]
    assert not (bare / "reports").exists()

    asked = tmp_path / "tiny-eval" / "eval.json"
    put_evaluation(asked, evaluated(bare))
    put_measurement(bare, measurement(bare))
    assert main(["report", str(bare), "--eval", str(asked)]) == 0
    shown = capsys.readouterr()
    assert "eval: measured, 3 plans, 40 questions of scenes" in shown.out
    assert "validate is not checked; vtexport validate" in shown.err
    assert (bare / "reports" / "report.html").read_bytes().startswith(b"<!DOCTYPE html>")

    (bare / "reports" / "report.html").unlink()
    assert main(["report", str(bare), "--markdown"]) == 0
    assert capsys.readouterr().out.startswith("**tiny**\n\n| plan |")
    assert not (bare / "reports" / "report.html").exists()

    assert main(["report", str(bare), "--json", "-o", str(tmp_path / "there" / "page.html")]) == 0
    said_json = json.loads(capsys.readouterr().out)
    assert said_json["report"] == str(tmp_path / "there" / "page.html")
    assert {each["source"]: each["state"] for each in said_json["sources"]} == words(bare)
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["page.html"]


def test_an_evaluation_that_is_named_has_to_be_one(bare: Path, tmp_path: Path) -> None:
    put_measurement(bare, measurement(bare))
    other = tmp_path / "other.json"
    for content in (b"{", b"[]", msgspec.json.encode({"bundle": "b"})):
        other.write_bytes(content)
        with pytest.raises(InputError, match=r"other\.json is no result of an evaluation"):
            collect(open_bundle(bare), other)
    with pytest.raises(InputError, match="is no result of an evaluation"):
        collect(open_bundle(bare), tmp_path / "gone.json")
    with pytest.raises(InputError, match="is not a plain file"):
        collect(open_bundle(bare), tmp_path)


def test_a_method_keeps_its_colour(bare: Path) -> None:
    """Accuracy is known of a method that was not measured, whose name comes first."""
    asked = evaluated(bare)
    asked.plans[0].method = asked.plans[0].plan = "a"
    put_measurement(bare, measurement(bare))
    put_evaluation(bare / "reports" / "eval.json", asked)
    by_title = {each.title: each.series for each in budgets(collect(open_bundle(bare)))}
    assert [list(series) for series in by_title.values()] == [["a", "none", "prunesid"]] * 3
    assert [len(points) for points in by_title["Time to first token"].values()] == [0, 1, 2]
    assert [len(points) for points in by_title["Accuracy"].values()] == [1, 0, 2]
    section = parsed(bare).sections["budgets"]
    assert section.count("prunesid-8") == 2 * 2  # a point and a row in two charts
    assert "energy of an answer was not measured" in section
