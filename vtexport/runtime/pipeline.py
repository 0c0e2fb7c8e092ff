"""From an image and a question to an answer, by the graphs of one plan of a bundle.

`encode` and `generate` are separate steps: the visual tokens of one image serve several questions, and another
language-model runtime can take them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, overload

import numpy as np
from PIL import Image

from vtexport.bundle.manifest import StoredTensor
from vtexport.bundle.reader import Bundle, open_bundle
from vtexport.errors import BundleError, InputError, UsageError
from vtexport.runtime.cache import KVCache
from vtexport.runtime.clock import Clock
from vtexport.runtime.images import Crop, load_image, pixel_values
from vtexport.runtime.onnxruntime_backend import Session, check_device
from vtexport.runtime.prompt import Messages, PromptReader
from vtexport.runtime.sampling import Sampler

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray
DIALECTS = ("modern", "classic")  # ONNX Runtime takes both; the first has fused operators
MOST_THREADS = 1024  # ONNX Runtime would try to start any number, and fill the memory with their stacks
TEXT_INPUT = "text_embeds"  # of the prune graph, in plans that pick visual tokens by the question
_NUMPY: dict[str, np.dtype] = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16)}


@dataclass(frozen=True)
class VisualTokens:
    """What an image became: the rows that enter the prompt, and which patches they stand for."""

    embeddings: np.ndarray  # [1, N, W]
    keep_indices: np.ndarray  # [N] int64, raster index of the patch, -1 for CLS
    positions: np.ndarray  # [N] int64, counted from the image's place in the prompt
    position_span: int  # position ids that the image takes
    grid: tuple[int, int]  # rows and columns of patches
    image_size: tuple[int, int]  # width and height of the upright image, pixels
    crop: Crop  # the part of it that the grid covers
    plan: str
    timings_ms: dict[str, float]  # preprocess, vision, prune
    question: str | None = None  # that the tokens were picked for; None where the plan does not look at it


@dataclass(frozen=True)
class Answer:
    """An answer with its token ids and what it cost."""

    text: str
    token_ids: list[int]  # the end token included where one came
    finish_reason: Literal["eos", "length"]
    prompt_tokens: int  # visual and text tokens of the prefill
    visual_tokens: int
    keep_indices: list[int]
    timings_ms: dict[str, float]  # preprocess, vision, prune, prefill, first_token, decode, total
    plan: str


@dataclass
class AnswerStream:
    """Iterates over pieces of text as they are generated; `answer` is there once it is exhausted."""

    _pieces: Iterator[str | Answer]
    answer: Answer | None = field(default=None, init=False)

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            if isinstance(piece, Answer):
                self.answer = piece
            elif piece:
                yield piece


class Pipeline:
    """One plan of a bundle, loaded. Make it with `Pipeline.open`."""

    def __init__(
        self,
        bundle: Bundle,
        plan: str | None = None,
        *,
        device: str = "cpu",
        threads: int | None = None,
        dialect: str = DIALECTS[0],
    ):
        if threads is not None and not 1 <= threads <= MOST_THREADS:
            raise UsageError(f"threads is {threads}; give a whole number from 1 to {MOST_THREADS}")
        if dialect not in DIALECTS:
            raise UsageError(f"dialect {dialect!r} is not known; choose one of {', '.join(DIALECTS)}")
        check_device(device)
        self.bundle = bundle
        self.plan = bundle.plan(plan)
        manifest = bundle.manifest
        if manifest.precision not in _NUMPY or dialect not in self.plan.graphs:
            raise BundleError(f"{bundle.folder} has no {dialect} graphs that ONNX Runtime can run; build it again")
        self._dtype = _NUMPY[manifest.precision]
        graphs = self.plan.graphs[dialect]

        def load(name: str) -> Session:
            return Session(bundle.path(manifest.graphs[name].file), device, threads)

        self._vision, self._prune = load(graphs.vision), load(graphs.prune)
        self._decoder = [load(name) for name in graphs.decoder]
        self._prompts = PromptReader(bundle)
        self._embedding = _map(bundle, manifest.text.embedding)

    @classmethod
    def open(
        cls,
        bundle: str | Path,
        plan: str | None = None,
        *,
        device: str = "cpu",
        threads: int | None = None,
        dialect: str = DIALECTS[0],
    ) -> Pipeline:
        """Opens a bundle and loads the graphs of one plan.

        Args:
            bundle: the bundle's folder.
            plan: a plan's name; may be left out where the bundle has one plan.
            device: "cpu", or "cuda" with onnxruntime-gpu.
            threads: threads for one operator; all cores when left out.
            dialect: "modern" graphs, or "classic" ones as older TensorRT runs them, to look into a difference there.

        Raises:
            InputError, BundleError: no such folder, or not a whole bundle.
            UsageError: no such plan or device.
            MissingDependencyError: ONNX Runtime or its CUDA provider is not there.
        """
        return cls(open_bundle(bundle), plan, device=device, threads=threads, dialect=dialect)

    @property
    def takes_question(self) -> bool:
        """Whether the plan picks visual tokens by the question."""
        return TEXT_INPUT in self._prune.input_names

    def encode(
        self, image: ImageLike, prompt: str | Messages | None = None, *, raw_prompt: bool = False
    ) -> VisualTokens:
        """The visual tokens of one image.

        Where the plan picks them by the question (`takes_question`), they are those that matter for this one. They may
        serve another question, which then sees what was picked for the first: a choice of the caller's, which nothing
        checks; `VisualTokens.question` says what they were picked for.

        Args:
            image: a path, a PIL image or an array (as `runtime.images.load_image` takes it).
            prompt: the question or conversation, as for `generate`; of no effect where the plan does not look at it.
            raw_prompt: `prompt` is the whole text with the image's placeholder in it.

        Raises:
            UsageError: the plan needs a question and there is none.
            InputError: the image cannot be read.
        """
        question, text = self._question(prompt, raw_prompt)
        clock = Clock()
        upright = load_image(image)
        pixels, crop = pixel_values(upright, self.bundle.manifest.image)
        clock.lap("preprocess")
        signals = self._vision.run({"pixel_values": pixels})
        self._check_finite(signals["features"], "the vision tower")
        clock.lap("vision")
        kept = self._prune.run({**signals, **text})
        self._check_finite(kept["image_features"], "the projector")
        clock.lap("prune")
        vision = self.bundle.manifest.vision
        return VisualTokens(
            embeddings=kept["image_features"],
            keep_indices=kept["keep_indices"][0],
            positions=kept["visual_positions"][0],
            position_span=self.plan.position_span,
            grid=(vision.grid_height, vision.grid_width),
            image_size=upright.size,
            crop=crop,
            plan=self.plan.name,
            timings_ms=clock.laps,
            question=question,
        )

    def _question(self, prompt: str | Messages | None, raw: bool) -> tuple[str | None, dict[str, np.ndarray]]:
        """The question's text and its embeddings [1, M, W] float32 as the prune graph's input, where it has one."""
        if not self.takes_question:
            return None, {}
        if prompt is None:
            raise UsageError(
                f"plan {self.plan.name} picks visual tokens by the question; give it as well "
                "(--prompt, or the second argument of encode)"
            )
        self._prompts.render(prompt, raw=raw)  # refuses what `generate` refuses
        text, ids = self._prompts.question(prompt, raw=raw)
        return text, {TEXT_INPUT: self._embedding[ids][None].astype(np.float32)}

    @overload
    def generate(
        self,
        image: ImageLike | VisualTokens,
        prompt: str | Messages,
        *,
        max_new_tokens: int = ...,
        temperature: float = ...,
        top_p: float = ...,
        seed: int | None = ...,
        raw_prompt: bool = ...,
        stream: Callable[[str], object] | None = ...,
    ) -> Answer: ...

    @overload
    def generate(
        self,
        image: ImageLike | VisualTokens,
        prompt: str | Messages,
        *,
        max_new_tokens: int = ...,
        temperature: float = ...,
        top_p: float = ...,
        seed: int | None = ...,
        raw_prompt: bool = ...,
        stream: Literal[True],
    ) -> AnswerStream: ...

    def generate(
        self,
        image: ImageLike | VisualTokens,
        prompt: str | Messages,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        raw_prompt: bool = False,
        stream: Callable[[str], object] | Literal[True] | None = None,
    ) -> Answer | AnswerStream:
        """Answers a question about an image, or about the visual tokens that `encode` made of one.

        Args:
            image: an image, or `VisualTokens` of the same plan (see `encode` on tokens picked for another question).
            prompt: a question, or a conversation as a list of messages with one image in it.
            max_new_tokens: stop after this many; the end token stops earlier.
            temperature: 0 for greedy decoding.
            top_p: sample from the smallest set of tokens with this probability.
            seed: makes sampling repeatable.
            raw_prompt: `prompt` is the whole text with the image's placeholder in it, no chat template.
            stream: a function that gets each piece of text as it comes, or True for an iterator over the pieces.

        Raises:
            UsageError: a value is out of range, or the prompt does not fit the model's context.
            InputError: the image cannot be read.
        """
        if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {max_new_tokens}; give a whole number from 1")
        sampler = Sampler(temperature, top_p, seed)
        if isinstance(image, VisualTokens) and image.plan != self.plan.name:
            raise UsageError(
                f"these visual tokens were made with plan {image.plan}, this pipeline runs {self.plan.name}"
            )
        pieces = AnswerStream(self._pieces(image, prompt, raw_prompt, max_new_tokens, sampler))
        if stream is True:
            return pieces
        for piece in pieces:
            if stream is not None:
                stream(piece)
        assert pieces.answer is not None
        return pieces.answer

    def _pieces(
        self, image: ImageLike | VisualTokens, prompt: str | Messages, raw: bool, max_new_tokens: int, sampler: Sampler
    ) -> Iterator[str | Answer]:
        """Pieces of text, and the whole `Answer` last."""
        read = self._prompts.read(prompt, raw=raw)  # before the image: a wrong prompt should not cost a vision pass
        clock = Clock()
        visual = image if isinstance(image, VisualTokens) else self.encode(image, prompt, raw_prompt=raw)
        clock.lap("encode")
        length = len(read.before) + len(visual.keep_indices) + len(read.after)
        end_position = len(read.before) + visual.position_span + len(read.after)
        limit = self.bundle.manifest.decoder.max_positions
        if end_position + max_new_tokens > limit:
            raise UsageError(
                f"the prompt ends at position {end_position} and {max_new_tokens} new tokens are asked for, "
                f"more than the model's {limit} positions; shorten the prompt or lower max_new_tokens"
            )
        caches = self._new_caches(length + max_new_tokens)
        embeddings = np.concatenate(
            [self._embed(read.before), visual.embeddings.astype(self._dtype, copy=False), self._embed(read.after)],
            axis=1,
        )
        start = len(read.before)
        positions = np.concatenate(
            [np.arange(start), start + visual.positions, start + visual.position_span + np.arange(len(read.after))]
        )
        logits = self._decode(embeddings, positions, caches)
        clock.lap("prefill")

        decoder = self._prompts.stream()
        eos = set(self.bundle.manifest.text.eos_token_ids)
        token_ids: list[int] = []
        while True:
            token = sampler(logits)
            token_ids.append(token)
            if len(token_ids) == 1:
                clock.lap("first_token")
            if token in eos:
                break
            yield decoder.step(token)
            if len(token_ids) == max_new_tokens:
                break
            position = np.array([end_position + len(token_ids) - 1])
            logits = self._decode(self._embed(np.array([token])), position, caches)
        yield decoder.finish()
        clock.lap("decode")
        yield Answer(
            text=decoder.text,
            token_ids=token_ids,
            finish_reason="eos" if token_ids[-1] in eos else "length",
            prompt_tokens=length,
            visual_tokens=len(visual.keep_indices),
            keep_indices=visual.keep_indices.tolist(),
            timings_ms=_timings(visual, clock.laps, encoded_here=visual is not image),
            plan=self.plan.name,
        )

    def _new_caches(self, capacity: int) -> list[KVCache]:
        """One cache a decoder segment: their lengths differ where a plan prunes between segments."""
        decoder = self.bundle.manifest.decoder
        return [
            KVCache(
                range(segment.first_layer, segment.first_layer + segment.layers),
                capacity,
                decoder.kv_heads,
                decoder.head_dim,
                self._dtype,
            )
            for segment in decoder.segments
        ]

    def _decode(self, hidden: np.ndarray, positions: np.ndarray, caches: list[KVCache]) -> np.ndarray:
        """Runs the decoder on new rows [1, S, W], fills the caches and returns the last position's logits [V]."""
        position_ids = positions[None].astype(np.int64)
        outputs: dict[str, np.ndarray] = {}
        for session, cache in zip(self._decoder, caches, strict=True):
            feeds = {"inputs_embeds": hidden, "hidden_states": hidden, "position_ids": position_ids, **cache.past()}
            outputs = session.run(feeds)
            cache.append(outputs)
            hidden = outputs.get("hidden_states_out", hidden)
        logits = outputs["logits"][0, 0].astype(np.float32, copy=False)
        self._check_finite(logits, "the language model")
        return logits

    def _check_finite(self, values: np.ndarray, stage: str) -> None:
        """Stops where a stage left the range of numbers: what follows would be noise that looks like an answer."""
        if not np.isfinite(values).all():
            half = self._dtype == np.float16
            advice = "build the bundle with --precision fp32" if half else "check the checkpoint's weights"
            raise InputError(
                f"{stage} gave values beyond the range of {self.bundle.manifest.precision} for this input; {advice}"
            )

    def _embed(self, ids: np.ndarray) -> np.ndarray:
        """[1, S, W] rows of the memory-mapped embedding table."""
        return self._embedding[ids][None].astype(self._dtype, copy=False)


def _timings(visual: VisualTokens, laps: dict[str, float], *, encoded_here: bool) -> dict[str, float]:
    """Stages in order; the image's stages are counted in the totals only when this answer ran them."""
    encode = laps["encode"] if encoded_here else 0.0
    until_first = encode + laps["prefill"] + laps["first_token"]
    return {
        **visual.timings_ms,
        "prefill": laps["prefill"],
        "first_token": until_first,
        "decode": laps["decode"],
        "total": until_first + laps["decode"],
    }


def _map(bundle: Bundle, tensor: StoredTensor) -> np.ndarray:
    if tensor.dtype not in _NUMPY:
        raise BundleError(
            f"the bundle's embedding has dtype {tensor.dtype}, which ONNX Runtime's CPU backend cannot take"
        )
    return np.memmap(
        bundle.path(tensor.file), _NUMPY[tensor.dtype], "r", offset=tensor.offset, shape=tuple(tensor.shape)
    )
