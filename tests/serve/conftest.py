"""Servers and images of the tests of the server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from openai import OpenAI
from running_server import running
from serve_cases import client_of

from vtexport.build import build
from vtexport.runtime.pipeline import Pipeline
from vtexport.serve.server import Server


@pytest.fixture(scope="session")
def served_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plans none, prunesid-16 and cdpruner-16, under the name tiny."""
    folder = tmp_path_factory.mktemp("served") / "tiny"
    for method in ("none", "prunesid", "cdpruner"):
        build(str(tiny_checkpoint), folder, method=method, keep=None if method == "none" else 16)
    return folder


@pytest.fixture(scope="module")
def server(served_bundle: Path) -> Iterator[Server]:
    with running(served_bundle) as found:
        yield found


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    with client_of(server) as found:
        yield found


@pytest.fixture(scope="session")
def fresh(served_bundle: Path) -> Iterator[Callable[[str], Pipeline]]:
    """Pipelines of the plans that keep nothing."""
    found: dict[str, Pipeline] = {}

    def one(plan: str) -> Pipeline:
        if plan not in found:
            found[plan] = Pipeline.open(served_bundle, plan, threads=1)
        return found[plan]

    yield one
    for each in found.values():
        each.close()


@pytest.fixture(scope="session")
def frames() -> list[np.ndarray]:
    """Three images [H, W, 3] uint8."""
    return list(np.random.default_rng(8).integers(0, 256, (3, 60, 80, 3), dtype=np.uint8))
