"""Every check of a checkpoint with its own weights, in one command that goes on where it was interrupted.

    make real-check MODEL=llava
    python tools/real_check.py --model ./my-llava --method vitcop --keep 128 --output build/real-check/mine

Steps are command lines (`steps`), run one after another. Each has its output, its stderr and, once it ended with exit
code 0, a done-marker in the folder `steps/`. The marker holds a SHA-256 of the command, of the bundle's manifest and of
the markers before it: a step whose inputs are as they were is not run again, any other is. A step that fails does not
stop those that do not need it; all that failed is run again by the next call. A verb that this version of vtexport does
not have fails as any wrong command does. `summary.json` is written after every step.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

QUESTIONS = 200  # of an evaluation, on each plan
NOT_RUN = "not run: the step {} failed"


@dataclass(frozen=True)
class Step:
    """A command line, the steps without which it makes no sense, and those whose results it reads, failed or not."""

    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    builds: bool = False  # the bundle, which all others read


def steps(model: str, method: str, keep: str, precision: str, bundle: Path, questions: int = QUESTIONS) -> list[Step]:
    """The steps for one checkpoint; `bundle` is the folder in which the bundle is built, `eval` stands beside it."""
    verb = (sys.executable, "-m", "vtexport")
    what = ("--model", model, "--precision", precision, "--output", str(bundle), "--quiet")
    place, built, answers = str(bundle), ("build",), bundle.with_name("eval")
    return [
        Step("build-unpruned", (*verb, "build", *what, "--method", "none"), builds=True),
        Step(
            "build",
            (*verb, "build", *what, "--method", method, "--keep", keep),
            needs=("build-unpruned",),
            builds=True,
        ),
        Step("verify", (*verb, "inspect", place, "--verify"), built),
        Step("prove", (*verb, "prove", place, "--checkpoint", model), built),
        Step("validate", (*verb, "validate", place), built),
        Step("bench", (*verb, "bench", place), built),
        Step("eval", (*verb, "eval", place, "--limit", str(questions), "--output", str(answers), "--json"), built),
        Step(
            "report",
            (*verb, "report", place, "--eval", str(answers / "eval.json")),
            needs=("build", "eval"),
            reads=("validate", "bench"),
        ),
    ]


def run_steps(wanted: Sequence[Step], folder: Path, manifest: Path) -> dict[str, Any]:
    """Runs what is not done yet and returns the summary, which `folder/summary.json` holds, too.

    Args:
        wanted: in order; a step needs earlier ones only.
        folder: of outputs and markers; made where it is missing.
        manifest: the bundle's: part of the inputs of steps that read it; without it, steps that build it run again.
    """
    places = folder / "steps"
    places.mkdir(parents=True, exist_ok=True)
    summary: dict[str, Any] = {"ok": False, "complete": False, "steps": {}}
    hashes: dict[str, str] = {}
    for step in wanted:
        failed = next((name for name in step.needs if summary["steps"][name]["exit_code"] != 0), None)
        read = [(name, *(summary["steps"][name][key] for key in ("exit_code", "seconds"))) for name in step.reads]
        inputs = _hash_inputs(step, manifest, hashes, read)
        hashes[step.name] = inputs
        marker = places / f"{step.name}.done.json"
        if failed is not None:
            marker.unlink(missing_ok=True)
            record: dict[str, Any] = {"exit_code": None, "seconds": 0.0, "stderr": NOT_RUN.format(failed)}
        elif (done := _done(marker, inputs)) is not None and (manifest.exists() or not step.builds):
            record = done | {"resumed": True}
        else:
            marker.unlink(missing_ok=True)
            record = _run(step, places) | {"inputs": inputs}
            if record["exit_code"] == 0:
                _write(marker, record)
        summary["steps"][step.name] = {"command": list(step.command)} | record
        _write(folder / "summary.json", summary)
    summary["complete"] = True
    summary["ok"] = all(record["exit_code"] == 0 for record in summary["steps"].values())
    _write(folder / "summary.json", summary)
    return summary


def _hash_inputs(step: Step, manifest: Path, hashes: dict[str, str], read: list[Any]) -> str:
    content = manifest.read_bytes().hex() if manifest.exists() and not step.builds else ""
    before = [hashes[name] for name in step.needs]
    return hashlib.sha256(json.dumps([step.command, before, content, read]).encode()).hexdigest()


def _done(marker: Path, inputs: str) -> dict[str, Any] | None:
    try:
        record = json.loads(marker.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return record if record.get("inputs") == inputs else None


def _run(step: Step, places: Path) -> dict[str, Any]:
    print(f"{step.name}: {' '.join(step.command)}", file=sys.stderr, flush=True)
    out, err = places / f"{step.name}.out", places / f"{step.name}.err"
    began = time.monotonic()
    with out.open("wb") as stdout, err.open("wb") as stderr:
        code = subprocess.run(step.command, stdout=stdout, stderr=stderr).returncode
    said = err.read_text(encoding="utf-8", errors="backslashreplace").strip().splitlines()
    record = {"exit_code": code, "seconds": round(time.monotonic() - began, 3), "stderr": said[-1] if said else ""}
    print(f"  exit code {code}, {record['seconds']} s", file=sys.stderr, flush=True)
    return record | {"output": out.name}


def _write(path: Path, content: dict[str, Any]) -> None:
    """Writes whole or not at all, so that an interruption leaves no half marker."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the summary as JSON; the exit code is 1 where a step failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="alias, hub id or folder of the checkpoint")
    parser.add_argument("--method", default="prunesid")
    parser.add_argument("--keep", default="64")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--questions", type=int, default=QUESTIONS, help="of the evaluation; default: %(default)s")
    parser.add_argument("--output", type=Path, help="default: build/real-check/MODEL")
    args = parser.parse_args(arguments)
    folder = args.output or Path("build/real-check") / Path(args.model).name
    bundle = folder / "bundle"
    wanted = steps(args.model, args.method, args.keep, args.precision, bundle, args.questions)
    summary = run_steps(wanted, folder, bundle / "manifest.json")
    print(json.dumps(summary, indent=1))
    return 0 if summary["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
