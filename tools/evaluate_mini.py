"""Asks the packaged `mini`, or another checkpoint, about held-out scenes and prints how many answers are right.

    python tools/evaluate_mini.py --scenes 300 [--model build/mini/model] [--output result.json]

The model is exported with all of its visual tokens and run as a bundle: greedy answers, nothing but the question given.
An answer counts when it is the true one, letter for letter; a box when it overlaps the true one by at least half (IoU).
Intervals are Wilson's, at 95 %.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from vtexport.build import build
from vtexport.eval.drawing import Box
from vtexport.eval.questions import TASKS, Question
from vtexport.eval.scenes import held_out_scenes
from vtexport.runtime.pipeline import Pipeline

LONGEST_ANSWER = 8  # tokens; a box has four and the one that ends it
_BOX = re.compile(r"\[(\d\.\d+), (\d\.\d+), (\d\.\d+), (\d\.\d+)\]")


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(0.0, width) * max(0.0, height)
    areas = ((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return both / (sum(areas) - both) if both else 0.0


def is_right(question: Question, said: str) -> bool:
    """Whether an answer counts."""
    if question.box is None:
        return said.strip() == question.answer
    found = _BOX.fullmatch(said.strip())
    if found is None:
        return False
    x0, y0, x1, y1 = map(float, found.groups())
    return overlap(question.box, (x0, y0, x1, y1)) >= 0.5


def interval(right: int, number: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z, share = 1.959964, right / number
    middle = (share + z * z / (2 * number)) / (1 + z * z / number)
    half = z / (1 + z * z / number) * math.sqrt(share * (1 - share) / number + z * z / (4 * number * number))
    return middle - half, middle + half


def evaluate(model: str, scenes: int, keep: int | None = None, threads: int | None = None) -> dict[str, Any]:
    """Right answers by task over the first held-out scenes, with all visual tokens or `keep` by prunesid."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        plan = {"method": "none"} if keep is None else {"method": "prunesid", "keep": keep}
        pipeline = Pipeline.open(build(model, Path(folder) / "bundle", **plan).folder, threads=threads)
        for number, scene in enumerate(held_out_scenes(scenes), 1):
            frame = pipeline.encode(scene.image)
            for question in scene.questions:
                said = pipeline.generate(frame, question.question, max_new_tokens=LONGEST_ANSWER).text
                counts[question.task][0] += is_right(question, said)
                counts[question.task][1] += 1
            if number % 50 == 0:
                print(f"{number} of {scenes} scenes", file=sys.stderr)
    tasks = {}
    for task in TASKS:
        right, number = counts[task]
        if number:
            low, high = interval(right, number)
            share = round(right / number, 4)
            tasks[task] = {"right": right, "of": number, "share": share, "low": round(low, 4), "high": round(high, 4)}
    mean = round(sum(row["share"] for row in tasks.values()) / len(tasks), 4)
    return {"model": model, "scenes": scenes, "keep": keep, "tasks": tasks, "mean_over_tasks": mean,
            "seconds": round(time.monotonic() - started, 1)}  # fmt: skip


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--keep", type=int, help="prune to this many visual tokens with prunesid (default: all)")
    parser.add_argument("--threads", type=int, help="of ONNX Runtime (default: its own choice)")
    parser.add_argument("--output", type=Path, help="write the figures there as JSON")
    chosen = parser.parse_args(arguments)
    result = evaluate(chosen.model, chosen.scenes, chosen.keep, chosen.threads)
    for task, row in result["tasks"].items():
        print(f"{task:10} {row['right']:4} of {row['of']:4}  {row['share']:.3f}  [{row['low']:.3f}, {row['high']:.3f}]")
    print(f"mean over tasks {result['mean_over_tasks']:.3f}, {chosen.scenes} scenes, {result['seconds']} s")
    if chosen.output:
        chosen.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
