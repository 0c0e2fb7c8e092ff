"""One plan's answers by PyTorch: transformers' model under vtexport's eager pruning, on prepared pixels and prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from vtexport.bundle.manifest import Plan
from vtexport.errors import InputError
from vtexport.proof.reference import Prompt, Reference
from vtexport.pruning import apply
from vtexport.pruning.eager.apply import Applied
from vtexport.pruning.eager.encode import signals_of
from vtexport.pruning.types import Selection


@dataclass(frozen=True)
class Answered:
    """One case's answer.

    Attributes:
        tensors: `features` [1 + T, D], signals "signal NAME" [...], `rows` [n, W], float32.
        logits: "logits" of the prefill's last position and "last logits" of the last decoding step, [V] float32.
        kept: By place, "visual" or "layer L": indices [n] int64.
        margins: By the reference's name of the margin, after "layer L: " for a step inside the language model.
        tokens, gaps: [K] greedy tokens, and by how much each one's logit is ahead of the second.
    """

    tensors: dict[str, np.ndarray]
    logits: dict[str, np.ndarray]
    kept: dict[str, np.ndarray]
    margins: dict[str, float]
    tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    gaps: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))


class Answerer:
    """transformers' model pruned as a plan says; use it in a `with` block.

    Raises:
        UsageError: `vtexport.pruning.apply` does not take this model or this method.
        InputError: the method plans otherwise than when the bundle was built.
    """

    def __init__(self, reference: Reference, plan: Plan):
        self._reference, self._plan = reference, plan
        self._model = reference.model
        options = {name: value for name, value in plan.parameters.items() if value is not None}
        self._pruned: Applied = apply(self._model, method=plan.method, keep=plan.keep, **options)
        schedule = self._pruned.schedule
        steps = [(step.layer, step.keep) for step in schedule.steps]
        planned = [(step.layer, step.keep) for step in plan.steps]
        if schedule.visual_tokens != plan.visual_tokens or steps != planned:
            self._pruned.remove()
            raise InputError(
                f"{plan.method} keeps {schedule.visual_tokens} tokens with steps {steps} here and the plan {plan.name} "
                f"{plan.visual_tokens} with {planned}; build the bundle again with this vtexport"
            )

    def __enter__(self) -> Answerer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pruned.remove()

    @torch.no_grad()
    def answer(
        self, pixels: np.ndarray, prompt: Prompt, new_tokens: int, follow: np.ndarray | None = None
    ) -> Answered:
        """The answer to one question, of `new_tokens` tokens whether or not an end token is among them.

        With 0 new tokens the language model runs its prefill alone. Each token is decoded behind the best ones before
        it, or behind those of `follow`.

        Raises:
            InputError: a value is not finite, which a replay could not compare.
        """
        pruned, device = self._pruned, self._model.device
        image = torch.from_numpy(pixels).to(device)
        pruned.ask(torch.from_numpy(prompt.question))
        seen = signals_of(self._model.model, image, pruned.schedule.signals)
        tensors = {"features": seen.pop("features")[0]} | {f"signal {name}": each[0] for name, each in seen.items()}
        ids = torch.from_numpy(self._reference.input_ids(prompt)).to(device)
        out = self._model(input_ids=ids, pixel_values=image, use_cache=True, logits_to_keep=1)
        rows = out.image_hidden_states
        logits, cache = {"logits": out.logits[0, -1]}, out.past_key_values
        first = pruned.selections[0]
        kept = {"visual": first.keep_indices[0, : len(rows)]}
        margins = margins_of(first)
        for step, chosen in zip(pruned.schedule.steps, pruned.steps, strict=True):
            place = f"layer {step.layer}"
            kept[place] = chosen.keep_indices[0]
            margins |= {f"{place}: {name}": value for name, value in margins_of(chosen).items()}
        tokens, gaps, last = [], [], logits["logits"]
        for number in range(new_tokens):
            best = torch.topk(last, 2)
            tokens.append(int(best.indices[0]))
            gaps.append(float(best.values[0] - best.values[1]))
            if number + 1 < new_tokens:
                token = tokens[-1] if follow is None else int(follow[number])
                step_ids = torch.tensor([[token]], device=device)
                out = self._model(input_ids=step_ids, past_key_values=cache, use_cache=True)
                last = out.logits[0, -1]
        if new_tokens > 1:
            logits["last logits"] = last
        return Answered(
            tensors=_arrays({**tensors, "rows": rows}, self._plan),
            logits=_arrays(logits, self._plan),
            kept={place: each.cpu().numpy().astype(np.int64) for place, each in kept.items()},
            margins=margins,
            tokens=np.asarray(tokens, np.int64),
            gaps=np.asarray(gaps, np.float32),
        )

    @torch.no_grad()
    def select(self, seen: Mapping[str, np.ndarray], prompt: Prompt) -> tuple[np.ndarray, dict[str, float]]:
        """[n] int64: indices that the op before the language model keeps of `features` [1 + T, D] and signals [...],
        and the margins by which it does."""
        self._pruned.ask(torch.from_numpy(prompt.question))
        given = {name: torch.from_numpy(each.astype(np.float32))[None] for name, each in seen.items()}
        selection = self._pruned.select(given)
        return selection.keep_indices[0].cpu().numpy().astype(np.int64), margins_of(selection)


def margins_of(selection: Selection) -> dict[str, float]:
    """The least of every margin that a reference gives with its selection; infinite ones say nothing."""
    found = {}
    for name, value in selection.details.items():
        if name == "margin" or name.endswith("_margin"):
            least = float(np.min(np.asarray(value.cpu() if isinstance(value, torch.Tensor) else value)))
            if math.isfinite(least):
                found[name] = least
    return found


def why_no_margin(plan: Plan, answers: Sequence[Answered]) -> str | None:
    """The reason why no margin is recorded; None where there is one."""
    if any(each.margins for each in answers):
        return None
    if plan.visual_tokens == answers[0].tensors["features"].shape[0] - 1:
        return "every token is kept, so none is cut"
    return f"{plan.method} chooses by no score"


def _arrays(tensors: Mapping[str, Any], plan: Plan) -> dict[str, np.ndarray]:
    arrays = {name: each.detach().to("cpu", torch.float32).numpy() for name, each in tensors.items()}
    for name, each in arrays.items():
        if not np.isfinite(each).all():
            raise InputError(f"{name} of the plan {plan.name} are not finite in PyTorch; check the checkpoint's weights")
    return arrays
