"""Bundles with made-up reports in them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from made_up_reports import (
    evaluated,
    measurement,
    put_evaluation,
    put_measurement,
    put_proof,
    put_validation,
    validated,
)


@pytest.fixture
def bare(eval_bundle: Path, tmp_path: Path) -> Path:
    """A bundle without a report."""
    return Path(shutil.copytree(eval_bundle, tmp_path / "tiny"))


@pytest.fixture
def full(bare: Path) -> Path:
    """The same with everything."""
    put_measurement(bare, measurement(bare, energy=True))
    put_measurement(bare, measurement(bare, soak=True), "soak.json")
    put_validation(bare, validated(bare))
    put_evaluation(bare / "reports" / "eval.json", evaluated(bare))
    put_proof(bare, {"prunesid-8": [-1, 0, 3, 5, 9, 10, 12, 15], "none": list(range(16))})
    return bare
