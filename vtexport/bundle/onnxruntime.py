"""Abilities of each version of ONNX Runtime: the graphs that it answers rightly with.

The table holds what was seen: each version's answers, logits and kept tokens on bundles in float32 and float16 with
several shares of key heads, and its `Attention` alone against float64, on the CPU. From 1.18.0 to 1.32.0 every minor
version was tried, around the limits every release.
"""

from __future__ import annotations

import re

from vtexport.bundle.abilities import Abilities, Fault
from vtexport.dtypes import DTYPES
from vtexport.errors import MissingDependencyError

OLDEST = "1.18.0"  # earlier ones do not read ONNX IR version 10
_IR_VERSION = 10
# The first version with which graphs of an opset were seen to load
_OPSETS = ((OLDEST, 20), ("1.23.0", 23))
# By the type of the graphs, the first version whose Attention is right: 1.23.0 mixes up the heads in both, and up to
# 1.24.4 float16 comes out as other numbers or NaN.
_RIGHT_ATTENTION = {"float32": "1.23.1", "float16": "1.25.0"}
# bfloat16 it does not compute in on the CPU
TYPES = frozenset(DTYPES) - {"bfloat16"}


def abilities_of(version: str) -> Abilities:
    """The abilities of ONNX Runtime of this version, such as "1.23.2", on the CPU.

    Raises:
        MissingDependencyError: It can run no bundle, or the version says nothing about what it can run.
    """
    number = _number(version)
    if number < _number(OLDEST):
        raise MissingDependencyError(
            f"ONNX Runtime {version} cannot run bundles, because it does not read ONNX IR version {_IR_VERSION}; "
            f"run pip install --upgrade 'vtexport[cpu]' or 'vtexport[gpu]', or install {OLDEST} or newer yourself"
        )
    return Abilities(
        title=f"ONNX Runtime {version}",
        ir_version=_IR_VERSION,
        opset=newest_opset(version),
        types=TYPES,
        faults=tuple(
            Fault(
                "Attention",
                kind,
                f"its Attention is wrong where several heads share keys (seen in {kind} before {right})",
            )
            for kind, right in _RIGHT_ATTENTION.items()
            if number < _number(right)
        ),
    )


def newest_opset(version: str) -> int:
    """The newest opset whose graphs this version takes, whatever it answers with them; 0 where it takes none.

    Raises:
        MissingDependencyError: The version says nothing about what it can run.
    """
    return max((opset for first, opset in _OPSETS if _number(version) >= _number(first)), default=0)


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
