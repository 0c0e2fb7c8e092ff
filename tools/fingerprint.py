"""Fingerprint of what vtexport makes: SHA-256 of every graph and 32 tokens of every plan, for a change that must not.

    python tools/fingerprint.py            # compares with tools/fingerprint.txt; exit 1 and the lines that differ
    python tools/fingerprint.py --write    # writes it anew

Every method is built of the packaged model `mini` in every precision; the graphs of both dialects are hashed with the
one-node models of the ops at other sizes, and each plan that ONNX Runtime runs on a CPU answers a question in both
dialects. Graph bytes follow from the versions of onnx and its companions, so the first lines name them; tokens
are those of one machine's ONNX Runtime with one thread. It takes minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import hashlib
import importlib.metadata
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STORED = Path(__file__).with_suffix(".txt")
PHOTO = ROOT / "docs" / "images" / "coffee.jpg"
QUESTION, TOKENS = "What is on the table?", 32
LIBRARIES = ("numpy", "onnx", "onnx-ir", "onnxruntime", "torch", "transformers")
# Method, budget (None: all patches), options: the defaults, and every option that gives other nodes.
PLANS: tuple[tuple[str, int | None, dict[str, Any]], ...] = (
    ("none", None, {}),
    ("uniform", 64, {}),
    ("random", 64, {}),
    ("pool", 64, {}),
    ("prunesid", 64, {}),
    ("prunesid", 64, {"variant": "qwen"}),
    ("prunesid", 64, {"space": "projected", "cls_slot": False}),
    ("svdprune", 64, {}),
    ("svdprune", 64, {"mode": "leverage"}),
    ("vitcop", 64, {}),
    ("vitcop", 64, {"stages": "1"}),
    ("nuwa", 64, {}),
    ("nuwa", 64, {"stages": "1", "variant": "paper"}),
    ("visionzip", 64, {}),
    ("divprune", 64, {}),
    ("cdpruner", 64, {}),
    ("fastv", 192, {}),
    ("pyramiddrop", 192, {}),
)
PRECISIONS = ("fp32", "fp16", "bf16")
DIALECTS = ("modern", "classic")


def digest(data: bytes) -> str:
    """The first 20 digits of the SHA-256."""
    return hashlib.sha256(data).hexdigest()[:20]


def libraries() -> Iterator[str]:
    """The versions that graph bytes follow from."""
    for name in LIBRARIES:
        yield f"library {name} {importlib.metadata.version(name)}"


def ops() -> Iterator[str]:
    """One-node models of the ops after the vision tower, two images of 12 x 16 patches of width 48."""
    from vtexport.errors import UsageError
    from vtexport.pruning import op_model

    for method, keep, options in PLANS:
        for dtype in ("float32", "float16", "bfloat16"):
            budget = None if keep is None else 48
            with contextlib.suppress(UsageError):  # methods without an op there
                model = op_model(
                    method, tokens=192, grid=(12, 16), width=48, keep=budget, batch=2, dtype=dtype, **options
                )
                yield f"op {label(method, options)} {dtype} {digest(model.SerializeToString(deterministic=True))}"


def label(method: str, options: dict[str, Any]) -> str:
    """A method with its options, for a line."""
    return ":".join((method, *(f"{name}={value}" for name, value in options.items())))


def bundle(precision: str, folder: Path) -> Iterator[str]:
    """Every graph of a bundle with all plans, and its answers."""
    from vtexport import Pipeline
    from vtexport.build import build

    for method, keep, options in PLANS:
        # Random weights: the trained ones answer in a word or two.
        built = build("mini", folder, method=method, keep=keep, options=options, precision=precision, weights="random")
        print(f"{precision} {label(method, options)}", file=sys.stderr)
    for name, graph in sorted(built.manifest.graphs.items()):
        yield f"graph {precision} {name} {digest((folder / graph.file).read_bytes())}"
    if precision == "bf16":  # ONNX Runtime computes none on a CPU
        return
    for plan in built.manifest.plans:
        for dialect in DIALECTS:
            pipeline = Pipeline.open(folder, plan.name, dialect=dialect, threads=1)
            answer = pipeline.generate(PHOTO, QUESTION, max_new_tokens=TOKENS)
            kept = digest(str((answer.keep_indices, sorted(answer.kept_by_layer.items()))).encode())
            yield f"tokens {precision} {plan.name} {dialect} kept {kept} ids {' '.join(map(str, answer.token_ids))}"


def lines() -> list[str]:
    """The whole fingerprint."""
    found = [*libraries(), *ops()]
    with tempfile.TemporaryDirectory() as folder:
        for precision in PRECISIONS:
            found += bundle(precision, Path(folder) / precision)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--write", action="store_true", help=f"write {STORED.name} instead of comparing with it")
    arguments = parser.parse_args()
    os.environ.setdefault("SOURCE_DATE_EPOCH", "0")
    found = lines()
    if arguments.write:
        STORED.write_text("\n".join(found) + "\n")
        print(f"{STORED}: {len(found)} lines")
        return 0
    stored = STORED.read_text().splitlines()
    differences = list(difflib.unified_diff(stored, found, "stored", "found", lineterm="", n=0))
    print("\n".join(differences) or f"all {len(found)} lines are as stored")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
