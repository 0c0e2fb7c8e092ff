"""The command line as a user meets it: help, results on stdout, one sentence on stderr, exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vtexport.cli.main import VERBS, explain, main, make_parser
from vtexport.errors import BundleError, InputError, MissingDependencyError, UsageError


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command."""
    code = main([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


@pytest.mark.parametrize("verb", [None, *VERBS])
def test_help(verb: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        make_parser().parse_args([verb, "--help"] if verb else ["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "example" in text or verb is None
    if verb is None:
        assert all(name in text for name in VERBS)
        assert "exit codes" in text


def test_adding_plans_names_the_new_ones(bundle_copy: Path, tiny_checkpoint: Path, capsys: Any) -> None:
    given = ("--method", "svdprune", "--keep", "8,12")
    code, out, err = call(capsys, "build", "--model", tiny_checkpoint, *given, "-o", bundle_copy)
    assert code == 0
    assert f"next: vtexport run {bundle_copy} --plan svdprune-8 " in out
    assert err.count("no code of SVD-Prune's authors is public") == 1  # once, not for each budget


def test_build_inspect_run_show(tiny_checkpoint: Path, photo: Path, tmp_path: Path, capsys: Any) -> None:
    bundle = tmp_path / "b"
    code, out, err = call(capsys, "build", "--model", tiny_checkpoint, "--keep", "16,32", "-o", bundle)
    assert code == 0
    assert "prunesid-16: 64 -> 16 visual tokens" in out
    assert f"next: vtexport run {bundle} --plan prunesid-16" in out
    assert "exporting prunesid-32: 64 -> 32 visual tokens" in err

    code, out, _ = call(capsys, "inspect", bundle, "--verify")
    assert code == 0
    assert "verified: all" in out
    code, out, _ = call(capsys, "inspect", bundle, "--json", "--verify")
    described = json.loads(out)
    assert described["verified"] is True
    # 3 layers, keys and values, 2 heads of 16, float32
    assert described["image_kv_bytes"] == {
        "prunesid-16": 16 * 3 * 2 * 2 * 16 * 4,
        "prunesid-32": 32 * 3 * 2 * 2 * 16 * 4,
    }

    ask = ("run", bundle, "--plan", "prunesid-16", "--image", photo, "--prompt", "What is this?", "--max-new-tokens", 6)
    code, out, _ = call(capsys, *ask, "--json")
    answer = json.loads(out)
    assert code == 0
    assert {"text", "visual_tokens", "prompt_tokens", "timings_ms", "keep_indices"} <= set(answer)
    assert answer["visual_tokens"] == len(answer["keep_indices"]) == 16
    code, out, err = call(capsys, *ask)
    assert out.rstrip("\n") == answer["text"].rstrip("\n")
    assert "16 visual tokens" in err

    picture = tmp_path / "kept.png"
    code, out, _ = call(capsys, "show", bundle, "--plan", "prunesid-16", "--image", photo, "-o", picture)
    assert (code, picture.is_file()) == (0, True)
    assert out == f"{picture}: 15 of 64 patches kept, and CLS (prunesid-16)\n"
    code, out, _ = call(capsys, "show", bundle, "--plan", "prunesid-16", "--image", photo, "-o", picture, "--json")
    assert json.loads(out)["keep_indices"] == answer["keep_indices"]

    code, out, _ = call(capsys, "doctor", bundle)
    assert code == 0
    assert "prunesid-16: 16 visual tokens" in out


def test_build_json_and_quiet(tiny_checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    code, out, err = call(
        capsys, "export", "--model", tiny_checkpoint, "--method", "none", "-o", tmp_path / "b", "--json", "--quiet"
    )
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["plans"] == [{"name": "none", "visual_tokens": 64}]
    assert (
        report["bytes"]
        == sum(p.stat().st_size for p in (tmp_path / "b").rglob("*") if p.is_file())
        - (tmp_path / "b" / "manifest.json").stat().st_size
    )


def test_default_output_is_the_models_name(
    mini_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """And the bundle that stands there afterwards does not hide the alias of the same name."""
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        code, _, err = call(capsys, "build", "--model", "mini", "--keep", 64, "--cache-dir", mini_cache)
        assert code == 0, err
    assert [path.name for path in tmp_path.iterdir()] == ["mini"]
    assert "random" not in err


def test_run_follows_the_checkpoint_as_far_as_it_is_asked(bundle_copy: Path, photo: Path, capsys: Any) -> None:
    def answer(*arguments: object) -> dict[str, Any]:
        ask = ("run", bundle_copy, "--plan", "prunesid-16", "--image", photo, "--prompt", "What is this?", "--json")
        code, out, err = call(capsys, *ask, *arguments)
        assert code == 0, err
        return json.loads(out)

    plain = answer("--max-new-tokens", 6)["token_ids"]
    path = bundle_copy / "manifest.json"
    settings = {"suppress_tokens": plain[:1], "do_sample": True, "temperature": 2.0, "max_new_tokens": 4}
    path.write_text(json.dumps({**json.loads(path.read_text()), "generation": settings}))
    assert answer("--max-new-tokens", 6, "--no-logits-processors")["token_ids"] == plain
    processed = answer("--max-new-tokens", 6)["token_ids"]
    assert len(processed) == 6
    assert plain[0] not in processed
    sampled = [answer("--sampling", "checkpoint", "--seed", seed) for seed in range(3)]
    assert {len(each["token_ids"]) for each in sampled} == {4}
    assert len({tuple(each["token_ids"]) for each in sampled}) > 1
    assert not any(plain[0] in each["token_ids"] for each in sampled)
    greedy = answer("--sampling", "checkpoint", "--temperature", 0)
    assert (greedy["token_ids"], greedy["finish_reason"]) == (processed[:4], "length")
    _, out, _ = call(capsys, "inspect", bundle_copy)
    assert f"  answers  suppress_tokens={plain[:1]}\n" in out
    assert "           with --sampling checkpoint: do_sample=True, temperature=2.0, max_new_tokens=4\n" in out


@pytest.mark.parametrize("what", ["models", "methods", "targets"])
def test_list(what: str, capsys: Any) -> None:
    code, text, _ = call(capsys, "list", what)
    assert code == 0
    expected = {"models": "llava-hf/llava-1.5-7b-hf", "methods": "arXiv 2603.09480", "targets": "orin-jetpack-7.2"}[
        what
    ]
    assert expected in text
    code, out, _ = call(capsys, "list", what, "--json")
    assert expected in json.dumps(json.loads(out))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["build", "--model", "{tiny}"], 2, "needs a budget; give --keep N"),
        (["build", "--model", "{tiny}", "--keep", "700"], 2, "keep=700 is not allowed"),
        (["build", "--model", "{tiny}", "--keep", "16", "--method", "prunsid"], 2, "did you mean 'prunesid'"),
        (
            ["build", "--model", "{tiny}", "--keep", "16", "--precision", "int3"],
            2,
            "target cpu takes fp32, fp16, not int3; leave --precision out",
        ),
        (["build", "--model", "{tiny}", "--keep", "16", "--target", "toaster"], 2, "target 'toaster' is not known"),
        (["build", "--model", "{tiny}", "--keep", "16", "--target", "orin-jetpack-6.2"], 2, "cannot be built yet"),
        (["build", "--model", "{tiny}", "--keep", "16", "-o", "{photo}"], 2, "exists and is not a folder"),
        (["build", "--model", "{tiny}", "--keep", "16", "-o", "{photos}"], 2, "holds something that is not a bundle"),
        (["build", "--model", "lava", "--keep", "16"], 2, "did you mean 'llava'"),
        (["build", "--model", "./nowhere", "--keep", "16"], 2, "there is no folder ./nowhere"),
        (["run", "{bundle}", "--image", "{photo}", "--prompt", "x"], 2, "several plans; name one of them"),
        (["run", "{bundle}", "--plan", "x", "--image", "{photo}", "--prompt", "x"], 2, "has no plan 'x'"),
        (
            ["run", "{bundle}", "--plan", "prunesid-16", "--image", "no.jpg", "--prompt", "x"],
            1,
            "no.jpg does not exist",
        ),
        (["run", "{bundle}", "--plan", "prunesid-16", "--image", "{photo}", "--prompt", " "], 2, "the prompt is empty"),
        (
            ["run", "{bundle}", "--plan", "prunesid-16", "--image", "{photo}", "--prompt", "x", "--sampling", "beam"],
            2,
            "sampling is 'beam'; give greedy or checkpoint",
        ),
        (["run", "{photos}", "--image", "{photo}", "--prompt", "x"], 4, "it is not a bundle; make one with"),
        (["run", "nowhere", "--image", "{photo}", "--prompt", "x"], 1, "nowhere is not a folder"),
        (["inspect", "{photos}"], 4, "it is not a bundle"),
    ],
)
def test_errors_are_one_sentence_with_the_right_code(
    arguments: list[str], code: int, message: str, tiny_checkpoint: Path, tiny_bundle: Path, photo: Path, capsys: Any
) -> None:
    places = {"tiny": tiny_checkpoint, "bundle": tiny_bundle, "photo": photo, "photos": photo.parent}
    got, out, err = call(capsys, *(argument.format(**places) for argument in arguments))
    assert (got, out) == (code, "")
    assert message in last_line(err)
    assert last_line(err).startswith("vtexport: ")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "--model", "x", "--keep", "many"], "'many' is not a number or a list of numbers"),
        (["build", "--model", "x", "--set", "groups"], "'groups' is not of the form NAME=VALUE"),
        (["build"], "-m/--model"),
        (["fly"], "invalid choice"),
        ([], "VERB"),
    ],
)
def test_argument_errors(arguments: list[str], message: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_damage_ends_with_4(bundle_copy: Path, capsys: Any) -> None:
    weights = bundle_copy / "onnx" / "weights" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    code, _, err = call(capsys, "inspect", bundle_copy, "--verify")
    assert code == 4
    assert "does not have the SHA-256 that the manifest states; build or copy the bundle again" in err


def test_debug_shows_the_stack(capsys: Any) -> None:
    code, _, err = call(capsys, "inspect", "nowhere", "--debug")
    assert code == 1
    assert "Traceback" in err
    assert last_line(err).startswith("vtexport: nowhere")


def test_doctor_without_onnxruntime(blocked_import: Any, capsys: Any) -> None:
    blocked_import("onnxruntime")
    code, out, err = call(capsys, "doctor")
    assert code == 3
    assert "pip install 'vtexport[cpu]'" in out
    assert "bundles cannot be run here" in err


def test_build_without_the_exporters_packages(
    blocked_import: Any, tiny_checkpoint: Path, capsys: Any, tmp_path: Path
) -> None:
    blocked_import("torch")
    code, _, err = call(capsys, "build", "--model", tiny_checkpoint, "--keep", 16, "-o", tmp_path / "b")
    assert code == 3
    assert "pip install 'vtexport[export]'" in last_line(err)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (InputError("a"), 1, "a"),
        (UsageError("a"), 2, "a"),
        (MissingDependencyError("a"), 3, "a"),
        (BundleError("a"), 4, "a"),
        (OSError(28, "No space left on device", "/x"), 1, "the disk is full (/x)"),
        (PermissionError(13, "Permission denied", "/x"), 1, "no permission for /x"),
        (ModuleNotFoundError("no", name="torch"), 3, "the Python package torch is not installed"),
        (ValueError("odd"), 1, "unexpected ValueError: odd; run again with --debug"),
    ],
)
def test_every_error_has_its_code(error: Exception, code: int, text: str) -> None:
    message, got = explain(error)
    assert got == code
    assert message.startswith(text)


