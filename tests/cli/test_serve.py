"""`vtexport serve` as a process: what it prints, its end, and what it refuses."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from vtexport.cli.main import main


def test_serves_until_it_is_asked_to_stop(tiny_bundle: Path) -> None:
    command = [sys.executable, "-m", "vtexport", "serve", str(tiny_bundle), "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        told = []
        for line in process.stderr:
            told.append(line)
            if found := re.search(r"listening on (http://127\.0\.0\.1:\d+); Ctrl-C ends it", line):
                break
        assert told[:-1] == ["model tiny:prunesid-16\n", "model tiny:prunesid-32\n"]
        assert found is not None
        with urllib.request.urlopen(f"{found[1]}/health") as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    assert err == "stopping: running answers end; Ctrl-C again ends them\nstopped\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--port", "70000"], 2, "--port is 70000; give a number from 0 to 65535"),
        (["--queue", "-1"], 2, "--queue is -1; give a whole number from 0"),
        (["--grace-seconds", "0"], 2, "--grace-seconds is 0.0; give seconds above 0"),
        (["--plan", "none"], 2, "none"),
        (["--served-name", "a:b"], 2, "--served-name is 'a:b'; give letters"),
        (["--allow-files", "/no/such"], 1, "/no/such (--allow-files) is no folder"),
        (["--allow-hosts", "http://a"], 2, "--allow-hosts has 'http://a'; give host names"),
        (["--api-key-file", "/no/such"], 1, "/no/such (--api-key-file) cannot be read"),
        (["--host", "203.0.113.7"], 2, "cannot listen on 203.0.113.7 port 8000"),
        (["--device", "tpu"], 2, "device 'tpu' is not known"),
    ],
)
def test_refuses(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert main(["serve", str(tiny_bundle), *arguments]) == code
    said = capsys.readouterr().err
    assert message in said
    assert len(said) <= 320


def test_a_port_that_is_taken(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(tiny_bundle), "--port", str(port)]) == 2
    assert f"cannot listen on 127.0.0.1 port {port} (Address already in use)" in capsys.readouterr().err


def test_an_empty_key(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "key").write_text("\n")
    assert main(["serve", str(tiny_bundle), "--api-key-file", str(tmp_path / "key")]) == 2
    assert "is empty; write the key into it" in capsys.readouterr().err


def test_without_its_packages(
    tiny_bundle: Path, blocked_import: Callable[[str], None], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name in [each for each in sys.modules if each.startswith("vtexport.serve")]:
        monkeypatch.delitem(sys.modules, name)
    blocked_import("uvicorn")
    assert main(["serve", str(tiny_bundle)]) == 3
    assert "uvicorn is not installed; run pip install 'vtexport[serve]'" in capsys.readouterr().err


def test_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", os.fspath(tmp_path / "nothing")]) == 1
    assert "nothing" in capsys.readouterr().err
