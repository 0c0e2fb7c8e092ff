"""Headers and samples of measurements that nobody made, and what small ones are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vtexport.bundle.reader import open_bundle
from vtexport.measure.answer import Contender, Settings
from vtexport.measure.pictures import Pictures
from vtexport.measure.record import KIND, SCHEMA_VERSION, STAGES, Calibration, Header, PlanFacts, Sample

SETTINGS = Settings("What?", new_tokens=3, threads=1)


def plan_facts(name: str, method: str | None = "prunesid", tokens: float | None = 16.0, **more: Any) -> PlanFacts:
    return PlanFacts(
        name=name, plan=name.removeprefix("against:"), method=method, keep=None, tokens_per_layer=tokens, **more
    )


def header(*plans: PlanFacts, **more: Any) -> Header:
    given: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "mode": "bench",
        "created_at": "2026-01-02T03:04:05+00:00",
        "command": "vtexport bench b",
        "bundle": "b",
        "bundle_name": "b",
        "manifest_sha256": "0" * 64,
        "machine": {"cpu": "made up", "cores": 2, "pruning_ops": "native library"},
        "versions": {"vtexport": "0"},
        "device": "cpu",
        "threads": 2,
        "precision": "float32",
        "prompt": "What?",
        "new_tokens": 3,
        "images": ["one"],
        "synthetic": True,
        "seed": 0,
        "warm_up": 0,
        "loaded": "all",
        "answers_per_turn": 1,
        "plans": list(plans or [plan_facts("p")]),
    }
    return Header(**(given | more))


def sample(plan: str = "p", turn: int = 0, *, total: float = 100.0, first: float = 60.0, **more: Any) -> Sample:
    """An answer of three tokens whose vision takes 20 ms and whose stages add up to `total`."""
    stages = dict.fromkeys(STAGES, 0.0) | {
        "vision": 20.0,
        "prune": 5.0,
        "prefill": first - 25.0,
        "decode": total - first,
    }
    given: dict[str, Any] = {
        "plan": plan,
        "turn": turn,
        "place": 0,
        "image": 0,
        "at_s": float(turn),
        "prompt_tokens": 40,
        "visual_tokens": 16,
        "stages_ms": stages,
        "decode_ms": [(total - first) / 2] * 2,
        "first_token_ms": first,
        "total_ms": total,
    }
    return Sample(**(given | more))


def noise(count: int) -> Pictures:
    random = np.random.default_rng(1)
    images: list[Any] = [random.integers(0, 256, (60, 80, 3), dtype=np.uint8) for _ in range(count)]
    return Pictures([f"noise {number}" for number in range(count)], images, synthetic=True)


def contenders(bundle: Path, names: Sequence[str]) -> list[Contender]:
    return [Contender(open_bundle(bundle), name) for name in names]


def known_speed(when: Any, threads: int) -> Calibration:
    """Instead of `calibrate`, which takes seconds."""
    return Calibration(when=when, threads=threads, gemm_gflops=50.0, copy_gb_per_s=5.0)
