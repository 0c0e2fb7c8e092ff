"""One answer of fixed length by the stages of a pipeline, each with a clock of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import numpy as np

from vtexport.bundle.manifest import AdaptivePlan
from vtexport.bundle.reader import Bundle
from vtexport.errors import UsageError
from vtexport.measure.record import STAGES, PlanFacts
from vtexport.runtime.answers import VisualTokens
from vtexport.runtime.pipeline import Pipeline
from vtexport.runtime.prompt import Prompt, PromptReader, Question
from vtexport.runtime.sampling import Decoding, TokenChooser
from vtexport.runtime.stages import Continuation
from vtexport.runtime.vision import ImageLike, Preprocessed, VisionOutput

P = ParamSpec("P")
T = TypeVar("T")

AGAINST = "against:"


class Stopped(Exception):  # noqa: N818 (no error: somebody asked for the end)
    """Raised between two steps of an answer when the measurement is to end."""


@dataclass(frozen=True)
class Settings:
    """Settings of every answer.

    Attributes:
        prompt: The question.
        new_tokens: Tokens of every answer: neither an end token nor a stop string ends it.
        device: As of `Pipeline`.
        threads: As of `Pipeline`.
        logits_processors: Whether the checkpoint's logits processors run.
    """

    prompt: str
    new_tokens: int = 32
    device: str = "cpu"
    threads: int | None = None
    logits_processors: bool = True


@dataclass(frozen=True)
class Timed:
    """Milliseconds of one answer; `first_token_ms` and `total_ms` are read apart from the stages."""

    stages_ms: dict[str, float]
    decode_ms: list[float]
    first_token_ms: float
    total_ms: float
    prompt_tokens: int
    visual_tokens: int
    token_ids: list[int]


@dataclass(frozen=True)
class Contender:
    """A plan of a bundle that takes part in the turns; `against` marks those of the other bundle."""

    bundle: Bundle
    plan: str
    against: bool = False

    @property
    def name(self) -> str:
        """The plan's, or "against:" and the plan's."""
        return f"{AGAINST if self.against else ''}{self.plan}"

    def facts(self) -> PlanFacts:
        """The plan as a report describes it."""
        chosen = self.bundle.plan_or_adaptive(self.plan)
        return PlanFacts(
            name=self.name,
            plan=self.plan,
            method=None if isinstance(chosen, AdaptivePlan) else chosen.method,
            keep=None if isinstance(chosen, AdaptivePlan) else chosen.keep,
            tokens_per_layer=None if isinstance(chosen, AdaptivePlan) else float(np.mean(chosen.tokens_by_layer())),
            against=self.against,
        )


class MeasuredPlan:
    """A plan, opened, that answers with times. Close it to give its memory back.

    Args:
        contender: the plan.
        settings: of every answer.
        stop: called between two steps; True ends the answer by `Stopped`.

    Raises:
        UsageError, BundleError, MissingDependencyError: as `Pipeline`, or the prompt does not fit.
    """

    def __init__(self, contender: Contender, settings: Settings, stop: Callable[[], bool] = lambda: False):
        bundle = contender.bundle
        self.contender, self.settings, self._stop = contender, settings, stop
        self._reader = PromptReader(bundle)
        self._manifest = bundle.manifest
        self._decoding = Decoding(
            bundle.manifest.generation,
            max_new_tokens=settings.new_tokens,
            logits_processors=settings.logits_processors,
        )
        self._reader.render(settings.prompt)  # refused before anything is loaded
        self.pipeline = Pipeline(bundle, contender.plan, device=settings.device, threads=settings.threads)
        self.stages = self.pipeline.stages

    def close(self) -> None:
        """Gives the memory of the graphs back."""
        self.pipeline.close()

    def answer(self, image: ImageLike) -> Timed:
        """Answers about one image with the steps of `Pipeline.stream`, in its order.

        Raises:
            InputError: the image cannot be read, or numbers left the precision's range.
            UsageError: the prompt does not fit the model's context.
            Stopped: `stop` said so.
        """
        stages, count = self.stages, self.settings.new_tokens
        laps, decoded, token_ids = dict.fromkeys(STAGES, 0.0), list[float](), list[int]()

        def timed(stage: str, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
            if self._stop():
                raise Stopped
            started = time.perf_counter()
            result = step(*args, **kwargs)
            stages.sync()
            laps[stage] += 1e3 * (time.perf_counter() - started)
            return result

        stages.sync()
        begin = time.perf_counter()
        prompt, question, choose = timed("prompt", self._read)
        pixels = timed("preprocess", stages.preprocess, image)
        seen = timed("vision", stages.vision, pixels)
        visual = timed("prune", stages.prune, seen, question)
        continuation = timed("prefill", stages.prefill, visual, prompt, count)
        text = self._reader.stream()

        def chosen() -> int:
            token = choose(continuation.logits)
            text.step(token)
            return token

        token_ids.append(timed("text", chosen))
        first = time.perf_counter()
        for _ in range(count - 1):
            before = laps["decode"]
            timed("decode", stages.decode, continuation, token_ids[-1])
            decoded.append(laps["decode"] - before)
            token_ids.append(timed("text", chosen))
        timed("text", text.finish)
        end = time.perf_counter()
        return Timed(
            stages_ms=laps,
            decode_ms=decoded,
            first_token_ms=1e3 * (first - begin),
            total_ms=1e3 * (end - begin),
            prompt_tokens=continuation.prompt_tokens,
            visual_tokens=len(visual.keep_indices),
            token_ids=token_ids,
        )

    def _read(self) -> tuple[Prompt, Question | None, TokenChooser]:
        """The prompt's ids, the question where the plan looks at it, and who chooses the tokens."""
        prompt = self._reader.read(self.settings.prompt)
        question = self._reader.question(self.settings.prompt) if self.pipeline.takes_question else None
        text, vision = self._manifest.text, self._manifest.vision
        unpruned = prompt.ids(text.image_token_id, [vision.largest.tokens] * prompt.images)
        vocabulary, tokenizer = self._manifest.decoder.vocab_size, self._reader.tokenizer
        # What it says of an end is passed over.
        choose = self._decoding.start(unpruned, self.settings.new_tokens, text.eos_token_ids, vocabulary, tokenizer)
        return prompt, question, choose

    def steps(self, image: ImageLike) -> Steps:
        """The stages of one image with their inputs at hand, to be repeated alone."""
        prompt, question, _ = self._read()
        pixels = self.stages.preprocess(image)
        seen = self.stages.vision(pixels)
        return Steps(self, image, prompt, question, pixels, seen, self.stages.prune(seen, question))


@dataclass(frozen=True)
class Steps:
    """Stages of one image, each to be called alone as often as wanted."""

    plan: MeasuredPlan
    image: ImageLike
    prompt: Prompt
    question: Question | None
    pixels: Preprocessed
    seen: VisionOutput
    visual: VisualTokens

    def prefill(self) -> Continuation:
        """A prefill with room for `new_tokens`."""
        return self.plan.stages.prefill(self.visual, self.prompt, self.plan.settings.new_tokens)

    @property
    def calls(self) -> dict[str, Callable[[], object]]:
        """Functions that run a stage once, by its name: all but decode, which goes on from a prefill."""
        stages = self.plan.stages
        return {
            "preprocess": lambda: stages.preprocess(self.image),
            "vision": lambda: stages.vision(self.pixels),
            "prune": lambda: stages.prune(self.seen, self.question),
            "prefill": self.prefill,
        }


def check_settings(settings: Settings) -> None:
    """Refuses settings that no answer can have, before anything is opened.

    Raises:
        UsageError: they are out of range.
    """
    if settings.new_tokens < 1:
        raise UsageError(f"new tokens are {settings.new_tokens}; give a whole number from 1")
