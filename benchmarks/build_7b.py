"""Cost of building a bundle of LLaVA-1.5-7B's true size: peak memory, time of the copy and time of everything else.

    python benchmarks/build_7b.py --folder /a/disk/with/room

The checkpoint has the model's shapes and seeded random float16 data, so nothing is sparse and no copy is free; it is
written below the folder once (14 GB) and kept for the next run. Measured are builds in float16 and float32, a build
with `--link-weights` into the checkpoint's own folder, and `cp` of the checkpoint beside them, each in a process of its
own under `/usr/bin/time -v`, which gives the peak resident memory. Stages are the times that the build itself prints.
Before each, the checkpoint is dropped from the page cache, so that it is read from the disk. What is built is deleted.
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
from pathlib import Path
from typing import Any

from machine import describe

ROOT = Path(__file__).resolve().parents[1]
STAGE = re.compile(r"^\[ *([0-9.]+) s\] (.*)$")
PEAK = re.compile(r"Maximum resident set size \(kbytes\): (\d+)")
CPU = re.compile(r"(?:User|System) time \(seconds\): ([0-9.]+)")
COPIES = ("copying", "reading 1")  # how the stages that read all the weights begin


def build_bundle(checkpoint: Path, bundle: Path, precision: str, *extra: str) -> dict[str, Any]:
    """One build; seconds by stage and peak memory in bytes."""
    arguments = ["--model", str(checkpoint), "--keep", "64", "--precision", precision, "-o", str(bundle), *extra]
    wall, load, shown = timed([sys.executable, "-m", "vtexport", "build", *arguments])
    stages = [(float(match[1]), match[2]) for line in shown.splitlines() if (match := STAGE.match(line))]
    # Without the folder's name: results are kept, and it is one machine's.
    stages = [(at, text.removesuffix(f" {checkpoint}")) for at, text in stages]
    starts = [(at, text) for at, text in stages if not text.startswith("weights:")]
    seconds = {text: later - at for (at, text), (later, _) in itertools.pairwise(starts)}
    copy = sum(value for text, value in seconds.items() if text.startswith(COPIES))
    match, cpu = PEAK.search(shown), CPU.findall(shown)
    assert match is not None
    return {
        "precision": precision,
        "options": list(extra),
        "load_average_before": load,
        "wall_s": wall,
        "cpu_s": sum(map(float, cpu)),
        "copy_s": copy,
        "everything_else_s": wall - copy,
        "stages_s": seconds,
        "notes": [line for line in shown.splitlines() if line.startswith("note:")],
        "peak_memory_bytes": 1024 * int(match[1]),
        "bundle_bytes": sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file()),
    }


def timed(command: list[str]) -> tuple[float, float, str]:
    """Wall seconds of a process, the load average before it, and its stderr with what `time -v` says of it."""
    load = os.getloadavg()[0]
    before = time.perf_counter()
    process = subprocess.run(
        ["/usr/bin/time", "-v", *command], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    if process.returncode != 0:
        raise SystemExit(process.stderr)
    return time.perf_counter() - before, load, process.stderr


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
    wall, load, _ = timed(["bash", "-c", f"cp {files} {target} && sync {target}/*"])
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
    for name, measure in {
        "cp": lambda: copy_plainly(checkpoint, bundle),
        "fp16": lambda: build_bundle(checkpoint, bundle, "fp16"),
        "fp32": lambda: build_bundle(checkpoint, bundle, "fp32"),
        "fp16 in place": lambda: build_bundle(checkpoint, checkpoint, "fp16", "--link-weights"),
    }.items():
        if arguments.again and name not in arguments.again:
            continue
        shutil.rmtree(bundle, ignore_errors=True)
        forget(checkpoint)
        sample = measure() | {"note": arguments.note, "date": report["machine"]["date"]}
        results.setdefault(name, []).append(sample)
        print(name, json.dumps(sample), flush=True)
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    shutil.rmtree(bundle, ignore_errors=True)
    for path in sorted(set(checkpoint.rglob("*")) - own, reverse=True):  # what the build in place has added
        path.rmdir() if path.is_dir() else path.unlink()
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
