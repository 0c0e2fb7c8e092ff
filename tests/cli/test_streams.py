"""Standard output and error in every state: any encoding, closed, full, without a reader. Never a stack trace."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# What a C locale is without Python's own help against it
BARE = {"LC_ALL": "C", "LANG": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
ENCODINGS: dict[str, dict[str, str]] = {
    **{name: {"PYTHONIOENCODING": name} for name in ("ascii", "latin-1", "cp1252", "utf-8", "utf-8:surrogateescape")},
    "C": BARE,
}
TEXT = "a dash \N{EM DASH}, an umlaut \N{LATIN SMALL LETTER U WITH DIAERESIS}, \N{GRINNING FACE}, a stray byte \udce9"
STRAY = os.fsdecode(b"caf\xe9")


def command(*arguments: object, code: str | None = None, **environment: str) -> dict[str, Any]:
    """For subprocess: the command line with these arguments, or Python code, in that environment."""
    start = ["-m", "vtexport"] if code is None else ["-c", code]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LC_", "LANG"))}
    path = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    return {"args": [sys.executable, *start, *map(str, arguments)], "env": {**kept, **path, **environment}}


def encoding_of(environment: dict[str, str]) -> str:
    return environment.get("PYTHONIOENCODING", "ascii").partition(":")[0]


@pytest.mark.parametrize("environment", ENCODINGS.values(), ids=list(ENCODINGS))
def test_every_text_is_shown(tiny_bundle: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    """Help of every verb, lists, a bundle; and on both streams what only some encodings have."""
    code = f"""
import sys
from vtexport.cli.console import say, tell
from vtexport.cli.main import VERBS, main
for arguments in (*([verb, "--help"] for verb in VERBS), ["--help"], ["--version"]):
    try:
        main(arguments)
    except SystemExit as stop:
        assert stop.code == 0
for arguments in ("list methods", "list models", "list targets", "list methods --json", "inspect|{tiny_bundle}"):
    assert main(arguments.split("|" if "|" in arguments else " ")) == 0, arguments
assert main(["inspect", {str(tmp_path / STRAY)!a}]) == 1
for write in (say, tell):
    write({TEXT!a})
