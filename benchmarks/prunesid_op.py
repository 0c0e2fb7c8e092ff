"""Time of PruneSID's selection on a CPU, and a check that every form selects the same tokens.

    python benchmarks/prunesid_op.py --threads 2

Measured on 576 tokens of width 1024: the op `VtxPruneSID` in stock ONNX Runtime, the exact reference on NumPy arrays
and on PyTorch tensors (float64), the same steps in PyTorch with the randomised PCA of the authors' code
(`torch.pca_lowrank`; written here to stand for the released approach, it is not that code), and the Gram matrix alone
in ONNX Runtime (computed whole; the op computes three quarters of it by symmetry). Op and Gram matrix take turns in a
process of their own. Inputs are features generated here, and the golden ones of
tests/data. Results go to benchmarks/results/ with all samples.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from machine import describe
from ops import WIDTH, generated_images, gram_model, samples_ms, session

# numpy and torch read the thread settings when they are imported, so they are imported after the arguments are read.

ROOT = Path(__file__).resolve().parents[1]
TOKENS = 576
PACKAGES = ("numpy", "torch", "onnx", "onnxruntime")
CASES = [(32, 1), (64, 1), (128, 1), (192, 1), (64, 5)]  # keep, batch


def golden_images(batch: int) -> tuple[Any, Any]:
    """Golden features, repeated in turn when there are fewer than `batch`."""
    import numpy as np

    files = [np.load(ROOT / f"tests/data/golden/features_seed{1 + image % 3}.npz") for image in range(batch)]
    return np.stack([file["hidden"] for file in files]), np.stack([file["cls_attention"].sum(0) for file in files])


def randomised_selection(features: Any, scores: Any, keep: int) -> list[list[int]]:
    """PruneSID in PyTorch with randomised PCA: written for this benchmark to stand for the released approach.

    As there: `pca_lowrank` with exactly K components, sweeps that treat all groups at once until no score is left, a
    budget in Python. Unlike there: no [B, K, T, T] copies of the similarities, so it is rather faster than that code.
    """
    import torch

    from vtexport.pruning.ops.prunesid import allocate

    count = keep // 4
    patches = features[:, 1:].float()
    batch, tokens, _ = patches.shape
    _, _, components = torch.pca_lowrank(torch.sigmoid(patches).transpose(1, 2), q=count)
    group = components.abs().argmax(dim=2)
    unit = patches / patches.norm(dim=2, keepdim=True)
    cosine = unit @ unit.transpose(1, 2)
    upper = torch.triu(torch.ones(tokens, tokens, dtype=torch.bool, device=patches.device), 1)
    tau = cosine[:, upper].mean(dim=1) * (keep / 32)

    member = group[:, None, :] == torch.arange(count, device=patches.device)[None, :, None]
    left = torch.where(member, scores[:, None, :], 0.0)
    rank = left.clone()
    sweep = 0
    while left.sum() > 0:
        best = left.argmax(dim=2)
        alive = left.amax(dim=2) > 0
        image, place = alive.nonzero(as_tuple=True)
        token = best[image, place]
        rank[image, place, token] = 1000.0 - sweep
        rows = left[image, place]
        rows[cosine[image, token] > tau[image, None]] = 0.0
        rows[torch.arange(len(token), device=patches.device), token] = 0.0
        left[image, place] = rows
        sweep += 1
    sizes, survivors = member.sum(dim=2), (rank > 500).sum(dim=2)
    rank = torch.where(member, rank, -1.0)
    chosen = []
    for image in range(batch):
        taken = allocate(sizes[image].tolist(), survivors[image].tolist(), keep=keep, cls_slots=1)
        patches_kept: list[int] = []
        for index, share in enumerate(taken):
            patches_kept += rank[image, index].topk(share).indices.tolist()
        chosen.append([-1, *patches_kept])
    return chosen


def overlap(found: list[list[int]], expected: list[list[int]]) -> float:
    """Share of the expected patches that were found."""
    pairs = [(set(a) - {-1}, set(b) - {-1}) for a, b in zip(found, expected, strict=True)]
    return sum(len(a & b) for a, b in pairs) / sum(len(b) for _, b in pairs)


def images(source: str, batch: int) -> tuple[Any, Any]:
    """Features and scores of that source."""
    return generated_images(batch, (24, 24)) if source == "generated" else golden_images(batch)


def onnxruntime_samples(source: str, keep: int, batch: int, threads: int, runs: int) -> tuple[Any, dict[str, Any]]:
    """Indices that the op keeps, and milliseconds of the op and of the Gram matrix alone, by turns.

    Runs in a process of its own, as on a device: the threads of other libraries would stay awake beside ONNX Runtime's.
    """
    import numpy as np

    from vtexport.pruning import op_model

    features, scores = images(source, batch)
    features = features.astype(np.float32)
    op = session(op_model("prunesid", tokens=TOKENS, width=WIDTH, keep=keep, batch=batch), threads)
    gram = session(gram_model(TOKENS, batch), threads)
    forms = {
        "onnxruntime op": lambda: op.run(["keep_indices"], {"features": features, "scores": scores})[0].tolist(),
        "onnxruntime gram only": lambda: gram.run(None, {"y": features[:, 1:]}),
    }
    found = forms["onnxruntime op"]()
    samples: dict[str, Any] = {form: [] for form in forms}
    for _ in range(runs):
        for form, run in forms.items():
            samples[form] += samples_ms(run, 1)
    return found, samples


def measure_case(source: str, keep: int, batch: int, *, threads: int, runs: int) -> list[dict[str, Any]]:
    import numpy as np

    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh) as process:
        kept, op_samples = process.submit(onnxruntime_samples, source, keep, batch, threads, runs).result()

    import torch

    from vtexport.pruning import select

    torch.set_num_threads(threads)
    features, scores = images(source, batch)
    tensors = torch.from_numpy(features), torch.from_numpy(scores)
    forms: dict[str, Callable[[], Any] | None] = {
        "onnxruntime op": None,
        "onnxruntime gram only": None,
        "numpy reference": lambda: select("prunesid", features, scores, keep=keep).keep_indices.tolist(),
        "torch reference": lambda: select("prunesid", *tensors, keep=keep).keep_indices.tolist(),
        "torch randomised pca": lambda: randomised_selection(*tensors, keep),
    }
    exact = select("prunesid", features, scores, keep=keep).keep_indices.tolist()
    expected = None
    if source == "golden":
        known = ROOT / f"tests/data/golden/prunesid_llava_seed1_N{keep}.npz"
        expected = (np.load(known)["indices"].astype(int) - 1).tolist() if batch == 1 else None
    results = []
    for form, run in forms.items():
        torch.manual_seed(0)
        if run is None:
            found, samples = None if "gram" in form else kept, op_samples[form]
        else:
            found, samples = run(), samples_ms(run, max(5, runs // 5))
        deciles = statistics.quantiles(samples, n=10)
        results.append(
            {
                "features": source,
                "keep": keep,
                "batch": batch,
                "form": form,
                "median_ms": statistics.median(samples),
                "min_ms": min(samples),
                "p10_ms": deciles[0],
                "p90_ms": deciles[8],
                "equals_reference": None if found is None else found == exact,
                "equals_golden": None if found is None or expected is None else found == expected,
                "overlap_with_reference": None if found is None else overlap(found, exact),
                "samples_ms": samples,
            }
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="threads of every library (default: 2)")
    parser.add_argument("--runs", type=int, default=50, help="timed runs of the ONNX forms; the others get a fifth")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "prunesid_op.json")
    arguments = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(arguments.threads)

    report: dict[str, Any] = {
        "benchmark": "prunesid_op",
        "machine": describe(arguments.threads, PACKAGES),
        "results": [],
    }
    print(f"{'features':10} {'keep':>4} {'batch':>5}  {'form':22} {'median':>8} {'min':>8} {'p90':>8} ms  indices")
    for source in ("generated", "golden"):
        for keep, batch in CASES:
            for row in measure_case(source, keep, batch, threads=arguments.threads, runs=arguments.runs):
                report["results"].append(row)
                verdict = {True: "equal", False: f"{row['overlap_with_reference'] or 0:.1%} overlap", None: "-"}
                print(
                    f"{source:10} {keep:4} {batch:5}  {row['form']:22} {row['median_ms']:8.2f} {row['min_ms']:8.2f} "
                    f"{row['p90_ms']:8.2f}     {verdict[row['equals_reference']]}"
                    f"{', golden' if row['equals_golden'] else ''}",
                    flush=True,
                )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
