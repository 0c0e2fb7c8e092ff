"""The language model of one plan: its decoder segments in turn, with the pruning steps between them in prefill."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vtexport.bundle.manifest import Plan
from vtexport.bundle.reader import Bundle
from vtexport.runtime.cache import KVCache
from vtexport.runtime.onnxruntime_backend import Session
from vtexport.runtime.vision import check_finite


@dataclass
class Sequence:
    """Generation state of one prompt and its answer so far: a cache a segment, whose lengths differ after steps.

    Attributes:
        caches: By segment.
        offsets: By segment, what is taken from the position ids of new tokens there.
        kept: Which of the visual tokens each step kept, counted among those before it.
    """

    caches: list[KVCache]
    offsets: list[int]
    kept: list[np.ndarray] = field(default_factory=list)


class LanguageModel:
    """The decoder graphs of a plan, loaded."""

    def __init__(
        self,
        bundle: Bundle,
        plan: Plan,
        dialect: str,
        dtype: np.dtype,
        device: str,
        threads: int | None,
        library: Path | None = None,
    ):
        self._manifest, self._plan, self._dtype = bundle.manifest, plan, dtype
        graphs, sizes = plan.graphs[dialect], bundle.manifest.decoder

        def load(name: str, library: Path | None = None) -> Session:
            return Session(bundle.path(bundle.manifest.graphs[name].file), device, threads, library)

        self._segments = [load(name) for name in graphs.decoder]
        self._steps = [load(name, library) for name in graphs.prune_llm]
        for session, segment in zip(self._segments, plan.segments, strict=True):
            session.check_input(f"past_key_values.{segment.first_layer}.key", sizes.num_key_value_heads, sizes.head_dim)

    def start(self, prompt_tokens: int, new_tokens: int) -> Sequence:
        """Caches for a prompt of that many rows, all visual tokens that enter included, and its answer."""
        sizes, caches = self._manifest.decoder, []
        gone = [0, *(self._plan.visual_tokens - step.keep for step in self._plan.steps)]
        for segment, less in zip(self._plan.segments, gone, strict=True):
            layers = range(segment.first_layer, segment.first_layer + segment.layers)
            capacity = prompt_tokens - less + new_tokens
            caches.append(KVCache(layers, capacity, sizes.num_key_value_heads, sizes.head_dim, self._dtype))
        return Sequence(caches, [0] * len(caches))

    def prefill(
        self,
        sequence: Sequence,
        embeddings: np.ndarray,
        positions: np.ndarray,
        visual_start: int,
        aux_outputs: Mapping[str, np.ndarray],
    ) -> np.ndarray:
        """Runs a prompt and returns the last position's logits [V] float32.

        Args:
            sequence: From `start`; its caches are filled.
            embeddings: [1, S, W].
            positions: [S] int64.
            visual_start: Row of the first visual token.
            aux_outputs: What the op after the vision tower gave for the steps, such as `labels` [1, n].
        """
        hidden, position_ids = embeddings, positions[None].astype(np.int64)
        outputs: dict[str, np.ndarray] = {}
        offset = 0
        for number, (session, cache) in enumerate(zip(self._segments, sequence.caches, strict=True)):
            outputs = self._run(session, cache, hidden, position_ids)
            hidden = outputs.get("hidden_states_out", hidden)
            if number == len(self._steps):
                break
            step, segment = self._plan.steps[number], self._plan.segments[number]
            chosen = self._steps[number].run(
                {
                    **aux_outputs,
                    "hidden_states": hidden,
                    "position_ids": position_ids,
                    "visual_start": np.array([visual_start], np.int64),
                    "keys": outputs[f"new_key_values.{segment.first_layer + segment.layers - 1}.key"],
                    "query": outputs["query"],
                }
            )
            hidden, left = chosen["hidden_states_out"], chosen["position_ids_out"]
            if step.positions == "compacted":
                offset += int(position_ids[0, -1] - left[0, -1])
            sequence.offsets[number + 1] = offset
            position_ids = left
            sequence.kept.append(chosen["keep_indices"][0])
        return self._logits(outputs)

    def decode(self, sequence: Sequence, embedding: np.ndarray, position: int) -> np.ndarray:
        """Runs one new token, embedded [1, 1, W], and returns its logits [V] float32."""
        hidden = embedding
        outputs: dict[str, np.ndarray] = {}
        for session, cache, offset in zip(self._segments, sequence.caches, sequence.offsets, strict=True):
            outputs = self._run(session, cache, hidden, np.array([[position - offset]], np.int64))
            hidden = outputs.get("hidden_states_out", hidden)
        return self._logits(outputs)

    @staticmethod
    def _run(session: Session, cache: KVCache, hidden: np.ndarray, position_ids: np.ndarray) -> dict[str, np.ndarray]:
        feeds = {"inputs_embeds": hidden, "hidden_states": hidden, "position_ids": position_ids, **cache.past()}
        outputs = session.run(feeds)
        cache.append(outputs)
        return outputs

    def _logits(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        logits = outputs["logits"][0, 0].astype(np.float32, copy=False)
        check_finite(logits, "the language model", self._manifest.precision)
        return logits
