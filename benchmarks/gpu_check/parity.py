"""Whether the kernels give the right answers: the authors' vectors, random cases, batches, CUDA graphs."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from native_ops.calls import Call, Runner, encoder_call
from native_ops.cases import (
    LARGE,
    RANDOM_KINDS,
    STEPS,
    golden_case,
    golden_names,
    golden_types,
    large_case,
    random_case,
)
from native_ops.compare import Case, check, check_batch
from native_ops.inputs import fields

from gpu_check.hostile import hostile_cases

RANDOM_CASES, QUICK_CASES = 1000, 96
CHUNK = 12  # random cases to a task
BATCH = 5
# Of every op behind the vision tower one call for batches and graphs: (method, N, parameters).
COMMON = [
    ("prunesid", 64, {}),
    ("prunesid", 44, {"variant": "qwen"}),
    ("svdprune", 64, {"rank": 16}),
    ("vitcop", 172, {"clusters": True}),
    ("nuwa", 112, {}),
    ("divprune", 64, {}),
    ("cdpruner", 64, {}),
]


@dataclass
class Section:
    """One kind of check: how many cases ran, how many images were sure as a whole, and what is wrong."""

    name: str
    cases: int = 0
    images: int = 0
    sure: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    def add(self, wrong: list[str], case: Case | None = None) -> None:
        self.cases += 1
        self.problems += wrong
        if case is not None:
            self.images += len(case.sure)
            self.sure += int(case.sure.sum())


def references(quick: bool) -> tuple[ProcessPoolExecutor, list[Future[list[Case]]], list[Future[list[Case]]]]:
    """Starts the float64 references of the random and the large cases in processes, one thread each."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # read by NumPy when the processes import it
    fresh = multiprocessing.get_context("spawn")
    workers = max(1, len(os.sched_getaffinity(0)) - 1)
    pool = ProcessPoolExecutor(workers, mp_context=fresh, initializer=_prepare_worker)
    numbers = [] if quick else range(len(LARGE))  # the longest first
    large = [pool.submit(_large, number) for number in numbers]
    count = QUICK_CASES if quick else RANDOM_CASES
    random = [pool.submit(_random, start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    return pool, random, large


def _prepare_worker() -> None:
    from gpu_check import array_api

    array_api.install()


def _random(start: int, end: int) -> list[Case]:
    return [random_case(seed) for seed in range(start, end)]


def _large(number: int) -> list[Case]:
    return [large_case(number)]


def run_parity(runner: Runner, quick: bool, graph: Any = None) -> dict[str, Any]:
    """All checks; see the names of the sections.

    Args:
        runner: The library.
        quick: Fewer random cases, no large ones, golden vectors in one type.
        graph: graph(call) -> what is wrong with a CUDA graph of a call; None leaves that check out.
    """
    pool, random, large = references(quick)
    try:
        sections = [
            _section("golden vectors", _golden(runner, quick)),
            _section("batch of 5 as five images", _batches(runner)),
            _section("hostile inputs", ((check(runner, case), None) for case in hostile_cases(hostile_calls()))),
        ]
        if graph is not None:
            calls = [*common_calls(1), *step_calls()]
            sections.append(_section("CUDA graph as direct call", ((graph(call), None) for call in calls)))
        sections.append(_section("random inputs", _futures(runner, random)))
        if large:
            sections.append(_section("sizes of models", _futures(runner, large)))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return {
        "passed": not any(each.problems for each in sections),
        "sections": [vars(each) for each in sections],
    }


def _section(name: str, checks: Iterator[tuple[list[str], Case | None]]) -> Section:
    section, start = Section(name), time.perf_counter()
    try:
        for wrong, case in checks:
            section.add(wrong, case)
    except Exception as error:  # such as a GPU that has stopped: said, and the other sections still run
        section.problems.append(f"{name}: stopped after {section.cases} cases by {type(error).__name__}: {error}")
    if not section.cases:
        section.problems.append(f"{name}: nothing was checked")
    section.seconds = time.perf_counter() - start
    return section


def _golden(runner: Runner, quick: bool) -> Iterator[tuple[list[str], Case]]:
    for name in golden_names():
        types = golden_types(name)
        for dtype in types[len(types) // 2 :][:1] if quick else types:
            case = golden_case(name, dtype)
            yield check(runner, case), case


def _futures(runner: Runner, futures: list[Future[list[Case]]]) -> Iterator[tuple[list[str], Case]]:
    for future in futures:
        for case in future.result():
            yield check(runner, case), case


def common_calls(batch: int, grid: tuple[int, int] = (24, 24), width: int = 1024, dtype: str = "float16") -> list[Call]:
    """A call of every op behind the vision tower, on features in the likeness of a tower's."""
    rng, calls = np.random.default_rng(5), []
    tokens = grid[0] * grid[1]
    features = fields(rng, grid, width, batch)
    inputs = {
        "features": np.concatenate([features.mean(1, keepdims=True), features], axis=1),
        "scores": rng.random((batch, tokens), np.float32),
        "keys": 2 * fields(rng, grid, 256, batch).reshape(batch, tokens, 4, 64),
        "similarity_features": features + 0.3 * rng.standard_normal(features.shape),
        "text_embeds": rng.standard_normal((batch, 12, width)),
    }
    for method, keep, options in COMMON:
        takes_cls = method == "prunesid" and not options
        own = inputs if takes_cls else {**inputs, "features": features}
        calls.append(encoder_call(method, own, keep=min(keep, tokens), grid=grid, dtype=dtype, **options))
    return calls


def step_calls(**fixed: Any) -> list[Call]:
    """A call of every op inside the language model."""
    return [random_case(7, kind, **fixed).call for kind in STEPS]


def hostile_calls() -> list[Call]:
    """Small calls of every op, in float32."""
    return [*common_calls(1, (12, 12), 64, "float32"), *step_calls(dtype="float32")]


def _batches(runner: Runner) -> Iterator[tuple[list[str], None]]:
    for call in common_calls(BATCH):
        yield check_batch(runner, call.op_type, call), None


def small_cases() -> Iterator[Case]:
    """Two small cases of every op, for tools that make kernels very slow."""
    for kind in RANDOM_KINDS:
        for seed, grid in enumerate(((8, 8), (7, 13))):
            yield random_case(seed, kind, **({} if kind in STEPS else {"grid": grid, "width": 72}))
