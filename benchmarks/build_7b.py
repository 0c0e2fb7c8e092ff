"""Cost of building a bundle of LLaVA-1.5-7B's true size: peak memory, time of the copy and time of everything else.

    python benchmarks/build_7b.py --folder /a/disk/with/room

The checkpoint has the model's shapes and seeded random float16 data, so nothing is sparse and no copy is free; it is
written below the folder once (14 GB) and kept for the next run. Measured are builds in float16 and float32, a build
with `--link-weights` into the checkpoint's own folder, and `cp` of the checkpoint beside them, each in a process of its
own under `/usr/bin/time -v`, which gives the peak resident memory. Stages are the times that the build itself prints;
what comes before the first is Python's start and imports. Before each, the checkpoint is dropped from the page cache,
to be read from the disk. What is built is deleted. With `--beside` another checkout builds the same, by turns.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from machine import describe

ROOT = Path(__file__).resolve().parents[1]
STAGE = re.compile(r"^\[ *([0-9.]+) s\] (.*)$")
PEAK = re.compile(r"Maximum resident set size \(kbytes\): (\d+)")
CPU = re.compile(r"(?:User|System) time \(seconds\): ([0-9.]+)")
COPIES = ("copying", "reading 1")  # how the stages that read all the weights begin
WAYS = (
    ("fp16", "fp16"),
    ("fp16 without the comparison", "fp16", "--no-check"),
    ("fp32", "fp32"),
    ("fp16 in place", "fp16", "--link-weights"),
)
NEW = ("--no-check",)  # options that another checkout may not have
CHECKS = ("comparing ",)  # and those that ask transformers and PyTorch


def build_bundle(root: Path, checkpoint: Path, bundle: Path, precision: str, *extra: str) -> dict[str, Any]:
    """One build by the checkout in `root`; seconds by stage and peak memory in bytes."""
    arguments = ["--model", str(checkpoint), "--keep", "64", "--precision", precision, "-o", str(bundle), *extra]
    wall, load, shown, start = timed([sys.executable, "-m", "vtexport", "build", *arguments], root)
    stages = [(float(match[1]), match[2]) for line in shown.splitlines() if (match := STAGE.match(line))]
    # Without the folder's name: results are kept, and it is one machine's.
    stages = [(at, text.removesuffix(f" {checkpoint}")) for at, text in stages]
    starts = [(at, text) for at, text in stages if not text.startswith("weights:")]
    seconds = {text: later - at for (at, text), (later, _) in itertools.pairwise(starts)}
    copy = sum(value for text, value in seconds.items() if text.startswith(COPIES))
    checks = sum(value for text, value in seconds.items() if text.startswith(CHECKS))
    match, cpu = PEAK.search(shown), CPU.findall(shown)
    assert match is not None
    return {
        "precision": precision,
        "options": list(extra),
        "load_average_before": load,
        "wall_s": wall,
        "cpu_s": sum(map(float, cpu)),
        "copy_s": copy,
        "library_checks_s": checks,
        "start_s": start,
        "everything_else_s": wall - start - copy - checks,
        "stages_s": seconds,
        "notes": [line for line in shown.splitlines() if line.startswith("note:")],
        "peak_memory_bytes": 1024 * int(match[1]),
        "bundle_bytes": sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file()),
    }


def timed(command: list[str], root: Path = ROOT) -> tuple[float, float, str, float]:
    """Wall seconds of a process, the load before it, its stderr with what `time -v` says, seconds to its first line."""
    load = os.getloadavg()[0]
    before = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(root), "VTEXPORT_PROOF": "0"}
    command = ["/usr/bin/time", "-v", *command]
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, stderr=pipe, stdout=null, text=True, env=environment, cwd=root) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        start = time.perf_counter() - before
        said = first + process.stderr.read()
    if process.returncode != 0:
        raise SystemExit(said)
    return time.perf_counter() - before, load, said, start


def revision(root: Path) -> str:
    """The commit of a checkout, abbreviated."""
    command = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def forget(checkpoint: Path) -> None:
    """Drops the checkpoint from the page cache."""
    for path in checkpoint.glob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def copy_plainly(checkpoint: Path, target: Path) -> dict[str, Any]:
    """`cp` of the weights and `sync` of the copy: a bundle is on the disk too when a build ends."""
    target.mkdir()
    files = " ".join(str(path) for path in sorted(checkpoint.glob("*.safetensors")))
    wall, load, *_ = timed(["bash", "-c", f"cp {files} {target} && sync {target}/*"])
    size = sum(path.stat().st_size for path in target.iterdir())
    shutil.rmtree(target)
    return {"wall_s": wall, "bytes": size, "load_average_before": load}


def make_checkpoint(folder: Path) -> Path:
    """Writes the checkpoint where it is not there yet."""
    sys.path.insert(0, str(ROOT))
    from vtexport.checkpoint.resolve import open_checkpoint

    return open_checkpoint("llava", weights="random", cache_dir=folder / "cache").folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where 14 GB of checkpoint and 28 GB more have room")
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="another one, which builds by turns with this")
    parser.add_argument("--rounds", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--again", nargs="+", default=[], help="measure these once more and keep what is there")
    parser.add_argument("--note", help="recorded with the results, for example what else ran on the machine")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "build_7b.json")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    checkpoint, bundle = make_checkpoint(arguments.folder), arguments.folder / "bundle-7b"
    packages = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")
    report: dict[str, Any] = {"benchmark": "build_7b", "machine": describe(None, packages)}
    report["disk"] = dict(zip(("total", "used", "free"), shutil.disk_usage(arguments.folder), strict=True))
    results = json.loads(arguments.output.read_text())["results"] if arguments.again else {}
    report["results"] = results
    own = set(checkpoint.rglob("*"))
    measures: dict[str, Callable[[], dict[str, Any]]] = {"cp": lambda: copy_plainly(checkpoint, bundle)}
    for name, precision, *extra in WAYS:
        for root in filter(None, (ROOT, arguments.beside)):
            if root != ROOT and set(extra) & set(NEW):
                continue
            of = "" if root == ROOT else f" of {revision(root)}"
            measures[name + of] = partial(
                build_bundle, root, checkpoint, checkpoint if "--link-weights" in extra else bundle, precision, *extra
            )
    for name, measure in list(measures.items()) * arguments.rounds:
        if arguments.again and name not in arguments.again:
            continue
        shutil.rmtree(bundle, ignore_errors=True)
        forget(checkpoint)
        sample = measure() | {"note": arguments.note, "date": report["machine"]["date"]}
        results.setdefault(name, []).append(sample)
        print(name, json.dumps(sample), flush=True)
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")
        for path in sorted(set(checkpoint.rglob("*")) - own, reverse=True):  # what a build in place has added
            path.rmdir() if path.is_dir() else path.unlink()
    shutil.rmtree(bundle, ignore_errors=True)
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