def test_a_program_that_calls_main_keeps_its_process(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Its handlers of signals, and what it does when it ends."""
    code = """
import atexit, gc, signal, sys
from vtexport.cli.main import main

def handler(number, frame): ...

atexit.register(lambda: print("frozen", gc.get_freeze_count()))  # last, after all that the call may have registered
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, handler)
frozen = gc.get_freeze_count()
assert main(sys.argv[1:]) == 0
assert "torch" in sys.modules
assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == [handler, handler]
print("frozen", frozen)
"""
    build = ["build", "--model", str(tiny_checkpoint), "--method", "none", "-o", str(tmp_path / "b"), "--quiet"]
    done = subprocess.run([sys.executable, "-c", code, *build], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after = done.stdout.splitlines()[-2:]
    assert before == after


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("wait", [0.0, 0.1])
def test_interrupted_builds_leave_nothing(
    tiny_checkpoint: Path, tmp_path: Path, sent: signal.Signals, wait: float
) -> None:
    command = [sys.executable, "-m", "vtexport", "build", "--model", str(tiny_checkpoint), "--keep", "16"]
    process = subprocess.Popen([*command, "-o", str(tmp_path / "b")], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not any(tmp_path.iterdir()) and time.monotonic() < deadline:  # until the hidden folder is there
        time.sleep(0.02)
    time.sleep(wait)  # it is among the graphs by then; the whole takes a third of a second
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert last_line(err) == "vtexport: interrupted; what was half-written is removed"
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_leaves_is_no_error(tiny_bundle: Path) -> None:
    command = [sys.executable, "-m", "vtexport", "inspect", str(tiny_bundle), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(60) == 0


def test_version(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.startswith("vtexport 0.")
