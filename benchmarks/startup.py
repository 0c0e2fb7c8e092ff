"""A user's waits: importing what running a bundle needs, building `mini`, opening it, the stages of an answer.

    python benchmarks/startup.py --threads 2

Imports and builds run in fresh processes, with the files in the page cache. Stages are medians of warm runs on the
photograph, of the plan with 64 visual tokens next to the one with all 576, by turns in one process. Results go to
benchmarks/results/ with all samples.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import describe

ROOT = Path(__file__).resolve().parents[1]
PHOTO = ROOT / "docs" / "images" / "coffee.jpg"
PROMPT = "What is on the table?"
IMPORTS = {
    "vtexport.runtime.pipeline": "import vtexport.runtime.pipeline",
    "vtexport.runtime.pipeline and onnxruntime": "import vtexport.runtime.pipeline, onnxruntime",
}
STAGES = ("preprocess", "vision", "prune", "prefill", "decode")
NEW_TOKENS = 16


def import_seconds(statement: str, runs: int) -> list[float]:
    """Seconds that an import takes inside a fresh interpreter, its own start not counted; the first run is dropped."""
    code = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    command = [sys.executable, "-c", code]
    return [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(runs + 1)][
        1:
    ]


def command_seconds(arguments: list[str]) -> float:
    """Seconds of one command, from start to end of its process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "vtexport", *arguments], capture_output=True, check=True)
    return time.perf_counter() - start


def stage_samples(bundles: dict[str, Path], threads: int, runs: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of every stage by plan; the plans take turns, so that a slow moment hits both."""
    from vtexport import Pipeline

    pipelines = {name: Pipeline.open(path, threads=threads) for name, path in bundles.items()}
    samples: dict[str, dict[str, list[float]]] = {name: {stage: [] for stage in STAGES} for name in bundles}
    for number in range(runs + 3):
        for name, pipeline in pipelines.items():
            times = pipeline.generate(PHOTO, PROMPT, max_new_tokens=NEW_TOKENS).timings_ms
            if number >= 3:
                for stage in STAGES:
                    samples[name][stage].append(times[stage])
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="threads of ONNX Runtime (default: 2)")
    parser.add_argument("--runs", type=int, default=30, help="timed answers; imports get a third (default: 30)")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "startup.json")
    arguments = parser.parse_args()

    packages = ("numpy", "onnxruntime", "torch", "transformers", "onnx", "onnx-ir", "onnxscript")
    report: dict[str, Any] = {"benchmark": "startup", "machine": describe(arguments.threads, packages)}
    report["import_s"] = {name: import_seconds(text, max(3, arguments.runs // 3)) for name, text in IMPORTS.items()}
    for name, samples in report["import_s"].items():
        print(f"import {name}: {statistics.median(samples):.3f} s")

    with tempfile.TemporaryDirectory() as folder:
        bundles = {"prunesid-64": Path(folder, "pruned"), "none": Path(folder, "whole")}
        cache = ["--cache-dir", str(Path(folder, "cache"))]
        build = ["build", "--model", "mini", *cache, "--keep", "64", "-o", str(bundles["prunesid-64"])]
        report["build_mini_s"] = {
            "weights generated": command_seconds(build),
            "weights in the cache": command_seconds(build),
        }
        command_seconds(["build", "--model", "mini", *cache, "--method", "none", "-o", str(bundles["none"])])
        for name, seconds in report["build_mini_s"].items():
            print(f"vtexport build --model mini, {name}: {seconds:.1f} s")
        report["stages_ms"] = stage_samples(bundles, arguments.threads, arguments.runs)
    print(f"{'mini, ms':12} " + " ".join(f"{stage:>10}" for stage in STAGES) + f"   ({NEW_TOKENS} tokens decoded)")
    for name, stages in report["stages_ms"].items():
        print(f"{name:12} " + " ".join(f"{statistics.median(stages[stage]):10.2f}" for stage in STAGES))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
