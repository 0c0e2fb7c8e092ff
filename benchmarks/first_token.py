"""Time to first token of every plan of a sweep, by turns, and the sweep's plot with it.

    python benchmarks/first_token.py mini mini-eval/sweep.json --threads 1 --name sweep_mini

`vtexport sweep` asks one plan after the other, so on a machine that does other work its times are of different hours.
Here each plan answers one question about a scene before any answers about the next, in an order that moves on by one a
round, so that all of them meet the same load. The image's stages are in each time. The sweep's result goes to
benchmarks/results/NAME.json with these samples beside it, the plot to docs/images/NAME.png.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path

import msgspec
from machine import describe

from vtexport.eval.plot import draw
from vtexport.eval.report import Report
from vtexport.eval.scenes import held_out_scenes
from vtexport.runtime.pipeline import Pipeline

ROOT = Path(__file__).resolve().parents[1]
WARM_ROUNDS = 2


def by_turns(bundle: str, plans: list[str], threads: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds to the first token, by plan."""
    pipelines = {plan: Pipeline.open(bundle, plan, threads=threads) for plan in plans}
    samples: dict[str, list[float]] = {plan: [] for plan in plans}
    for number, scene in enumerate(held_out_scenes(rounds + WARM_ROUNDS)):
        turn = number % len(plans)
        for plan in plans[turn:] + plans[:turn]:
            answer = pipelines[plan].generate(scene.image, scene.questions[0].question, max_new_tokens=1)
            if number >= WARM_ROUNDS:
                samples[plan].append(answer.timings_ms["first_token"])
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("sweep", type=Path, help="the sweep.json of that bundle")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--name", default="sweep_mini")
    chosen = parser.parse_args()
    result = json.loads(chosen.sweep.read_text())
    before = os.getloadavg()
    samples = by_turns(chosen.bundle, [plan["plan"] for plan in result["plans"]], chosen.threads, chosen.rounds)
    machine = describe(chosen.threads, ("numpy", "onnxruntime")) | {"load_average_before": before}
    result["first_token_by_turns"] = {"machine": machine, "rounds": chosen.rounds, "samples_ms": samples}
    report = msgspec.convert(result, Report)
    for plan in report.plans:
        plan.times_ms.first_token = statistics.median(samples[plan.plan])
    text = json.dumps(result, indent=1, sort_keys=True)
    (ROOT / "benchmarks" / "results" / f"{chosen.name}.json").write_text(text + "\n", encoding="utf-8")
    title = (
        f"{Path(report.bundle).name} on {report.dataset}: {report.samples} questions about {report.images} images, "
        f"whiskers are 95 % intervals; times by turns on {report.machine['cpu']}, threads: {chosen.threads}"
    )
    draw(report, ROOT / "docs" / "images" / f"{chosen.name}.png", title)


if __name__ == "__main__":
    main()
