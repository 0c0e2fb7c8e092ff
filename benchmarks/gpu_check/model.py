"""Cost and gain of selection in a 7B-shaped LLaVA: vision tower, selection, projector and prefill, by budget."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gpu_check.llava import Llava
from gpu_check.measure import call_us, replay_us, summary

TEXT_BEFORE, TEXT_BEHIND = 35, 25  # rows of the prompt around the image
Tensor = Any
# select(features [B, 1 + T, D], scores [B, T], N an image) -> a function that enqueues the selection, and the kept
# features [B, N, D] that are there when it has run.
Select = Callable[[Tensor, Tensor, int], tuple[Callable[[], Any], Tensor]]
# capture(function) -> replay: what a CUDA graph of the function does.
Capture = Callable[[Callable[[], Any]], Callable[[], Any]]


@dataclass(frozen=True)
class Scene:
    """So many crops of an image, and the budgets of all together; the first budget is all tokens."""

    name: str
    crops: int
    budgets: tuple[int, ...]


SCENES = (Scene("LLaVA-1.5", 1, (576, 192, 128, 64)), Scene("LLaVA-NeXT", 5, (2880, 640, 320, 160)))


@torch.no_grad()
def run_scene(
    llava: Llava, scene: Scene, select: Select, *, style: Any, clock: Any, capture: Capture, samples: int
) -> list[dict[str, Any]]:
    """A row a budget, the whole image first. Times are GPU time of each stage's graph, in milliseconds.

    Args:
        style: style(features, scores, N an image), the selection in PyTorch on the same features, timed beside ours.
    """
    parameter = next(llava.decoder.parameters())
    device, dtype = parameter.device, parameter.dtype
    torch.manual_seed(1)
    pixels = _picture(scene.crops, llava.shape.image).to(device, dtype)
    see = capture(lambda: llava.vision(pixels))
    features, scores = (each.clone() for each in llava.vision(pixels))
    vision = _milliseconds(see, samples, clock)
    before, behind = (
        torch.randn(1, rows, llava.shape.width, device=device, dtype=dtype) * 0.02
        for rows in (TEXT_BEFORE, TEXT_BEHIND)
    )
    rows = []
    for budget in scene.budgets:
        whole = budget == scene.budgets[0]
        row: dict[str, Any] = {"model": scene.name, "crops": scene.crops, "visual_tokens": budget, "vision_ms": vision}
        kept = features[:, 1:]
        if not whole:
            choose, kept = select(features, scores, budget // scene.crops)
            row["selection_ms"] = _milliseconds(choose, samples, clock)
            in_torch = functools.partial(style, features, scores, budget // scene.crops)
            try:
                slow, _ = call_us(in_torch, clock, most=7, seconds=1.0)
                row["torch_selection_ms"] = in_milliseconds(summary(slow))
            except Exception as error:  # takes nothing from the other times
                row["torch_selection_error"] = f"{type(error).__name__}: {error}"
        project = capture(functools.partial(llava.projector, kept))
        visual = llava.projector(kept).flatten(0, 1)[None].clone()
        sequence = torch.cat([before, visual, behind], 1)
        prefill = capture(functools.partial(llava.decoder, sequence))
        row |= {
            "rows": sequence.shape[1],
            "projector_ms": _milliseconds(project, samples, clock),
            "prefill_ms": _milliseconds(prefill, samples, clock),
        }
        del project, prefill  # a graph keeps its memory
        rows.append(row)
    return with_ratios(rows)


def _picture(crops: int, side: int) -> Tensor:
    """[crops, 3, side, side]: smooth colours and some noise."""
    coarse = torch.randn(crops, 3, 9, 9)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic", align_corners=False)
    return smooth + 0.1 * torch.randn(crops, 3, side, side)


def _milliseconds(replay: Callable[[], Any], samples: int, clock: Any) -> dict[str, Any]:
    return in_milliseconds(summary(replay_us([replay], samples, clock)))


def in_milliseconds(found: dict[str, Any]) -> dict[str, Any]:
    """A summary in microseconds as one in milliseconds."""
    return {name: [each / 1e3 for each in value] if name == "samples" else value / 1e3 for name, value in found.items()}


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds to every row but the first what follows from the medians:

    selection_share of the prefill; prefill_speedup, the prefill of all tokens over selection and prefill;
    speedup_behind_vision, the same with the projector on both sides; speedup_in_all, with the vision tower too.
    And the row of all tokens gets break_even, see there.
    """
    full = rows[0]

    def median(row: dict[str, Any], *stages: str) -> float:
        return sum(row[f"{stage}_ms"]["median"] for stage in stages if f"{stage}_ms" in row)

    for row in rows[1:]:
        row["selection_share"] = median(row, "selection") / median(row, "prefill")
        if "torch_selection_ms" in row:
            row["torch_selection_share"] = median(row, "torch_selection") / median(row, "prefill")
        row["prefill_speedup"] = median(full, "prefill") / median(row, "selection", "prefill")
        behind = ("selection", "projector", "prefill")
        row["speedup_behind_vision"] = median(full, *behind) / median(row, *behind)
        row["speedup_in_all"] = median(full, "vision", *behind) / median(row, "vision", *behind)
    if len(rows) > 1:
        points = [(row["visual_tokens"], median(row, "projector", "prefill")) for row in rows]
        full["break_even"] = break_even(points, max(median(row, "selection") for row in rows[1:]))
    return rows


def break_even(points: Sequence[tuple[int, float]], selection: float) -> float:
    """The largest budget at which pruning pays: projector and prefill there, and selection, take as long as for all.

    Between measured budgets time counts as linear. 0 where pruning pays at none of them.

    Args:
        points: (visual tokens, milliseconds), all tokens among them.
        selection: Milliseconds, the longest of those measured.
    """
    ordered = sorted(points)
    target = ordered[-1][1] - selection
    if ordered[0][1] > target:
        return 0.0
    found = float(ordered[0][0])
    for (low, low_ms), (high, high_ms) in itertools.pairwise(ordered):
        if high_ms <= target:
            found = float(high)
        elif low_ms <= target:
            return low + (high - low) * (target - low_ms) / (high_ms - low_ms)
    return found
