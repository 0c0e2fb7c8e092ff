"""Time of selection in ONNX Runtime on a CPU with the native library, next to the function body.

    vtexport plugins build
    python benchmarks/native_cpu.py --threads 2

One op at a time, in a process of its own: the op with the library, the same model without it, and one Gram matrix of
the same features (a plain MatMul of ONNX Runtime, T x 1024 x T) by turns. Features and signals as in methods_op.py.
Both forms' choices are compared with the exact reference. Results go to benchmarks/results/ with all samples.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from machine import describe
from methods_op import HEADS, first_op, inputs
from ops import WIDTH, gram_model, samples_ms, session

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("numpy", "onnx", "onnxruntime")
# (method, N, parameters, milliseconds that the op should stay below at 576 tokens)
CASES: list[tuple[str, int, dict[str, Any], float | None]] = [
    ("prunesid", 64, {}, 5),
    ("svdprune", 64, {}, None),
    ("svdprune", 64, {"rank": 32, "center": "none"}, 5),
    ("vitcop", 64, {"clusters": True}, 3),
    ("vitcop", 172, {"clusters": True}, 3),
    ("nuwa", 64, {}, 2),
    ("nuwa", 112, {}, 2),
    ("divprune", 64, {}, 4),
    ("cdpruner", 64, {}, None),
]


def measure(case: tuple[Any, ...], grid: tuple[int, int], threads: int, runs: int, library: Path) -> dict[str, Any]:
    from vtexport.pruning import op_model, select

    name, keep, options, target = case
    tokens = grid[0] * grid[1]
    sizes = {"tokens": tokens, "grid": grid, "width": WIDTH, "heads": HEADS, "head_dim": WIDTH // HEADS}
    model = op_model(name, keep=keep, **sizes, **options)
    given = inputs(first_op(name, keep, grid, options), grid)
    patches = given["features"][:, -tokens:]
    native, body = session(model, threads, library), session(model, threads)
    gram = session(gram_model(tokens), threads)
    reference = select(name, keep=keep, grid=grid, **given, **options).keep_indices.tolist()
    equal = {form: run.run(["keep_indices"], given)[0].tolist() == reference
             for form, run in (("native", native), ("body", body))}  # fmt: skip
    times: dict[str, list[float]] = {"native": [], "body": [], "gram": []}
    for _ in range(runs):
        times["native"] += samples_ms(lambda: native.run(None, given), 1)
        times["body"] += samples_ms(lambda: body.run(None, given), 1)
        times["gram"] += samples_ms(lambda: gram.run(None, {"y": patches}), 1)
    return {
        "method": name,
        "tokens": tokens,
        "keep": keep,
        "parameters": options,
        "target_ms": target if tokens == 576 else None,
        "equals_reference": equal,
        "median_ms": {form: statistics.median(each) for form, each in times.items()},
        "p90_ms": {form: statistics.quantiles(each, n=10)[8] for form, each in times.items()},
        "min_ms": {form: min(each) for form, each in times.items()},
        "samples_ms": times,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="threads of ONNX Runtime (default: 2)")
    parser.add_argument("--runs", type=int, default=60, help="timed runs of each (default: 60)")
    parser.add_argument("--methods", default="", help="only these, by name, separated by commas")
    parser.add_argument("--rows", type=int, default=24, help="rows of patches (default: 24)")
    parser.add_argument("--columns", type=int, default=24, help="columns of patches (default: 24)")
    parser.add_argument("--note", default="", help="what else has to be known of the machine's state")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "native_cpu.json")
    arguments = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(arguments.threads)

    from vtexport.plugins.libraries import choose_library
    from vtexport.plugins.native import Library

    choice = choose_library()
    if choice.library is None:
        parser.exit(3, f"there is no native library: {choice.reason}; run vtexport plugins build\n")
    only = set(filter(None, arguments.methods.split(",")))
    report: dict[str, Any] = {
        "benchmark": "native_cpu",
        "machine": describe(arguments.threads, PACKAGES),
        "note": arguments.note,
        "instructions": Library(choice.library, "vtx_cpu_").text("instructions"),
        "width": WIDTH,
        "results": [],
    }
    print(f"{'method':10} {'keep':>4} {'native':>8} {'p90':>8} {'min':>8} {'body':>8} {'Gram':>8} ms  indices")
    fresh = multiprocessing.get_context("spawn")
    grid = arguments.rows, arguments.columns
    for case in CASES:
        if only and case[0] not in only:
            continue
        with ProcessPoolExecutor(1, mp_context=fresh) as process:
            job = process.submit(measure, case, grid, arguments.threads, arguments.runs, choice.library)
            row = job.result()
        report["results"].append(row)
        median = row["median_ms"]
        equal = "equal" if all(row["equals_reference"].values()) else f"not all equal: {row['equals_reference']}"
        print(
            f"{row['method']:10} {row['keep']:4} {median['native']:8.2f} {row['p90_ms']['native']:8.2f} "
            f"{row['min_ms']['native']:8.2f} {median['body']:8.2f} {median['gram']:8.2f}     {equal}",
            flush=True,
        )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
