"""Which of a bundle's graphs a version of ONNX Runtime answers rightly with.

The table holds what was seen: each version's answers, logits and kept tokens on bundles in float32 and float16 with
several shares of key heads, and its `Attention` alone against float64, on the CPU. From 1.18.0 to 1.32.0 every minor
version was tried, around the limits every release.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vtexport.errors import MissingDependencyError, UsageError

# In the order in which they are taken: the first has fused operators, the second is for older runtimes.
DIALECTS = ("modern", "classic")
OLDEST = "1.18.0"  # earlier ones do not read ONNX IR version 10


@dataclass(frozen=True)
class _Limits:
    loads: str  # the first version that takes these graphs
    because: str  # why earlier ones do not
    right: dict[str, str]  # by precision, the first version whose answers are right
    fault: str  # of the versions between those two


_LIMITS = {
    "modern": _Limits(
        loads="1.23.0",
        because="it does not know opset 23",
        # 1.23.0 mixes up the heads in both, and up to 1.24.4 float16 comes out as other numbers or NaN.
        right={"float32": "1.23.1", "float16": "1.25.0"},
        fault="its Attention is wrong where several heads share keys",
    ),
    "classic": _Limits(
        loads=OLDEST,
        because="it does not read ONNX IR version 10",
        right={"float32": OLDEST, "float16": OLDEST},
        fault="",
    ),
}
# Precisions of the bundles that ONNX Runtime runs; bfloat16 it does not compute in on the CPU
RUNS_IN = tuple(_LIMITS["classic"].right)


def why_not(dialect: str, version: str, precision: str) -> str | None:
    """Why ONNX Runtime of this version must not run these graphs, as half a sentence; None where it may.

    Args:
        dialect: One of `DIALECTS`.
        version: As `onnxruntime.__version__` has it, such as "1.23.2".
        precision: The bundle's, "float32" or "float16".
    """
    limits, number = _LIMITS[dialect], _number(version)
    if number < _number(limits.loads):
        return limits.because
    right = limits.right.get(precision, limits.loads)  # graphs in bfloat16 are not run at all
    if number < _number(right):
        return f"{limits.fault} (seen in {precision} before {right})"
    return None


def loads(dialect: str, version: str) -> bool:
    """Whether ONNX Runtime of this version takes the graphs at all, whatever it answers with them."""
    return _number(version) >= _number(_LIMITS[dialect].loads)


def choose_dialect(version: str, precision: str, wanted: str | None = None) -> str:
    """The graphs that ONNX Runtime of this version answers rightly with: those that are wanted, else the first.

    Raises:
        UsageError: There is no such dialect, or this version gives wrong answers with it.
        MissingDependencyError: This version can run none.
    """
    if wanted is not None and wanted not in DIALECTS:
        raise UsageError(f"dialect {wanted!r} is not known; choose one of {', '.join(DIALECTS)}")
    reasons = {dialect: why_not(dialect, version, precision) for dialect in DIALECTS}
    right = [dialect for dialect in DIALECTS if reasons[dialect] is None]
    if not right:
        raise MissingDependencyError(
            f"ONNX Runtime {version} cannot run bundles, because {reasons[DIALECTS[-1]]}; run pip install --upgrade "
            f"'vtexport[cpu]' or 'vtexport[gpu]', or install {OLDEST} or newer yourself"
        )
    if wanted is None or wanted in right:
        return wanted or right[0]
    raise UsageError(
        f"ONNX Runtime {version} must not run the {wanted} graphs in {precision}, because {reasons[wanted]}; leave the "
        f"dialect out, and it runs the {right[0]} ones"
    )


def _number(version: str) -> tuple[int, int, int, int]:
    """1.23.2 as (1, 23, 2, 1); what comes before a release, such as 1.23.2rc1, as (1, 23, 2, 0).

    Raises:
        MissingDependencyError: The version says nothing about what it can run.
    """
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?(\.?(?:dev|rc|a|b)\d*)?", version)
    if match is None:
        raise MissingDependencyError(
            f"ONNX Runtime's version {version!r} does not say what it can run; install a release, such as "
            "pip install 'vtexport[cpu]'"
        )
    major, minor, patch, before = match.groups()
    return int(major), int(minor), int(patch or 0), 0 if before else 1
