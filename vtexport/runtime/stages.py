"""The stages of an answer, one by one: preprocess, vision, prune, prefill, decode."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np

from vtexport.backends.base import Backend, Buffer
from vtexport.bundle.abilities import ChosenGraphs
from vtexport.bundle.manifest import Plan, StoredTensor
from vtexport.bundle.reader import Bundle
from vtexport.dtypes import DTYPES
from vtexport.errors import BundleError, UsageError
from vtexport.runtime.adaptive import BudgetChooser
from vtexport.runtime.answers import VisualTokens, reported
from vtexport.runtime.language_model import LanguageModel, Sequence
from vtexport.runtime.positions import image_span, prompt_positions
from vtexport.runtime.prompt import Prompt, Question
from vtexport.runtime.vision import ImageLike, Preprocessed, VisionOutput, VisionStage, check_finite

TEXT_INPUT = "text_embeds"  # of the prune graph, in plans that pick visual tokens by the question


@dataclass
class Continuation:
    """A prompt after its prefill, and the new tokens that it was continued by.

    Attributes:
        sequence: The language model's caches.
        logits: [V] float32, from which the next token is chosen.
        position: Position id of the next token.
        prompt_tokens: Visual and text tokens of the prompt.
    """

    sequence: Sequence
    logits: np.ndarray
    position: int
    prompt_tokens: int


class Stages:
    """The graphs of one plan, or of those that an adaptive plan chooses from, loaded.

    A pipeline answers by these methods, and a measurement calls them one by one; `sync` waits for what one has begun.
    """

    def __init__(
        self,
        bundle: Bundle,
        plans: SequenceOf[Plan],
        graphs: SequenceOf[ChosenGraphs],
        backend: Backend,
        chooser: BudgetChooser | None,
    ):
        self._manifest, self._plans, self._backend, self._chooser = bundle.manifest, plans, backend, chooser
        files = self._manifest.graphs
        first = graphs[0]  # the plans of an adaptive one differ in the prune graph alone
        self._vision = VisionStage(bundle, first.vision, backend)
        self._prune = {
            plan.name: backend.load(bundle.path(files[each.prune].file), plugins=True)
            for plan, each in zip(plans, graphs, strict=True)
        }
        self.language_model = LanguageModel(bundle, plans[0], first, backend)
        self._passed_on = {tensor.name for name in first.prune_llm for tensor in files[name].inputs}
        self._dtype = DTYPES[self._manifest.precision].numpy
        self._embedding = _map(bundle, self._manifest.text.embedding, backend)

    @property
    def takes_question(self) -> bool:
        """True where the plan picks visual tokens by the question."""
        return any(TEXT_INPUT in session.input_names for session in self._prune.values())

    def preprocess(self, image: ImageLike) -> Preprocessed:
        """The pixels of one image, on the host.

        Raises:
            InputError: the image cannot be read.
        """
        return self._vision.preprocess(image)

    def vision(self, image: Preprocessed) -> VisionOutput:
        """Features and signals of one image.

        Raises:
            InputError: the numbers left the range of the bundle's precision.
        """
        return self._vision.run(image)

    def upload(self, array: np.ndarray) -> Buffer:
        """The values of an array where the stages compute, for putting something else in the place of an output."""
        return self._backend.upload(array)

    def prune(self, seen: VisionOutput, question: Question | None = None) -> VisualTokens:
        """The visual tokens of one image, without times.

        Args:
            seen: From `vision`.
            question: From `PromptReader.question`, where the plan takes one.

        Raises:
            InputError: the numbers left the range of the bundle's precision.
        """
        chooser, upload = self._chooser, self._backend.upload
        plan, route = chooser.choose(self._vision.patches(seen)) if chooser else (self._plans[0], None)
        feeds = dict(seen.outputs)
        if question is not None:
            feeds[TEXT_INPUT] = upload(self._embedding[question.ids][None].astype(np.float32))
        kept = self._prune[plan.name].run(feeds)
        block = kept["image_features"]
        check_finite(self._backend.is_finite(block), "the projector", self._manifest.precision)
        reports, warnings = reported(plan, {name: kept[name].numpy() for name in plan.reports})
        rows = block.shape[1]
        # The rows after `count` only fill the budget.
        used = int(reports["count"]) if "count" in reports else rows
        view = self._vision.view
        return VisualTokens(
            block=self._backend.first_rows(block, used) if used < rows else block,
            keep_indices=kept["keep_indices"].numpy()[0, :used],
            positions=kept["visual_positions"].numpy()[:, :used],
            position_span=image_span(
                self._manifest.position_ids,
                self._manifest.vision,
                self._vision.arrangement,
                used if plan.positions == "contiguous" else None,
            ),
            grid=(view.grid_height, view.grid_width),
            image_size=seen.image.image_size,
            crop=seen.image.crop,
            plan=plan.name,
            timings_ms={},
            reports=reports,
            warnings=[*seen.image.warnings, *warnings],
            route=route,
            question=question.text if question else None,
            aux_outputs={name: value for name, value in kept.items() if name in self._passed_on},
        )

    def prefill(self, visual: VisualTokens, prompt: Prompt, max_new_tokens: int) -> Continuation:
        """Runs the prompt with the visual tokens in their place.

        Args:
            visual: From `prune`.
            prompt: From `PromptReader.read`.
            max_new_tokens: the most that `decode` will be called for.

        Raises:
            UsageError: prompt and new tokens do not fit the model's positions, or bfloat16 visual tokens another type.
            InputError: the numbers left the range of the bundle's precision.
        """
        start, rows = len(prompt.before), len(visual.keep_indices)
        after = start + visual.position_span
        length, end_position = start + rows + len(prompt.after), after + len(prompt.after)
        limit = self._manifest.decoder.max_position_embeddings
        if end_position + max_new_tokens > limit:
            raise UsageError(
                f"the prompt ends at position {end_position} and {max_new_tokens} new tokens are asked for, "
                f"more than the model's {limit} positions; shorten the prompt or lower max_new_tokens"
            )
        backend, sequence = self._backend, self.language_model.start(length, max_new_tokens)
        embeddings = backend.join(
            [
                backend.upload(self._embed(prompt.before)),
                self._own(visual.block),
                backend.upload(self._embed(prompt.after)),
            ]
        )
        positions = prompt_positions(start, visual.positions, visual.position_span, len(prompt.after))
        aux_outputs = {name: backend.adopt(value) for name, value in visual.aux_outputs.items()}
        logits = self.language_model.prefill(sequence, embeddings, positions, start, aux_outputs)
        return Continuation(sequence, logits, end_position, length)

    def decode(self, continuation: Continuation, token: int) -> np.ndarray:
        """Appends one token to the prompt and gives the logits [V] float32 of the next, in `continuation` as well.

        Raises:
            InputError: the numbers left the range of the bundle's precision.
        """
        embedding = self._backend.upload(self._embed(np.array([token])))
        continuation.logits = self.language_model.decode(continuation.sequence, embedding, continuation.position)
        continuation.position += 1
        return continuation.logits

    def sync(self) -> None:
        """Waits until the device has done what was begun."""
        self._backend.sync()

    def _own(self, block: Buffer) -> Buffer:
        """Visual tokens in this pipeline's memory and precision, whichever pipeline made them."""
        own = self._manifest.precision
        if block.dtype != own:
            if "bfloat16" in (block.dtype, own):  # which NumPy does not convert
                raise UsageError(f"these visual tokens are in {block.dtype}, this pipeline in {own}; encode with it")
            return self._backend.upload(block.numpy().astype(self._dtype))
        return self._backend.adopt(block)

    def _embed(self, ids: np.ndarray) -> np.ndarray:
        """[1, S, W] rows of the memory-mapped embedding table."""
        return self._embedding[ids][None].astype(self._dtype, copy=False)


def _map(bundle: Bundle, tensor: StoredTensor, backend: Backend) -> np.ndarray:
    abilities = backend.provides.abilities
    if tensor.dtype not in abilities.types:
        raise BundleError(f"the bundle's embedding has dtype {tensor.dtype}, which {abilities.title} cannot take")
    mapped = np.memmap(
        bundle.path(tensor.file), DTYPES[tensor.dtype].numpy, "r", offset=tensor.offset, shape=tuple(tensor.shape)
    )
    return np.asarray(mapped)  # rows of a memmap itself take longer to index
