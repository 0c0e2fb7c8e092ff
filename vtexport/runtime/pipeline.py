"""From an image and a question to an answer, by the graphs of one plan of a bundle.

`encode` and `generate` are separate steps: the visual tokens of one image serve several questions, and another
language-model runtime can take them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, overload

import numpy as np

from vtexport.bundle.dialects import DIALECTS, RUNS_IN
from vtexport.bundle.manifest import Route, StoredTensor
from vtexport.bundle.reader import Bundle, open_bundle
from vtexport.dtypes import DTYPES
from vtexport.errors import BundleError, UsageError
from vtexport.plugins.libraries import Choice, choose_library
from vtexport.runtime.answers import Answer, AnswerStream, Clock, RouteChoice, VisualTokens, reported, timings
from vtexport.runtime.language_model import LanguageModel
from vtexport.runtime.messages import choose_image
from vtexport.runtime.onnxruntime_backend import Session, check_device, dialect_here
from vtexport.runtime.prompt import Messages, Prompt, PromptReader
from vtexport.runtime.routing import Router
from vtexport.runtime.sampling import Decoding, Sampling
from vtexport.runtime.vision import ImageLike, VisionTower, check_finite

__all__ = ["DIALECTS", "Answer", "AnswerStream", "ImageLike", "Pipeline", "RouteChoice", "VisualTokens"]

MOST_THREADS = 1024  # ONNX Runtime would try to start any number, and fill the memory with their stacks
FURTHER = ("labels",)  # outputs of the prune graph that steps inside the language model read
TEXT_INPUT = "text_embeds"  # of the prune graph, in plans that pick visual tokens by the question


class Pipeline:
    """One plan of a bundle, or a route over several, loaded. Make it with `Pipeline.open`.

    `native` says which library runs the pruning ops, or why the function bodies do; `dialect` which graphs run.
    """

    def __init__(
        self,
        bundle: Bundle,
        plan: str | None = None,
        *,
        device: str = "cpu",
        threads: int | None = None,
        dialect: str | None = None,
    ):
        if threads is not None and not 1 <= threads <= MOST_THREADS:
            raise UsageError(f"threads is {threads}; give a whole number from 1 to {MOST_THREADS}")
        manifest = bundle.manifest
        if manifest.precision not in RUNS_IN:
            raise UsageError(
                f"{bundle.folder} is in {manifest.precision}, which ONNX Runtime does not compute in on the CPU and "
                "which is for TensorRT-RTX engines; build it with --precision fp16 or fp32 to run it here"
            )
        check_device(device)
        self.dialect = dialect = dialect_here(manifest.precision, dialect)
        self.bundle = bundle
        chosen = bundle.plan_or_route(plan)
        self.name = chosen.name
        self._router = Router(bundle, chosen) if isinstance(chosen, Route) else None
        self.plans = self._router.plans if self._router else [bundle.plan(chosen.name)]
        if any(dialect not in each.graphs for each in self.plans):
            raise BundleError(f"{bundle.folder} has no {dialect} graphs; build it again")
        self._dtype = DTYPES[manifest.precision].numpy
        graphs = self.plans[0].graphs[dialect]  # the plans of a route differ in the prune graph alone

        # On a CUDA device the function bodies run there; the library would bring the op back to the CPU.
        self.native = choose_library() if device == "cpu" else Choice(None, f"the device is {device}")
        library = self.native.library

        def load(name: str) -> Session:
            return Session(bundle.path(manifest.graphs[name].file), device, threads, library)

        self._vision = VisionTower(bundle, graphs.vision, device, threads)
        self._prune = {each.name: load(each.graphs[dialect].prune) for each in self.plans}
        self._language_model = LanguageModel(bundle, self.plans[0], dialect, self._dtype, device, threads, library)
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
        dialect: str | None = None,
    ) -> Pipeline:
        """Opens a bundle and loads the graphs of one plan or route.

        Args:
            bundle: the bundle's folder.
            plan: the name of a plan or a route; may be left out where the bundle has one plan, or one route with all
                its plans.
            device: "cpu", or "cuda" with onnxruntime-gpu.
            threads: threads for one operator; all cores when left out.
            dialect: "modern" graphs, or "classic" ones, which older runtimes take too; when left out, the first of them
                that the installed version of ONNX Runtime answers rightly with.

        Raises:
            InputError, BundleError: no such folder, not a whole bundle, or a route without calibration.
            UsageError: no such plan, device or dialect, or a dialect that this ONNX Runtime gives wrong answers with.
            MissingDependencyError: ONNX Runtime or its CUDA provider is not there, or it is too old.
        """
        return cls(open_bundle(bundle), plan, device=device, threads=threads, dialect=dialect)

    @property
    def takes_question(self) -> bool:
        """Whether the plan picks visual tokens by the question."""
        return any(TEXT_INPUT in session.input_names for session in self._prune.values())

    def encode(
        self, image: ImageLike | None = None, prompt: str | Messages | None = None, *, raw_prompt: bool = False
    ) -> VisualTokens:
        """The visual tokens of one image.

        Where the plan picks them by the question (`takes_question`), they are those that matter for this one. They may
        serve another question, which then sees what was picked for the first; the answer's `warnings` say so.

        Args:
            image: a path, a PIL image or an array (as `runtime.images.load_image` takes it). It comes before what the
                conversation's image part names ("path", "url", "image" or "base64"), which is read where it is left
                out; where they differ, `warnings` say that the part's image was passed over. Nothing is fetched.
            prompt: the question or conversation, as for `generate`; a question is of no effect where the plan does not
                look at it.
            raw_prompt: `prompt` is the whole text with the image's placeholder in it.

        Raises:
            UsageError: there is no image, or the plan needs a question and there is none.
            InputError: the image cannot be read.
        """
        question, text = self._question(prompt, raw_prompt)
        clock = Clock()
        image, passed_over = choose_image(image, prompt)
        seen = self._vision.look(image, clock)
        plan, route = self._router.choose(self._vision.patches(seen)) if self._router else (self.plans[0], None)
        kept = self._prune[plan.name].run({**seen.signals, **text})
        check_finite(kept["image_features"], "the projector", self.bundle.manifest.precision)
        clock.lap("prune")
        reports, warnings = reported(plan, kept)
        rows = kept["keep_indices"].shape[1]
        # The rows behind `count` only fill the budget.
        used = int(reports["count"]) if "count" in reports else rows
        vision = self.bundle.manifest.vision
        return VisualTokens(
            embeddings=kept["image_features"][:, :used],
            keep_indices=kept["keep_indices"][0, :used],
            positions=kept["visual_positions"][0, :used],
            position_span=plan.position_span - (rows - used if plan.positions == "contiguous" else 0),
            grid=(vision.grid_height, vision.grid_width),
            image_size=seen.size,
            crop=seen.crop,
            plan=plan.name,
            timings_ms=clock.laps,
            reports=reports,
            warnings=[*passed_over, *seen.warnings, *warnings],
            route=route,
            question=question,
            further={name: value for name, value in kept.items() if name in FURTHER},
        )

    def _question(self, prompt: str | Messages | None, raw: bool) -> tuple[str | None, dict[str, np.ndarray]]:
        """The question's text and its embeddings [1, M, W] float32 as the prune graph's input, where it has one."""
        if not self.takes_question:
            return None, {}
        if prompt is None:
            raise UsageError(
                f"plan {self.name} picks visual tokens by the question; give it as well "
                "(--prompt, or the second argument of encode)"
            )
        self._prompts.render(prompt, raw=raw)  # refuses what `generate` refuses
        text, ids = self._prompts.question(prompt, raw=raw)
        return text, {TEXT_INPUT: self._embedding[ids][None].astype(np.float32)}

    def _other_question(self, visual: VisualTokens, prompt: str | Messages, raw: bool) -> list[str]:
        """A sentence where the visual tokens were picked for another question than this one."""
        if visual.question is None or self._prompts.question(prompt, raw=raw)[0] == visual.question:
            return []
        return [
            f"the visual tokens were picked for {visual.question!r}; encode the image with this question for its own"
        ]

    @overload
    def generate(
        self,
        image: ImageLike | VisualTokens | None = ...,
        prompt: str | Messages = ...,
        *,
        max_new_tokens: int | None = ...,
        temperature: float | None = ...,
        top_p: float | None = ...,
        seed: int | None = ...,
        sampling: Sampling = ...,
        logits_processors: bool = ...,
        raw_prompt: bool = ...,
        stream: Callable[[str], object] | None = ...,
    ) -> Answer: ...

    @overload
    def generate(
        self,
        image: ImageLike | VisualTokens | None = ...,
        prompt: str | Messages = ...,
        *,
        max_new_tokens: int | None = ...,
        temperature: float | None = ...,
        top_p: float | None = ...,
        seed: int | None = ...,
        sampling: Sampling = ...,
        logits_processors: bool = ...,
        raw_prompt: bool = ...,
        stream: Literal[True],
    ) -> AnswerStream: ...

    def generate(
        self,
        image: ImageLike | VisualTokens | None = None,
        prompt: str | Messages = "",
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        sampling: Sampling = "greedy",
        logits_processors: bool = True,
        raw_prompt: bool = False,
        stream: Callable[[str], object] | Literal[True] | None = None,
    ) -> Answer | AnswerStream:
        """Answers a question about an image, or about the visual tokens that `encode` made of one.

        Tokens are chosen greedily unless `temperature` or `sampling` says otherwise, from logits that the checkpoint's
        logits processors (`manifest.generation`) have changed, as in transformers' `generate()` with do_sample=False.
        They see the unpruned prompt's ids, so pruning does not change what they do.

        Args:
            image: an image, or `VisualTokens` of the same plan (see `encode` on tokens picked for another question);
                may be left out where the conversation's image part names its image (see `encode`).
            prompt: a question, or a conversation as a list of messages with one image in it.
            max_new_tokens: stop after this many, 128 when left out; an end token or stop string stops earlier.
            temperature: 0 for greedy decoding, which is the default.
            top_p: sample from the smallest set of tokens with this probability; 1 when left out.
            seed: makes sampling repeatable.
            sampling: "checkpoint" takes what is left out of `max_new_tokens`, `temperature` and `top_p`, and further
                warpers such as top_k, from the checkpoint's generation configuration, which may be greedy, too.
            logits_processors: False leaves the checkpoint's logits processors out.
            raw_prompt: `prompt` is the whole text with the image's placeholder in it, no chat template.
            stream: a function that gets each piece of text as it comes, or True for an iterator over the pieces.

        Raises:
            UsageError: a value is out of range, or the prompt does not fit the model's context.
            InputError: the image cannot be read.
        """
        decoding = Decoding(
            self.bundle.manifest.generation,
            sampling=sampling,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            logits_processors=logits_processors,
            max_new_tokens=max_new_tokens,
        )
        if isinstance(image, VisualTokens) and image.plan not in self._prune:
            raise UsageError(f"these visual tokens were made with plan {image.plan}, this pipeline runs {self.name}")
        pieces = AnswerStream(self._pieces(image, prompt, raw_prompt, decoding))
        if stream is True:
            return pieces
        for piece in pieces:
            if stream is not None:
                stream(piece)
        assert pieces.answer is not None
        return pieces.answer

    def _pieces(
        self, image: ImageLike | VisualTokens | None, prompt: str | Messages, raw: bool, decoding: Decoding
    ) -> Iterator[str | Answer]:
        """Pieces of text, and the whole `Answer` last."""
        read = self._prompts.read(prompt, raw=raw)  # before the image: a wrong prompt should not cost a vision pass
        unpruned = self._unpruned(read)
        max_new_tokens = decoding.new_tokens(len(unpruned))
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
        conversation = self._language_model.start(length, max_new_tokens)
        embeddings = np.concatenate(
            [self._embed(read.before), visual.embeddings.astype(self._dtype, copy=False), self._embed(read.after)],
            axis=1,
        )
        start = len(read.before)
        positions = np.concatenate(
            [np.arange(start), start + visual.positions, start + visual.position_span + np.arange(len(read.after))]
        )
        logits = self._language_model.prefill(conversation, embeddings, positions, start, visual.further)
        clock.lap("prefill")

        decoder = self._prompts.stream()
        eos, vocabulary = self.bundle.manifest.text.eos_token_ids, self.bundle.manifest.decoder.vocabulary
        choose = decoding.start(unpruned, max_new_tokens, eos, vocabulary, self._prompts.tokenizer)
        token_ids: list[int] = []
        while True:
            token = choose(logits)
            token_ids.append(token)
            if len(token_ids) == 1:
                clock.lap("first_token")
            yield decoder.step(token)  # of an end token, too, which has text where it is not a special one
            if choose.finish_reason is not None:
                break
            position = end_position + len(token_ids) - 1
            logits = self._language_model.decode(conversation, self._embed(np.array([token])), position)
        yield decoder.finish()
        clock.lap("decode")
        yield Answer(
            text=decoder.text,
            token_ids=token_ids,
            finish_reason=choose.finish_reason,
            prompt_tokens=length,
            visual_tokens=len(visual.keep_indices),
            keep_indices=visual.keep_indices.tolist(),
            kept_by_layer={
                step.layer: kept.tolist() for step, kept in zip(self.plans[0].steps, conversation.kept, strict=True)
            },
            timings_ms=timings(visual, clock.laps, encoded_here=visual is not image),
            plan=visual.plan,
            reports=visual.reports,
            warnings=[*visual.warnings, *self._other_question(visual, prompt, raw)],
            route=visual.route,
        )

    def _unpruned(self, read: Prompt) -> np.ndarray:
        """The prompt's ids [L] int64 as transformers has them: a placeholder for each of the image's visual tokens."""
        manifest = self.bundle.manifest
        placeholders = np.full(manifest.vision.tokens, manifest.text.image_token_id, np.int64)
        return np.concatenate([read.before, placeholders, read.after])

    def _embed(self, ids: np.ndarray) -> np.ndarray:
        """[1, S, W] rows of the memory-mapped embedding table."""
        return self._embedding[ids][None].astype(self._dtype, copy=False)


def _map(bundle: Bundle, tensor: StoredTensor) -> np.ndarray:
    if tensor.dtype not in RUNS_IN:
        raise BundleError(
            f"the bundle's embedding has dtype {tensor.dtype}, which ONNX Runtime's CPU backend cannot take"
        )
    return np.memmap(
        bundle.path(tensor.file), DTYPES[tensor.dtype].numpy, "r", offset=tensor.offset, shape=tuple(tensor.shape)
    )
