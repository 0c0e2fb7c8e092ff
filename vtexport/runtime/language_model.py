"""The language model of one plan: its decoder segments in turn, with the pruning steps between them in prefill."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from vtexport.backends.base import Backend, Buffer, Cache, Session
from vtexport.bundle.abilities import ChosenGraphs
from vtexport.bundle.manifest import Plan
from vtexport.bundle.reader import Bundle
from vtexport.runtime.vision import check_finite


@dataclass
class Sequence:
    """Generation state of one prompt and its answer so far: a cache a segment, whose lengths differ after steps.

    Attributes:
        caches: By segment.
        offsets: By segment, what is taken from the position ids of new tokens there.
        kept: [1, n'] of each step: which of the visual tokens it kept, counted among those before it.
    """

    caches: list[Cache]
    offsets: list[int]
    kept: list[Buffer] = field(default_factory=list)


class LanguageModel:
    """The decoder graphs of a plan, loaded."""

    def __init__(self, bundle: Bundle, plan: Plan, graphs: ChosenGraphs, backend: Backend):
        self._manifest, self._plan, self._backend = bundle.manifest, plan, backend
        sizes, files = bundle.manifest.decoder, bundle.manifest.graphs
        self._segments = [backend.load(bundle.path(files[name].file)) for name in graphs.decoder]
        self._steps = [backend.load(bundle.path(files[name].file), plugins=True) for name in graphs.prune_llm]
        for session, segment in zip(self._segments, plan.segments, strict=True):
            session.check_input(f"past_key_values.{segment.first_layer}.key", sizes.num_key_value_heads, sizes.head_dim)

    def start(self, prompt_tokens: int, new_tokens: int, prunes: bool = True) -> Sequence:
        """Caches for a prompt of that many rows, all visual tokens that enter included, and its answer.

        `prunes` is False for a prompt without an image, of which the steps take nothing.
        """
        sizes, caches = self._manifest.decoder, []
        capacities = self._capacities(prompt_tokens, new_tokens, prunes)
        for segment, capacity in zip(self._plan.segments, capacities, strict=True):
            layers = range(segment.first_layer, segment.first_layer + segment.layers)
            caches.append(
                self._backend.cache(
                    layers, capacity, sizes.num_key_value_heads, sizes.head_dim, self._manifest.precision
                )
            )
        return Sequence(caches, [0] * len(caches))

    def go_on(self, sequence: Sequence, length: int, prompt_tokens: int, new_tokens: int) -> Sequence:
        """The same caches with their first `length` rows alone, for another prompt in which no step runs.

        `prompt_tokens` are all rows of that prompt, those that are kept included.
        """
        for cache, capacity in zip(
            sequence.caches, self._capacities(prompt_tokens, new_tokens, prunes=False), strict=True
        ):
            cache.go_on(length, capacity)
        return Sequence(sequence.caches, [0] * len(sequence.caches))

    def _capacities(self, prompt_tokens: int, new_tokens: int, prunes: bool) -> list[int]:
        """Rows that the cache of each segment has to hold."""
        gone = [0, *(self._plan.visual_tokens - step.keep if prunes else 0 for step in self._plan.steps)]
        return [prompt_tokens - less + new_tokens for less in gone]

    def prefill(
        self,
        sequence: Sequence,
        embeddings: Buffer,
        positions: np.ndarray,
        visual_start: int | None,
        aux_outputs: Mapping[str, Buffer],
    ) -> np.ndarray:
        """Runs a prompt and returns the last position's logits [V] float32.

        Args:
            sequence: From `start`, whose caches are filled, or `go_on`, which has the rows before these.
            embeddings: [1, S, W].
            positions: [axes, S] int64.
            visual_start: Row of the first visual token; None where there is none, so that no step runs.
            aux_outputs: What the op after the vision tower gave for the steps, such as `labels` [1, n].
        """
        upload = self._backend.upload
        hidden, position_ids = embeddings, upload(positions.astype(np.int64))
        outputs: dict[str, Buffer] = {}
        last, offset = int(positions[0, -1]), 0  # the last row's position id; what compacting took from it so far
        for number, (session, cache) in enumerate(zip(self._segments, sequence.caches, strict=True)):
            outputs = self._run(session, cache, hidden, position_ids)
            hidden = outputs.get("hidden_states_out", hidden)
            if number == len(self._steps):
                break
            if visual_start is None:
                continue
            step, segment = self._plan.steps[number], self._plan.segments[number]
            chosen = self._steps[number].run(
                {
                    **aux_outputs,
                    "hidden_states": hidden,
                    "position_ids": position_ids,
                    "visual_start": upload(np.array([visual_start], np.int64)),
                    "keys": outputs[f"new_key_values.{segment.first_layer + segment.layers - 1}.key"],
                    "query": outputs["query"],
                }
            )
            rows = hidden.shape[1]
            hidden, position_ids = chosen["hidden_states_out"], chosen["position_ids_out"]
            if step.positions == "compacted":  # numbered through from 0
                offset += last - (hidden.shape[1] - 1)
                last = hidden.shape[1] - 1
            elif step.positions == "official":  # their places before the step
                last = rows - 1
            sequence.offsets[number + 1] = offset
            sequence.kept.append(chosen["keep_indices"])
        return self._logits(outputs)

    def decode(self, sequence: Sequence, embedding: Buffer, position: int) -> np.ndarray:
        """Runs one new token, embedded [1, 1, W], and returns its logits [V] float32."""
        hidden = embedding
        outputs: dict[str, Buffer] = {}
        for session, cache, offset in zip(self._segments, sequence.caches, sequence.offsets, strict=True):
            position_ids = self._backend.upload(np.array([[position - offset]], np.int64))
            outputs = self._run(session, cache, hidden, position_ids)
            hidden = outputs.get("hidden_states_out", hidden)
        return self._logits(outputs)

    @staticmethod
    def _run(session: Session, cache: Cache, hidden: Buffer, position_ids: Buffer) -> dict[str, Buffer]:
        feeds = {"inputs_embeds": hidden, "hidden_states": hidden, "position_ids": position_ids, **cache.past()}
        outputs = session.run(feeds)
        cache.append(outputs)
        return outputs

    def _logits(self, outputs: Mapping[str, Buffer]) -> np.ndarray:
        logits = self._backend.read(outputs["logits"])
        check_finite(bool(np.isfinite(logits).all()), "the language model", self._manifest.precision)
        return logits
