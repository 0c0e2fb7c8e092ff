"""What building a bundle of LLaVA-1.5-7B's true size takes: peak memory, time of the copy and time of everything else.

    python benchmarks/build_7b.py --folder /a/disk/with/room

The checkpoint has the model's shapes and seeded random data, so nothing is sparse and no copy is free; it is written
below the folder once (14 GB in float16) and kept for the next run. The bundle is deleted afterwards. The build runs in
a process of its own, whose peak resident memory the system reports; stages are the times that the build itself prints.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from machine import describe

ROOT = Path(__file__).resolve().parents[1]
STAGE = re.compile(r"^\[ *([0-9.]+) s\] (.*)$")


def build(folder: Path, precision: str) -> dict[str, Any]:
    """One build; seconds by stage and peak memory in bytes."""
    bundle, cache = folder / "bundle-7b", folder / "cache"
    shutil.rmtree(bundle, ignore_errors=True)
    arguments = ["--model", "llava", "--weights", "random", "--keep", "64", "--precision", precision]
    command = [sys.executable, "-m", "vtexport", "build", *arguments, "--cache-dir", str(cache), "-o", str(bundle)]
    before = time.perf_counter()
    process = subprocess.run(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, check=True)
    wall = time.perf_counter() - before
    stages = [(float(match[1]), match[2]) for line in process.stderr.splitlines() if (match := STAGE.match(line))]
    starts = [(at, text) for at, text in stages if not text.startswith("weights:")]
    seconds = {text: later - at for (at, text), (later, _) in itertools.pairwise(starts)}
    copy = sum(value for text, value in seconds.items() if text.startswith("copying"))
    found = {
        "precision": precision,
        "wall_s": wall,
        "copy_s": copy,
        "everything_else_s": wall - copy,
        "stages_s": seconds,
        "notes": [line for line in process.stderr.splitlines() if line.startswith("note:")],
        "peak_memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,
        "bundle_bytes": sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file()),
    }
    shutil.rmtree(bundle)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where 14 GB of checkpoint and the bundle have room")
    parser.add_argument("--precision", default="fp32", help="of the bundle; fp32 takes 28 GB (default: fp32)")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "build_7b.json")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    packages = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")
    report: dict[str, Any] = {"benchmark": "build_7b", "machine": describe(None, packages)}
    report["disk"] = dict(zip(("total", "used", "free"), shutil.disk_usage(arguments.folder), strict=True))
    # A first build writes the checkpoint; what is measured reads it, from the page cache as far as that holds it.
    cached = arguments.folder / "cache" / "random-weights"
    if not cached.is_dir() or not any(cached.iterdir()):
        build(arguments.folder, arguments.precision)
    report["result"] = build(arguments.folder, arguments.precision)
    result = report["result"]
    print(
        f"LLaVA-1.5-7B, {arguments.precision}: peak {result['peak_memory_bytes'] / 1e9:.2f} GB, "
        f"copy {result['copy_s']:.1f} s, everything else {result['everything_else_s']:.1f} s, "
        f"bundle {result['bundle_bytes'] / 1e9:.1f} GB"
    )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
