"""Results of the pipeline: the visual tokens of an image, an answer, a stream of its pieces; with their times."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vtexport.backends.base import Buffer
from vtexport.bundle.manifest import Plan
from vtexport.runtime.images import Crop
from vtexport.runtime.sampling import FinishReason

IMAGE_STAGES = ("preprocess", "vision", "prune")


@dataclass(frozen=True)
class BudgetChoice:
    """The budget that an adaptive plan gave an image, and why."""

    route: str  # the adaptive plan's name
    redundancy: float  # rho, the mean cosine between two patches of the image
    wanted: float  # N', the tokens that the image would get if every budget were there
    budget: int


@dataclass(frozen=True)
class VisualTokens:
    """One encoded image: the rows that enter the prompt, and which patches they stand for."""

    block: Buffer  # [1, N, W], where the backend computes
    keep_indices: np.ndarray  # [N] int64, raster index of the patch, -1 for CLS
    positions: np.ndarray  # [axes, N] int64, counted from the image's place in the prompt
    position_span: int  # position ids that the image takes
    grid: tuple[int, int]  # rows and columns of patches
    image_size: tuple[int, int]  # width and height of the upright image, pixels
    crop: Crop  # the part of it that the grid covers
    plan: str
    timings_ms: dict[str, float]  # preprocess, vision, prune
    reports: dict[str, float] = field(default_factory=dict)  # what the method tells of the image, by name
    warnings: list[str] = field(default_factory=list)  # on reports and files that are not as they should be
    route: BudgetChoice | None = None  # where an adaptive plan chose the plan
    question: str | None = None  # that the tokens were picked for; None where the plan does not look at it
    aux_outputs: dict[str, Buffer] = field(default_factory=dict)  # for pruning steps inside the language model
    reused: bool = False  # from a `Reuse`, which has seen the frame before: `timings_ms` are of then

    @property
    def embeddings(self) -> np.ndarray:
        """[1, N, W] in the bundle's precision, for the host: what another language-model runtime takes."""
        return self.block.numpy()


@dataclass(frozen=True)
class ImageSummary:
    """One image of an answer: what was kept of it, and what is told of it. Fields are as in `VisualTokens`."""

    visual_tokens: int
    keep_indices: list[int]
    plan: str
    reports: dict[str, float]
    warnings: list[str]
    route: BudgetChoice | None
    reused: bool = False


@dataclass(frozen=True)
class Answer:
    """An answer with its token ids and what it cost.

    Of a prompt with one image the fields tell of that. With several, `visual_tokens`, `keep_indices`, `warnings` and
    the times are of all of them together, in order, and what differs from image to image is in `images` alone.
    """

    text: str
    token_ids: list[int]  # the end token included where one came
    finish_reason: FinishReason
    prompt_tokens: int  # visual and text tokens of the prefill
    visual_tokens: int
    keep_indices: list[int]  # image after image
    timings_ms: dict[str, float]  # preprocess, vision, prune, prefill, first_token, decode, total
    plan: str  # the pipeline's, such as an adaptive one's, where images got several plans, or there is none
    # What steps inside the language model kept: layer -> which of the visual tokens that were left before it
    kept_by_layer: dict[int, list[int]] = field(default_factory=dict)
    reports: dict[str, float] = field(default_factory=dict)  # as in `VisualTokens`, of one image alone
    warnings: list[str] = field(default_factory=list)
    route: BudgetChoice | None = None  # of one image alone
    images: list[ImageSummary] = field(default_factory=list)
    reused_tokens: int = 0  # of `prompt_tokens`, those whose keys and values a `Reuse` had


