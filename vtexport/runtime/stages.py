"""The stages of an answer, one by one: preprocess, vision, prune, prefill, decode."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

import numpy as np

from vtexport.backends.base import Backend, Buffer
from vtexport.bundle.abilities import ChosenGraphs
from vtexport.bundle.manifest import Plan, StoredTensor
from vtexport.bundle.reader import Bundle
from vtexport.dtypes import DTYPES
from vtexport.errors import BundleError, UsageError
from vtexport.runtime.adaptive import BudgetChooser
from vtexport.runtime.answers import VisualTokens, reported
from vtexport.runtime.images import LoadedImage
from vtexport.runtime.language_model import LanguageModel, Sequence
from vtexport.runtime.positions import image_span, prompt_positions
from vtexport.runtime.prompt import Prompt, Question
from vtexport.runtime.reuse import PromptRows, Reuse
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
        rows: Of the prompt.
        reused_tokens: Tokens of the prompt whose keys and values were there already.
        tokens: The new ones that ran.
    """

    sequence: Sequence
    logits: np.ndarray
    position: int
    prompt_tokens: int
    rows: PromptRows
    reused_tokens: int = 0
    tokens: list[int] = field(default_factory=list)


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

    def preprocess(self, image: ImageLike | LoadedImage) -> Preprocessed:
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

    def check_images(self, count: int) -> None:
        """Refuses a number of images that the model or the plan does not take in one prompt.

        Raises:
            UsageError: with the number.
        """
        limits, plan = self._manifest.images_per_prompt, self._plans[0]
        if not limits.take(count):
            least, most = limits.least, limits.most
            taken = f"{least} or more" if most is None else f"{least}" if least == most else f"{least} to {most}"
            raise UsageError(
                f"the prompt has {count} images, and this model ({self._manifest.family}) takes {taken} in a prompt; "
                "ask with as many"
            )
        if plan.steps and count > 1:
            raise UsageError(
                f"plan {plan.name} prunes inside the language model, which is for one image, and the prompt has "
                f"{count}; open a plan that prunes before the language model (vtexport inspect lists them)"
            )

    def prefill(
        self,
        visual: VisualTokens | SequenceOf[VisualTokens],
        prompt: Prompt,
        max_new_tokens: int,
        reuse: Reuse | None = None,
    ) -> Continuation:
        """Runs the prompt with the visual tokens in their places.

        Args:
            visual: From `prune`; of a prompt with several images or none, a sequence of them.
            prompt: From `PromptReader.read`.
            max_new_tokens: the most that `decode` will be called for.
            reuse: keys and values of earlier prompts, of which those of the longest common beginning are taken. Give
                them back with `keep`.

        Raises:
            UsageError: prompt and new tokens do not fit the model's positions, another number of images than the
                prompt has places for or the model takes, or bfloat16 visual tokens another type.
            InputError: the numbers left the range of the bundle's precision.
        """
        images = [visual] if isinstance(visual, VisualTokens) else list(visual)
        if len(images) != prompt.images:
            raise UsageError(
                f"the prompt has places for {prompt.images} images and visual tokens of {len(images)} are given; give "
                "as many as it has places for"
            )
        self.check_images(len(images))
        rows, spans = [len(each.keep_indices) for each in images], [each.position_span for each in images]
        texts = [len(span) for span in prompt.spans]
        length, end_position = sum(texts) + sum(rows), sum(texts) + sum(spans)
        limit = self._manifest.decoder.max_position_embeddings
        if end_position + max_new_tokens > limit:
            raise UsageError(
                f"the prompt ends at position {end_position} and {max_new_tokens} new tokens are asked for, "
                f"more than the model's {limit} positions; shorten the prompt or lower max_new_tokens"
            )
        blocks = [self._own(each.block) for each in images]
        axes = self._manifest.position_ids.axes
        positions = prompt_positions(texts, [each.positions for each in images], spans, axes)
        laid_out = PromptRows.of(list(prompt.spans), [each.block for each in images], positions)
        found = reuse.take(laid_out) if reuse is not None and self._goes_on(len(images)) else None
        if found is None:
            sequence, begin = self.language_model.start(length, max_new_tokens, bool(images)), 0
        else:
            sequence, begin = self.language_model.go_on(found[0], found[1], length, max_new_tokens), found[1]
        embeddings = self._embedded(prompt.spans, blocks, begin)
        aux_outputs = {
            name: self._backend.adopt(value) for each in images[:1] for name, value in each.aux_outputs.items()
        }  # for steps, which are for one image
        visual_start = texts[0] if images else None
        logits = self.language_model.prefill(sequence, embeddings, positions[:, begin:], visual_start, aux_outputs)
        return Continuation(sequence, logits, end_position, length, laid_out, begin)

    def keep(self, continuation: Continuation, reuse: Reuse) -> None:
        """Gives the keys and values of a prompt and its answer so far to `reuse`; the continuation has ended then."""
        if self._goes_on(len(continuation.rows.images)):
            tokens = continuation.tokens
            rows = continuation.rows.then(tokens, continuation.position - len(tokens))
            reuse.give(continuation.sequence, rows)

    def _goes_on(self, images: int) -> bool:
        """True where the keys and values of a prompt with so many images are those of its own rows alone.

        Steps inside the language model choose by the end of the prompt.
        """
        return not (images and self._plans[0].steps)

    def _embedded(self, spans: SequenceOf[np.ndarray], blocks: SequenceOf[Buffer], begin: int) -> Buffer:
        """[1, L - begin, W]: the prompt's rows from `begin` on, which is not inside a block."""
        parts: list[Buffer] = []
        at = 0
        for number, span in enumerate(spans):
            skipped = min(max(begin - at, 0), len(span))
            parts.append(self._backend.upload(self._embed(span[skipped:])))
            at += len(span)
            if number < len(blocks):
                if at >= begin:
                    parts.append(blocks[number])
                at += blocks[number].shape[1]
        return self._backend.join(parts)

    def decode(self, continuation: Continuation, token: int) -> np.ndarray:
        """Appends one token to the prompt and gives the logits [V] float32 of the next, in `continuation` as well.

        Raises:
            InputError: the numbers left the range of the bundle's precision.
        """
        embedding = self._backend.upload(self._embed(np.array([token])))
        continuation.logits = self.language_model.decode(continuation.sequence, embedding, continuation.position)
        continuation.position += 1
        continuation.tokens.append(token)
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
