"""Commands of vtexport that start within milliseconds, so that tests can end many of them at many moments.

Run as a script it is a process that has imported everything a build needs. For each request it forks a child of its own
process group that runs one command through `vtexport.cli.main.run_command`. What is left of a build is what touches the
disk, so moments that are spread evenly over it fall where it matters.

It lives in a mount namespace of its own where the system allows that, so that it can have small and read-only disks
that vanish with it.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMESPACE = ("unshare", "--map-root-user", "--mount", "--")


@dataclass(frozen=True)
class Ended:
    """End of a command; `code` is negative for a signal, as in subprocess."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The last line on stderr."""
        return (self.err.strip().splitlines() or [""])[-1]


class WarmBuilds:
    """The client's side. One command at a time."""

    def __init__(self, checkpoint: Path, folder: Path):
        """Starts the process; it is ready with the first answer. `folder` takes the commands' output."""
        self._folder = folder
        probe = subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, text=True)
        self.why_no_mounts = None if probe.returncode == 0 else f"no mount namespace here: {probe.stderr.strip()}"
        command = [sys.executable, __file__, str(checkpoint)]
        self._process = subprocess.Popen(
            [*(NAMESPACE if probe.returncode == 0 else ()), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == "ready"

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def start(self, *arguments: object, fill: str | None = None, disk: Path | None = None) -> int:
        """Starts a command; its process id, which is its process group too.

        `fill` names a stage ("exporting") at whose line `disk` is filled to the last byte.
        """
        given = [str(argument) for argument in arguments]
        out, err = str(self._folder / "out"), str(self._folder / "err")
        self._ask({"arguments": given, "out": out, "err": err, "fill": fill, "disk": str(disk)})
        return int(self._answer())

    def wait(self) -> Ended:
        """The end of the command started last; until then its process id is not given to another."""
        self._ask({"wait": True})
        code = int(self._answer())
        return Ended(code, *((self._folder / name).read_text(errors="replace") for name in ("out", "err")))

    def run(self, *arguments: object, fill: str | None = None, disk: Path | None = None) -> Ended:
        self.start(*arguments, fill=fill, disk=disk)
        return self.wait()

    def mount(self, folder: Path, options: str) -> None:
        """A disk in memory at `folder`, or with "remount,..." a change to it; only the warm process sees it."""
        self._ask({"mount": str(folder), "options": options})
        assert self._answer() == "0"

    def seen(self, folder: Path) -> Path:
        """The folder as the process sees it, for looking at what its disks hold."""
        return Path(f"/proc/{self._process.pid}/root{folder}")

    def _ask(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline().strip()
        assert answer, "the warm process has ended"
        return answer


def _warm_up(checkpoint: str) -> None:
    """Imports what a build of this checkpoint needs, and reads its configuration, which imports more."""
    import onnxruntime  # noqa: F401
    import torch
    from transformers import AutoTokenizer

    import vtexport.build
    import vtexport.cli.main
    import vtexport.export.graphs
    import vtexport.pruning.methods  # noqa: F401
    from vtexport.checkpoint.resolve import open_checkpoint

    opened = open_checkpoint(checkpoint)
    opened.family.model_spec(opened.config, opened.folder)
    AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    torch.set_num_threads(1)  # threads do not come along into a fork


def _fill_at(stage: str, folder: Path) -> None:
    """Makes the disk of `folder` full when the command says that it begins `stage`."""
    from vtexport.cli.console import Progress

    said = Progress.stage

    def stage_said(self: Progress, text: str) -> None:
        said(self, text)
        if text.startswith(stage):
            fill(folder / "other data")

    Progress.stage = stage_said  # type: ignore[method-assign]


def fill(file: Path) -> None:
    """Writes `file` until not one byte more fits on its disk."""
    with file.open("wb", buffering=0) as stream:
        try:
            while stream.write(bytes(65536)):
                pass
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def _child(request: dict[str, Any]) -> int:
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    from vtexport.cli.main import run_command

    if request["fill"]:
        _fill_at(request["fill"], Path(request["disk"]))
    return run_command(request["arguments"])


def _serve(checkpoint: str) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    _warm_up(checkpoint)
    print("ready", file=answers)
    child = 0
    for line in sys.stdin:
        request = json.loads(line)
        if "mount" in request:
            command = ["mount", "-t", "tmpfs", "-o", request["options"], "tmpfs", request["mount"]]
            print(subprocess.run(command).returncode, file=answers)
            continue
        if "wait" in request:
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers)
            continue
        child = os.fork()
        if child == 0:
            try:
                os._exit(_child(request))
            finally:
                traceback.print_exc()  # `main` lets nothing out
                os._exit(70)
        os.setpgid(child, child)
        print(child, file=answers)


if __name__ == "__main__":
    _serve(sys.argv[1])
