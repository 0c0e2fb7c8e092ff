"""Records on disk: whole, found again, never those of another run."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtexport.bundle.reader import Bundle, open_bundle
from vtexport.errors import InputError
from vtexport.eval.records import SCHEMA_VERSION, Header, LineCounter, Record, Records, plan_digest, records_path

MODERN, CLASSIC = (
    ["prunesid-16.prune", *(f"{name}.{variant}" for name in ("vision.cls_attention", "decoder_0"))]
    for variant in ("modern", "classic")
)


def header(**changed: Any) -> Header:
    given = {"schema_version": SCHEMA_VERSION, "digest": "a" * 64, "plan": "none", "settings": {}, "machine": {}}
    given["graphs"] = []
    return Header(**{**given, **changed})


def record(sample: str, **changed: Any) -> Record:
    return Record(
        **{
            "sample": sample,
            "number": 1,
            "id": None,
            "task": "t",
            "question": "q",
            "expected": "e",
            "answer": "a",
            "score": 0.5,
            "visual_tokens": 16,
            "tokens_per_layer": 16.0,
            "new_tokens": 2,
            "finish_reason": "eos",
            "plan": "none",
            "timings_ms": {"total": 1.5},
            **changed,
        }
    )


def test_records_are_found_again(tmp_path: Path) -> None:
    with Records(tmp_path / "new" / "folder", header()) as records:
        assert records.known == {}
        records.add(record("x"))
        records.add(record("y", expected=["a", "b"], answered_box=[0.1, 0.2, 0.3, 0.4], warnings=["w"]))
        before = records.known
        assert len(records.path.read_bytes().splitlines()) == 3  # there before anything is closed
    with Records(tmp_path / "new" / "folder", header()) as records:
        assert records.known == before


@given(
    text=st.text(alphabet=st.characters(exclude_categories=["Cs"])),
    box=st.lists(st.floats(-2, 2), max_size=4),
    data=st.data(),
)
def test_any_answer_survives(
    text: str, box: list[float], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("records")
    wanted = [record("x", answer=text, answered_box=box), record("y", question=text)]
    with Records(folder, header()) as records:
        for each in wanted:
            records.add(each)
        path = records.path
    # A run may end anywhere in its last record.
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    path.write_bytes(whole[: data.draw(st.integers(last, len(whole) - 1))])
    with Records(folder, header()) as records:
        assert list(records.known.values()) == wanted[:1]
        records.add(wanted[1])
    assert path.read_bytes() == whole


def test_a_run_that_ended_in_the_header(tmp_path: Path) -> None:
    with Records(tmp_path, header()) as records:
        path = records.path
    whole = path.read_bytes()
    path.write_bytes(whole[:20])
    with Records(tmp_path, header()) as records:
        assert records.known == {}
    assert path.read_bytes() == whole


def test_another_digest_is_another_file(tmp_path: Path) -> None:
    with Records(tmp_path, header()) as first, Records(tmp_path, header(digest="b" * 64)) as second:
        assert first.path != second.path


@pytest.mark.parametrize("plan", ["../up", "a/b", "..", "a\nb"])
def test_no_plans_name_leaves_the_folder(plan: str, tmp_path: Path) -> None:
    with Records(tmp_path / "in", header(plan=plan)) as records:
        assert records.path.parent == tmp_path / "in"


def test_what_is_no_record_is_refused(tmp_path: Path) -> None:
    with Records(tmp_path, header()) as records:
        records.add(record("x"))
        path = records.path
    whole = path.read_bytes()
    for damaged in (b"x\n", whole + b"{}\n", b"[" * 5000 + b"\n", whole.replace(b'"score":0.5', b'"score":"high"')):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"does not hold records .*; delete it or move it away"):
            Records(tmp_path, header())
        assert path.read_bytes() == damaged
    path.write_bytes(whole.replace(b"a" * 64, b"a" * 63 + b"b"))
    with pytest.raises(InputError, match="holds the records of another run"):
        Records(tmp_path, header())


def test_records_of_another_process_are_counted(tmp_path: Path) -> None:
    counter = LineCounter(records_path(tmp_path, "none", "a" * 64))
    assert counter.new() == 0
    with Records(tmp_path, header()) as records:
        assert counter.new() == 0
        records.add(record("x"))
        records.add(record("y"))
        assert (counter.new(), counter.new()) == (2, 0)
        later = LineCounter(records.path)
        records.add(record("z"))
        with records.path.open("ab") as file:
            file.write(b"half a line")
        assert (counter.new(), later.new()) == (1, 1)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with Records(tmp_path, header()), pytest.raises(InputError, match="is being written by another process"):
        Records(tmp_path, header())
    with Records(tmp_path, header()):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(InputError, match="choose another -o/--output"):
        Records(tmp_path, header())


def test_a_file_in_the_folders_place(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        Records(tmp_path / "taken", header())


def changed_bundle(bundle: Bundle, change: Any) -> Bundle:
    manifest = msgspec.json.decode(msgspec.json.encode(bundle.manifest), type=type(bundle.manifest))
    change(manifest)
    return Bundle(bundle.folder, manifest)


def test_the_digest_covers_what_an_answer_follows_from(eval_bundle: Path) -> None:
    bundle = open_bundle(eval_bundle)
    digest = plan_digest(bundle, "prunesid-16", MODERN, {"threads": 2})
    assert digest == plan_digest(open_bundle(eval_bundle), "prunesid-16", MODERN, {"threads": 2})
    assert digest != plan_digest(bundle, "prunesid-8", MODERN, {"threads": 2})
    assert digest != plan_digest(bundle, "prunesid-16", CLASSIC, {"threads": 2})
    assert digest != plan_digest(bundle, "prunesid-16", MODERN, {"threads": 1})
    (weights,) = [name for name in bundle.manifest.files if name.endswith(".safetensors")]
    graph = bundle.manifest.graphs["prunesid-16.prune"].file

    def other(name: str) -> Any:
        return lambda manifest: setattr(manifest.files[name], "sha256", "0" * 64)

    for name in (weights, graph, "tokenizer.json", "chat_template.jinja"):
        assert digest != plan_digest(changed_bundle(bundle, other(name)), "prunesid-16", MODERN, {"threads": 2}), name
    resampled = changed_bundle(bundle, lambda manifest: setattr(manifest.image, "resample", "box"))
    assert digest != plan_digest(resampled, "prunesid-16", MODERN, {"threads": 2})
    penalised = changed_bundle(bundle, lambda manifest: setattr(manifest.generation, "repetition_penalty", 1.2))
    assert digest != plan_digest(penalised, "prunesid-16", MODERN, {"threads": 2})
    ended = changed_bundle(bundle, lambda manifest: setattr(manifest.text, "eos_token_ids", [2, 7]))
    assert digest != plan_digest(ended, "prunesid-16", MODERN, {"threads": 2})


def test_other_plans_of_the_bundle_do_not_matter(eval_bundle: Path) -> None:
    bundle = open_bundle(eval_bundle)
    digest = plan_digest(bundle, "prunesid-16", MODERN, {})

    def change(manifest: Any) -> None:
        manifest.plans = [plan for plan in manifest.plans if plan.name == "prunesid-16"]
        manifest.plans[0].created_at = "another time"
        manifest.command = "another command"

    assert plan_digest(changed_bundle(bundle, change), "prunesid-16", MODERN, {}) == digest


def test_records_can_be_read_by_other_tools(tmp_path: Path) -> None:
    with Records(tmp_path, header()) as records:
        records.add(record("x"))
    first, second = map(json.loads, records.path.read_text().splitlines())
    assert first["plan"] == "none"
    assert {"sample", "number", "task", "question", "expected", "answer", "score", "timings_ms"} <= set(second)