@dataclass
class AnswerStream:
    """Iterates over pieces of text as they are generated; `answer` is there once it is exhausted."""

    _pieces: Generator[str | Answer, bool | None, None]
    answer: Answer | None = field(default=None, init=False)

    def __iter__(self) -> Iterator[str]:
        return filter(None, self.by_token())

    def by_token(self) -> Iterator[str]:
        """The same with an empty piece for a token that completes no text, for who may want to stop after any."""
        for piece in self._pieces:
            if isinstance(piece, Answer):
                self.answer = piece
            else:
                yield piece

    def end(self) -> None:
        """Ends the answer behind the piece that came last, as a stop string does; `answer` is there then."""
        piece = self._pieces.send(True)
        if isinstance(piece, Answer):  # the piece that came last was the rest of the text
            self.answer = piece
        for _ in self.by_token():
            pass

    def close(self) -> None:
        """Leaves the answer where it is; `answer` stays None."""
        self._pieces.close()


class Clock:
    """Milliseconds of the pipeline's own work, by name; `resume` leaves out what somebody else took.

    Args:
        sync: waits for work that a backend has begun, before the clock is read.
    """

    def __init__(self, sync: Callable[[], object] = lambda: None) -> None:
        self.laps: dict[str, float] = {}
        self._sync = sync
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Adds the time since the last call to `name`."""
        self._sync()
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + 1e3 * (now - self._last)
        self._last = now

    def resume(self) -> None:
        """Counts from here on."""
        self._last = time.perf_counter()


def summary(visual: VisualTokens) -> ImageSummary:
    """Summary of one image for an answer."""
    return ImageSummary(
        visual_tokens=len(visual.keep_indices),
        keep_indices=visual.keep_indices.tolist(),
        plan=visual.plan,
        reports=visual.reports,
        warnings=visual.warnings,
        route=visual.route,
        reused=visual.reused,
    )


def asked(visual: VisualTokens, question: str) -> VisualTokens:
    """`visual` with a sentence where it was picked for another question."""
    if visual.question is None or visual.question == question:
        return visual
    picked = f"the visual tokens were picked for {visual.question!r}"
    own = f"{picked}; encode the image with this question for its own"
    return replace(visual, warnings=[*visual.warnings, own])


def of_images(images: Sequence[ImageSummary], plan: str) -> dict[str, Any]:
    """Those fields of `Answer` that tell of its images; `plan` is the pipeline's."""
    alone = images[0] if len(images) == 1 else None
    plans = {image.plan for image in images}
    return {
        "visual_tokens": sum(image.visual_tokens for image in images),
        "keep_indices": [index for image in images for index in image.keep_indices],
        "plan": plans.pop() if len(plans) == 1 else plan,
        "reports": alone.reports if alone else {},
        "warnings": alone.warnings if alone else _numbered(images),
        "route": alone.route if alone else None,
        "images": list(images),
    }


def _numbered(images: Sequence[ImageSummary]) -> list[str]:
    return [f"image {number}: {each}" for number, image in enumerate(images, 1) for each in image.warnings]


def timings(images: Sequence[VisualTokens], laps: Mapping[str, float], *, encoded_here: bool) -> dict[str, float]:
    """Stages in order, those of images summed over them, and counted in the totals only when this answer ran them."""
    encode = laps["encode"] if encoded_here else 0.0
    until_first = encode + laps["prefill"] + laps["first_token"]
    return {
        **{name: sum((visual.timings_ms.get(name, 0.0) for visual in images), 0.0) for name in IMAGE_STAGES},
        "prefill": laps["prefill"],
        "first_token": until_first,
        "decode": laps["decode"],
        "total": until_first + laps["decode"],
    }


def reported(plan: Plan, outputs: Mapping[str, np.ndarray]) -> tuple[dict[str, float], list[str]]:
    """The plan's reports out of the prune graph's outputs, and a sentence for each that breaks one of its limits."""
    values = {name: outputs[name][0].item() for name in plan.reports}
    warnings = []
    for name, limits in plan.reports.items():
        for limit in limits:
            # "not in range" rather than "out of range": NaN is neither
            inside = (limit.least is None or values[name] >= limit.least) and (
                limit.most is None or values[name] <= limit.most
            )
            if not inside:
                warnings.append(f"{plan.name}: {name} is {values[name]:.4g}: {limit.warning}")
    return values, warnings