"""
    shown = subprocess.run(**command(code=code, **environment), capture_output=True)
    assert shown.returncode == 0, shown.stderr
    assert b"Traceback" not in shown.stderr
    encoding = encoding_of(environment)
    out, err = shown.stdout.decode(encoding), shown.stderr.decode(encoding)
    escaped = TEXT.encode(encoding, "backslashreplace").decode(encoding)
    assert out.endswith(f"{escaped}\n")
    assert err.endswith(f"{escaped}\n")
    assert "caf\\udce9 is not a folder" in err
    assert "Nüwa" in out if encoding != "ascii" else "N\\xfcwa" in out


@pytest.mark.parametrize("environment", ENCODINGS.values(), ids=list(ENCODINGS))
def test_answers_and_their_json(tiny_bundle: Path, photo: Path, environment: dict[str, str]) -> None:
    """The answer of an untrained model holds what is in no small encoding; as JSON nothing of it is lost."""
    ask = ("run", tiny_bundle, "--plan", "prunesid-16", "--image", photo, "--prompt", "What is this?")
    given = command(*ask, "--max-new-tokens", 8, **environment)
    shown = subprocess.run(**given, capture_output=True)
    given["args"].append("--json")
    structured = subprocess.run(**given, capture_output=True)
    assert (shown.returncode, structured.returncode) == (0, 0), shown.stderr + structured.stderr
    encoding = encoding_of(environment)
    answer = json.loads(structured.stdout.decode(encoding))["text"]
    assert not answer.isascii()
    assert shown.stdout.decode(encoding) == answer.encode(encoding, "backslashreplace").decode(encoding) + "\n"
    if encoding != "utf-8":
        assert structured.stdout.isascii()


def test_a_question_in_utf8_under_another_locale(tiny_bundle: Path, photo: Path) -> None:
    """Python hands on bytes that the locale does not know one by one; together they are what was typed."""
    asked = ("run", tiny_bundle, "--plan", "prunesid-16", "--image", photo, "--max-new-tokens", 2, "--json", "--prompt")
    ids = []
    for environment in (BARE, {"PYTHONUTF8": "1"}):
        call = command(*asked, "Wo ist das Café 数?", **environment)
        call["args"] = [argument.encode() for argument in call["args"]]
        done = subprocess.run(**call, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        ids.append(json.loads(done.stdout)["prompt_tokens"])
    assert ids[0] == ids[1]
    code = "from vtexport.cli.console import typed_text; print(ascii(typed_text('caf\\udce9')))"
    done = subprocess.run(**command(code=code, **BARE), capture_output=True, text=True, check=True)
    assert done.stdout == "'caf\\udce9'\n"


def test_a_handler_that_the_user_chose_stays() -> None:
    code = "from vtexport.cli.main import main; main(['list', 'targets']); print('\\N{EM DASH}')"
    shown = subprocess.run(**command(code=code, PYTHONIOENCODING="ascii:replace"), capture_output=True)
    assert shown.stdout.endswith(b"?\n")


CLOSED = {"stdout": ">&-", "stderr": "2>&-", "both": ">&- 2>&-", "all": "<&- >&- 2>&-"}


@pytest.mark.parametrize("closed", CLOSED.values(), ids=list(CLOSED))
def test_closed_streams(tiny_bundle: Path, photo: Path, tmp_path: Path, closed: str) -> None:
    """The work is done, and nothing that was meant for a stream gets into a file."""
    picture = tmp_path / "kept.png"
    given = command("show", tiny_bundle, "--plan", "prunesid-16", "--image", photo, "-o", picture)
    given["args"] = ["sh", "-c", f'"$@" {closed}', "sh", *given["args"]]
    shown = subprocess.run(**given, capture_output=True)
    assert shown.returncode == 0
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")
    assert b"Traceback" not in shown.stdout + shown.stderr
    given["args"][-1] = str(tmp_path / "no picture.txt")  # an error keeps its code without a place to say it
    shown = subprocess.run(**given, capture_output=True)
    assert shown.returncode == 2
    assert b"Traceback" not in shown.stdout + shown.stderr


@pytest.mark.parametrize(
    "arguments", [("list", "methods"), ("--help",), ("run", "--help"), ("list", "models", "--json")]
)
def test_a_full_disk_behind_stdout(arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        shown = subprocess.run(**command(*arguments), stdout=full, stderr=subprocess.PIPE, text=True)
    sentence = "the results cannot be written to stdout (No space left on device); send them elsewhere"
    assert (shown.returncode, shown.stderr) == (1, f"vtexport: {sentence}\n")


@pytest.mark.parametrize("code", [0, 2])
def test_a_full_disk_behind_stderr(tiny_bundle: Path, code: int) -> None:
    given = command("inspect", tiny_bundle if code == 0 else "--no-such-option")
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        shown = subprocess.run(**given, stdout=subprocess.PIPE, stderr=full)
    assert shown.returncode == code


@pytest.mark.parametrize(
    "arguments", [("list", "methods"), ("--help",), ("inspect", "--help"), ("list", "models", "--json")]
)
def test_nobody_reads_the_results(arguments: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        shown = subprocess.run(**command(*arguments), stdout=writing, stderr=subprocess.PIPE)
    finally:
        os.close(writing)
    assert (shown.returncode, shown.stderr) == (0, b"")


def test_nobody_reads_the_progress(tiny_bundle: Path, photo: Path) -> None:
    """A sentence that cannot be said ends nothing: the answer and the code come all the same."""
    reading, writing = os.pipe()
    os.close(reading)
    ask = ("run", tiny_bundle, "--plan", "prunesid-16", "--image", photo, "--prompt", "What?", "--max-new-tokens", 2)
    try:
        for arguments, code in ((ask, 0), (("inspect", "nothing here"), 1), (("inspect", "--no-such-option"), 2)):
            shown = subprocess.run(**command(*arguments), stdout=subprocess.PIPE, stderr=writing)
            assert (shown.returncode, bool(shown.stdout)) == (code, code == 0)
    finally:
        os.close(writing)


def test_a_pipe_that_takes_no_more() -> None:
    """A program that set the pipe to give up rather than wait gets a sentence, not a trace."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    try:
        shown = subprocess.run(**command("list", "methods"), stdout=writing, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writing)
        os.close(reading)
    assert shown.returncode == 1
    assert shown.stderr.startswith("vtexport: the results cannot be written to stdout (")
    assert "Traceback" not in shown.stderr


def test_streams_that_a_program_put_in_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """`main` may be called from a notebook, whose streams are no files."""
    import io

    from vtexport.cli.main import main

    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["list", "models", "--json"]) == 0
    assert json.loads(stream.getvalue())
