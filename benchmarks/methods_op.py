"""Time of every method's selection in stock ONNX Runtime on a CPU, and its growth with the image.

    python benchmarks/methods_op.py --threads 2

One op at a time, in a process of its own, by turns with one Gram matrix of the same features, which is the floor of
every method that compares all pairs of tokens. T = 576 (24 x 24 patches), 1152 and 2304; features and signals are
generated here, of CLIP-L's width 1024. Each op's choice is compared with the exact reference on the same inputs.
Results go to benchmarks/results/ with all samples.
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
from ops import WIDTH, generated_images, gram_model, samples_ms, session

ROOT = Path(__file__).resolve().parents[1]
GRIDS = [(24, 24), (24, 48), (48, 48)]
HEADS, TEXT = 16, 16
PACKAGES = ("numpy", "onnx", "onnxruntime")
# (method, N, parameters, outputs that count with the kept ones)
CASES: list[tuple[str, int, dict[str, Any], tuple[str, ...]]] = [
    ("prunesid", 64, {}, ()),
    ("svdprune", 64, {}, ()),
    ("svdprune", 64, {"rank": 32, "center": "none"}, ()),
    ("svdprune", 16, {"rank": 32, "center": "none"}, ()),
    ("vitcop", 172, {}, ()),
    ("vitcop", 172, {"clusters": True}, ("labels",)),
    ("nuwa", 112, {}, ()),
    ("nuwa", 64, {}, ()),
    ("visionzip", 64, {}, ()),
    ("divprune", 64, {}, ()),
    ("cdpruner", 64, {}, ()),
    ("pool", 64, {}, ()),
    ("uniform", 64, {}, ()),
    ("random", 64, {}, ()),
]


def first_op(method: str, keep: int, grid: tuple[int, int], options: dict[str, Any]) -> Any:
    """The method's op before the language model."""
    from vtexport.pruning import ModelShape, get_method, make_options

    chosen = get_method(method)
    return chosen.first_op(make_options(chosen, options), ModelShape(grid, layers=1), keep).op


def inputs(op: Any, grid: tuple[int, int]) -> dict[str, Any]:
    """Inputs of the op: the features, and signals made from them so that they hang together."""
    import numpy as np

    features, scores = generated_images(1, grid)
    features = features.astype(np.float32)
    patches, rng = features[:, 1:], np.random.default_rng(7)
    tokens = grid[0] * grid[1]
    mixing = (rng.standard_normal((2, WIDTH, WIDTH)) / WIDTH**0.5).astype(np.float32)
    made = {
        "features": features if op.takes_cls else patches,
        "scores": scores,
        "keys": (patches @ mixing[0]).reshape(1, tokens, HEADS, WIDTH // HEADS),
        "similarity_features": patches + 0.3 * (patches @ mixing[1]),
        "text_embeds": patches[:, rng.choice(tokens, TEXT, replace=False)]
        + rng.standard_normal((1, TEXT, WIDTH)).astype(np.float32),
    }
    return {each.name: np.ascontiguousarray(made[each.name]) for each in op.inputs()}


def measure(case: tuple[Any, ...], grid: tuple[int, int], threads: int, runs: int) -> dict[str, Any] | None:
    """One row of the table; None where the method has no such budget on this grid."""
    from vtexport.errors import UsageError
    from vtexport.pruning import op_model, select

    name, keep, options, extra = case
    tokens = grid[0] * grid[1]
    sizes = {"tokens": tokens, "grid": grid, "width": WIDTH, "heads": HEADS, "head_dim": WIDTH // HEADS}
    try:
        model = op_model(name, keep=keep, **sizes, **options)
    except UsageError:
        return None
    given = inputs(first_op(name, keep, grid, options), grid)
    op, gram = session(model, threads), session(gram_model(tokens), threads)
    outputs = ["kept_features", "keep_indices", *extra]
    patches = given["features"][:, -tokens:]
    kept = op.run(["keep_indices"], given)[0].tolist()
    times: dict[str, list[float]] = {"op": [], "gram": []}
    for _ in range(runs):
        times["op"] += samples_ms(lambda: op.run(outputs, given), 1)
        times["gram"] += samples_ms(lambda: gram.run(None, {"y": patches}), 1)
    reference = select(name, keep=keep, grid=grid, **given, **options).keep_indices.tolist()
    deciles = statistics.quantiles(times["op"], n=10)
    return {
        "method": name,
        "outputs": outputs,
        "tokens": tokens,
        "keep": keep,
        "parameters": options,
        "median_ms": statistics.median(times["op"]),
        "min_ms": min(times["op"]),
        "p90_ms": deciles[8],
        "gram_median_ms": statistics.median(times["gram"]),
        "equals_reference": kept == reference,
        "samples_ms": times["op"],
        "gram_samples_ms": times["gram"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="threads of ONNX Runtime (default: 2)")
    parser.add_argument("--runs", type=int, default=40, help="timed runs of each (default: 40)")
    parser.add_argument("--methods", default="", help="only these, by name, separated by commas")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "methods_op.json")
    arguments = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(arguments.threads)
    only = set(filter(None, arguments.methods.split(",")))
    report: dict[str, Any] = {
        "benchmark": "methods_op",
        "machine": describe(arguments.threads, PACKAGES),
        "width": WIDTH,
        "results": [],
    }
    print(f"{'method':10} {'tokens':>6} {'keep':>4} {'median':>8} {'min':>8} {'p90':>8} {'Gram':>8} ms  indices")
    fresh = multiprocessing.get_context("spawn")
    for case in CASES:
        if only and case[0] not in only:
            continue
        for grid in GRIDS:
            with ProcessPoolExecutor(1, mp_context=fresh) as process:
                row = process.submit(measure, case, grid, arguments.threads, arguments.runs).result()
            if row is None:
                continue
            report["results"].append(row)
            print(
                f"{row['method']:10} {row['tokens']:6} {row['keep']:4} {row['median_ms']:8.2f} {row['min_ms']:8.2f} "
                f"{row['p90_ms']:8.2f} {row['gram_median_ms']:8.2f}     "
                f"{'equal' if row['equals_reference'] else 'not those of the reference'}"
                f"{' with ' + ', '.join(case[3]) if case[3] else ''}",
                flush=True,
            )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
