"""A bundle's reports and its proof, of measurements and comparisons that nobody made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from made_up_measurement import header, plan_facts, sample
from PIL import Image

from vtexport.bundle.hashing import hash_file
from vtexport.bundle.manifest import MANIFEST_NAME
from vtexport.bundle.proof import INPUTS_NAME, Case, CaseAnswer, PlanProof, Proof, ProofImage, write_proof
from vtexport.bundle.reader import open_bundle
from vtexport.eval.report import PlanReport, Share, Summary, Times
from vtexport.eval.report import Report as Evaluation
from vtexport.measure import record
from vtexport.measure.record import EnergyWindow, Line, Memory, PowerFacts, Report
from vtexport.measure.report import make_report
from vtexport.validate import report as validation

HOSTILE = """<script>alert("x")</script> & 'y' ![z](http://example.org)"""


def measurement(bundle: Path, *, energy: bool = False, soak: bool = False, **more: Any) -> Report:
    """Twelve answers of each plan of `eval_bundle`: 200, 80 and 100 ms in the median."""
    totals = {"none": 200.0, "prunesid-8": 80.0, "prunesid-16": 100.0}
    tokens = {"none": 64, "prunesid-8": 8, "prunesid-16": 16}
    facts = [plan_facts(name, name.partition("-")[0], float(tokens[name])) for name in totals]
    if soak:
        more |= {"mode": "soak", "rate": 2.0, "asked_s": 6.0}
        totals, facts = {"none": 200.0}, facts[:1]
    lines: list[Line] = [
        sample(
            name,
            turn,
            total=total + turn % 4,
            first=total / 2,
            visual_tokens=tokens[name],
            **({"due_s": turn / 2, "late_ms": -100.0} if soak else {}),
        )
        for turn in range(12)
        for name, total in totals.items()
    ]
    lines += [Memory(plan="none", loaded_rss_bytes=10**8, answered_rss_bytes=2 * 10**8, peak_rss_bytes=3 * 10**8)]
    if energy:
        lines.append(PowerFacts(source="made up", rail="all", rails=["all"], period_s=0.1))
        lines += [
            EnergyWindow(
                plan=name, what="answer", count=5, seconds=5.0, samples=50, mean_w=10.0, joules_each=total / 50
            )
            for name, total in totals.items()
        ]
    digest = hash_file(bundle / MANIFEST_NAME)
    return make_report(header(*facts, **({"manifest_sha256": digest} | more)), lines, "2026-01-02T04:04:05+00:00")


def validated(bundle: Path, **more: Any) -> validation.Report:
    """A comparison of prunesid-8 in which all is as in PyTorch."""

    def check(stage: Any, what: str, verdict: Any = "pass", **facts: Any) -> validation.Check:
        return validation.Check(stage=stage, what=what, case="case 1", verdict=verdict, **facts)

    given: dict[str, Any] = {
        "schema_version": validation.SCHEMA_VERSION,
        "kind": validation.KIND,
        "created_at": "2026-01-02T03:04:05+00:00",
        "command": "vtexport validate b",
        "bundle": str(bundle),
        "bundle_name": "b",
        "manifest_sha256": hash_file(bundle / MANIFEST_NAME),
        "proof_sha256": "0" * 64,
        "precision": "float32",
        "device": "cpu",
        "backend": "onnxruntime 1.0",
        "pruning_ops": "native library",
        "threads": None,
        "machine": {"cpu": "made up"},
        "versions": {"vtexport": "0"},
        "proof_versions": {},
        "prompts": ["What?"],
        "images": ["generated"],
        "cases": ["image 1, prompt 1"],
        "notes": [],
        "inputs": [check("input", "pixels")],
        "plans": [
            validation.PlanChecks(
                plan="prunesid-8",
                graphs=["vision"],
                checks=[check("op", "kept"), check("pipeline", "features", "differs", measured=0.0123, bound=0.02)],
            )
        ],
        "without_proof": {},
    }
    return validation.Report(**(given | more))


def evaluated(bundle: Path, **more: Any) -> Evaluation:
    """Accuracies of 80, 60 and 70 %."""

    def plan(name: str, tokens: float, accuracy: float) -> PlanReport:
        share = Share(value=accuracy, low=accuracy - 0.1, high=accuracy + 0.1)
        summary = Summary(tasks=1, accuracy=share)
        times = Times(preprocess=1, vision=1, prune=1, prefill=1, first_token=1, total=1, total_p95=1)
        return PlanReport(
            plan=name, method=name.partition("-")[0], keep=None, paper=None, tasks={}, all_tasks=summary,
            question_answering=summary, grounding=None, visual_tokens=tokens, tokens_per_layer=tokens, new_tokens=3,
            times_ms=times, machine={}, records="r",
        )  # fmt: skip

    given: dict[str, Any] = {
        "bundle": str(bundle),
        "source": msgspec.to_builtins(open_bundle(bundle).manifest.source),
        "command": "vtexport eval b",
        "created_at": "2026-01-02T03:04:05+00:00",
        "dataset": "scenes",
        "samples": 40,
        "images": 10,
        "unpruned": "none",
        "bad_lines": [],
        "settings": {"device": "cpu"},
        "machine": {"cpu": "made up"},
        "plans": [plan("none", 64, 0.8), plan("prunesid-8", 8, 0.6), plan("prunesid-16", 16, 0.7)],
    }
    return Evaluation(**(given | more))


def put_measurement(bundle: Path, report: Report, name: str = record.BENCH_NAME) -> None:
    (bundle / record.FOLDER).mkdir(exist_ok=True)
    (bundle / record.FOLDER / name).write_bytes(record.encode(report))


def put_validation(bundle: Path, report: validation.Report) -> None:
    (bundle / validation.FOLDER).mkdir(exist_ok=True)
    (bundle / validation.FOLDER / validation.NAME).write_bytes(validation.encode(report))


def put_evaluation(file: Path, report: Evaluation) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(msgspec.json.encode(report))


def put_proof(
    bundle: Path, kept: dict[str, list[int]], prompt: str = "What?", origin: str = "generated: noise"
) -> None:
    """A proof of one image with these indices by plan and nothing else in it."""

    def fill(folder: Path) -> None:
        pixels = np.random.default_rng(3).integers(0, 256, (90, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "image_1.png")
        np.savez(folder / INPUTS_NAME, none=np.zeros(1))
        for name, indices in kept.items():
            np.savez(folder / f"{name}.npz", **{"0.kept.visual": np.asarray(indices, np.int32)})

    image = ProofImage(file="image_1.png", origin=origin, width=120, height=90, pixels_sha256="0" * 64)
    plans = {
        name: PlanProof(
            file=f"{name}.npz", plan_sha256="0" * 64, created_at="2026-01-02", command="vtexport prove b", versions={},
            answers=[CaseAnswer(visual_tokens=len(indices), margins={})], strides={}, noise={}, overlap={},
        )
        for name, indices in kept.items()
    }  # fmt: skip
    proof = Proof(
        schema_version=1, manifest_sha256="0" * 64, precision="float32", new_tokens=3, images=[image],
        prompts=[prompt], cases=[Case(image=0, prompt=0)], plans=plans, files={},
    )  # fmt: skip
    write_proof(bundle, proof, fill)
