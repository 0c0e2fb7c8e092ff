"""From images and a question to an answer, by the graphs of one plan of a bundle.

`encode` and `generate` are separate steps: the visual tokens of one image serve several questions, and another
language-model runtime can take them. `stages` has the steps of both, one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np

from vtexport.backends.registry import open_backend
from vtexport.bundle.abilities import choose_graphs, notes_on
from vtexport.bundle.manifest import AdaptivePlan
from vtexport.bundle.reader import Bundle, open_bundle
from vtexport.errors import UsageError
from vtexport.runtime.adaptive import BudgetChooser
from vtexport.runtime.answers import (
    Answer,
    AnswerStream,
    BudgetChoice,
    Clock,
    ImageSummary,
    VisualTokens,
    asked,
    of_images,
    summary,
    timings,
)
from vtexport.runtime.images import read_image
from vtexport.runtime.messages import as_list, choose_images
from vtexport.runtime.prompt import Messages, Prompt, PromptReader, Question
from vtexport.runtime.reuse import Reuse, frame_key
from vtexport.runtime.sampling import Decoding, Sampling, TokenChooser
from vtexport.runtime.stages import Continuation, Stages
from vtexport.runtime.vision import ImageLike

__all__ = ["Answer", "AnswerStream", "BudgetChoice", "ImageLike", "ImageSummary", "Pipeline", "Reuse", "VisualTokens"]

MOST_THREADS = 1024  # ONNX Runtime would try to start any number, and fill the memory with their stacks


class Pipeline:
    """One plan of a bundle, or an adaptive one over several, loaded. Make it with `Pipeline.open`.

    Use it in a `with` block, or `close` it, to give its memory back at once.

    Attributes:
        bundle: What was opened.
        name: Of the plan.
        plans: It, or those that an adaptive one chooses from.
        graphs: The graphs that run, by plan.
        notes: Sentences on graphs that this runtime passes over because it does not answer rightly with them.
        runs_on: Name and version of what computes, such as "ONNX Runtime 1.27.0".
        native: The library that runs the pruning ops, or the reason why their function bodies do.
        stages: The steps of `encode` and `generate`, for a measurement to call one by one.
    """

    def __init__(
        self,
        bundle: Bundle,
        plan: str | None = None,
        *,
        device: str = "cpu",
        threads: int | None = None,
        dialect: str | None = None,
        reuse: Reuse | None = None,
    ):
        if threads is not None and not 1 <= threads <= MOST_THREADS:
            raise UsageError(f"threads is {threads}; give a whole number from 1 to {MOST_THREADS}")
        self._backend = backend = open_backend(device=device, threads=threads)
        abilities, precision = backend.provides.abilities, bundle.manifest.precision
        if precision not in abilities.types:
            raise UsageError(
                f"{bundle.folder} is in {precision}, which {abilities.title} does not compute in and which is "
                "for TensorRT-RTX engines; build it with --precision fp16 or fp32 to run it here"
            )
        self.native, self.runs_on = backend.provides.plugins, abilities.title
        self.bundle = bundle
        chosen = bundle.plan_or_adaptive(plan)
        self.name = chosen.name
        chooser = BudgetChooser(bundle, chosen) if isinstance(chosen, AdaptivePlan) else None
        self.plans = bundle.plans_of(chosen.name)
        self.graphs = [choose_graphs(bundle.manifest, each, abilities, dialect) for each in self.plans]
        self.notes = notes_on(self.graphs, abilities, bundle.manifest)
        self.stages = Stages(bundle, self.plans, self.graphs, backend, chooser)
        self._language_model = self.stages.language_model
        self._prompts = PromptReader(bundle)
        self._reuse, self._closed = reuse, False
        if reuse:
            reuse.own(self)

    @classmethod
    def open(
        cls,
        bundle: str | Path,
        plan: str | None = None,
        *,
        device: str = "cpu",
        threads: int | None = None,
        dialect: str | None = None,
        reuse: Reuse | None = None,
    ) -> Pipeline:
        """Opens a bundle and loads the graphs of one plan, or of all that an adaptive one chooses from.

        Args:
            bundle: the bundle's folder.
            plan: the name of a plan, adaptive ones included; may be left out where the bundle has one plan, or one
                adaptive plan over all others.
            device: "cpu", or "cuda" with onnxruntime-gpu.
            threads: threads for one operator; all cores when left out.
            dialect: for comparing variants of graphs: "modern" or "classic" ones alone. When left out, the first whose
                needs the installed version of ONNX Runtime meets.
            reuse: keeps frames and prompts, so that what is asked again is not computed again.

        Raises:
            InputError, BundleError: no such folder, not a whole bundle, or an adaptive plan that no images have set.
            UsageError: no such plan, device or dialect, or a dialect that this ONNX Runtime gives wrong answers with.
            MissingDependencyError: ONNX Runtime or its CUDA provider is not there, or it is too old.
        """
        return cls(open_bundle(bundle), plan, device=device, threads=threads, dialect=dialect, reuse=reuse)

    def close(self) -> None:
        """Gives the memory of the graphs back; a closed pipeline answers no more."""
        self._closed = True
        if self._reuse:
            self._reuse.clear()
        self._backend.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def takes_question(self) -> bool:
        """True where the plan picks visual tokens by the question."""
        return self.stages.takes_question

    @overload
    def encode(  # type: ignore[overload-overlap]  # a str is a Sequence[str] to a type checker, and one path here
        self, image: ImageLike | None = None, prompt: str | Messages | None = None, *, raw_prompt: bool = False
    ) -> VisualTokens: ...

    @overload
    def encode(
        self, image: Sequence[ImageLike], prompt: str | Messages | None = None, *, raw_prompt: bool = False
    ) -> list[VisualTokens]: ...

    def encode(
        self,
        image: ImageLike | Sequence[ImageLike] | None = None,
        prompt: str | Messages | None = None,
        *,
        raw_prompt: bool = False,
    ) -> VisualTokens | list[VisualTokens]:
        """The visual tokens of one image, or those of each image of a list, one after the other.

        Where the plan picks them by the question (`takes_question`), they are those that matter for this one. They may
        serve another question, which then sees what was picked for the first; the answer's `warnings` say so.

        Args:
            image: a path, a PIL image or an array (as `runtime.images.load_image` takes it), or a list of them. It
                comes before what the conversation's own image part names ("path", "url", "image" or "base64"), which
                is read where it is left out and the conversation has one; where they differ, `warnings` say that the
                part's image was passed over. Nothing is fetched.
            prompt: the question or conversation, as for `generate`; a question is of no effect where the plan does not
                look at it.
            raw_prompt: `prompt` is the whole text with the images' placeholders in it.

        Raises:
            UsageError: there is no image, or the plan needs a question and there is none.
            InputError: an image cannot be read.
        """
        self._check_open()
        question = None
        if self.takes_question:
            if prompt is None:
                raise UsageError(
                    f"plan {self.name} picks visual tokens by the question; give it as well "
                    "(--prompt, or the second argument of encode)"
                )
            given = as_list(image)  # refuses what `generate` refuses
            self._prompts.render(prompt, raw=raw_prompt, images=None if given is None else len(given))
            question = self._prompts.question(prompt, raw=raw_prompt)
        chosen = choose_images(as_list(image), prompt)
        if image is None and len(chosen) != 1:
            raise UsageError(
                f"the conversation holds {len(chosen)} images, and encode without images is for one; give it a list of "
                "images, or the conversation to generate"
            )
        found = [self._encode(each, passed_over, question) for each, passed_over in chosen]
        return found if isinstance(image, (list, tuple)) else found[0]

    def _encode(self, image: ImageLike, passed_over: Sequence[str], question: Question | None) -> VisualTokens:
        stages, clock, reuse = self.stages, Clock(self.stages.sync), self._reuse
        loaded = read_image(image)
        key = frame_key(loaded, question.text if question else None) if reuse is not None else b""
        if reuse is not None and (kept := reuse.frame(key)) is not None:
            return replace(kept, warnings=[*passed_over, *kept.warnings])
        pixels = stages.preprocess(loaded)
        clock.lap("preprocess")
        seen = stages.vision(pixels)
        clock.lap("vision")
        visual = stages.prune(seen, question)
        clock.lap("prune")
        visual = replace(visual, timings_ms=clock.laps)
        if reuse is not None:
            reuse.keep_frame(key, visual)
        return replace(visual, warnings=[*passed_over, *visual.warnings])

    def generate(
        self,
        image: ImageLike | VisualTokens | Sequence[ImageLike | VisualTokens] | None = None,
        prompt: str | Messages = "",
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        sampling: Sampling = "greedy",
        logits_processors: bool = True,
        raw_prompt: bool = False,
        stream: Callable[[str], object] | None = None,
    ) -> Answer:
        """Answers a question about an image, about several, or about none.

        Tokens are chosen greedily unless `temperature` or `sampling` says otherwise, from logits that the checkpoint's
        logits processors (`manifest.generation`) have changed, as in transformers' `generate()` with do_sample=False.
        They see the unpruned prompt's ids, so pruning does not change what they do.

        Args:
            image: an image, or `VisualTokens` of the same plan (see `encode` on tokens picked for another question),
                or a list of either, each of which is pruned to the plan's budget: as many as the prompt has places
                for, [] for a question without an image. May be left out where the conversation's image parts name
                their images (see `encode`), which are read in order, or where it has none.
            prompt: a question, before which the images stand, or a conversation as a list of messages with the images
                in their places.
            max_new_tokens: stop after this many, 128 when left out; an end token or stop string stops earlier.
            temperature: 0 for greedy decoding, which is the default.
            top_p: sample from the smallest set of tokens with this probability; 1 when left out.
            seed: makes sampling repeatable.
            sampling: "checkpoint" takes what is left out of `max_new_tokens`, `temperature` and `top_p`, and further
                warpers such as top_k, from the checkpoint's generation configuration, which may be greedy, too.
            logits_processors: False leaves the checkpoint's logits processors out.
            raw_prompt: `prompt` is the whole text with a placeholder in it for each image, no chat template.
            stream: a function that gets each piece of text as it comes. See the method `stream` for an iterator.

        Raises:
            UsageError: a value is out of range, the prompt does not fit the model's context, it has places for
                another number of images, or the model or the plan does not take as many.
            InputError: an image cannot be read.
        """
        if stream is not None and not callable(stream):
            raise UsageError(
                f"stream is {stream!r}; give a function, or call Pipeline.stream for an iterator over the pieces"
            )
        options: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "seed": seed, "sampling": sampling}
        options |= {"logits_processors": logits_processors, "raw_prompt": raw_prompt}
        pieces = self.stream(image, prompt, max_new_tokens=max_new_tokens, **options)
        for piece in pieces:
            if stream is not None:
                stream(piece)
        assert pieces.answer is not None
        return pieces.answer

    def stream(
        self,
        image: ImageLike | VisualTokens | Sequence[ImageLike | VisualTokens] | None = None,
        prompt: str | Messages = "",
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        sampling: Sampling = "greedy",
        logits_processors: bool = True,
        raw_prompt: bool = False,
    ) -> AnswerStream:
        """Begins an answer, whose pieces of text come as they are asked for; arguments as of `generate`.

        The call returns after the prefill. Times are those of the pipeline, not of who reads the pieces.

        Raises:
            UsageError, InputError: as `generate`, at the call.
        """
        self._check_open()
        decoding = Decoding(
            self.bundle.manifest.generation,
            sampling=sampling,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            logits_processors=logits_processors,
            max_new_tokens=max_new_tokens,
        )
        given = as_list(image)
        for each in given or ():
            if isinstance(each, VisualTokens) and each.plan not in {plan.name for plan in self.plans}:
                raise UsageError(f"these visual tokens were made with plan {each.plan}, this pipeline runs {self.name}")
        # Before the images: a wrong prompt should not cost a vision pass.
        chosen = choose_images(given, prompt)
        read = self._prompts.read(prompt, raw=raw_prompt, images=len(chosen))
        self.stages.check_images(read.images)
        unpruned = self._unpruned(read)
        limit = decoding.new_tokens(len(unpruned))
        own = self.takes_question
        asks = any(each.question is not None if isinstance(each, VisualTokens) else own for each, _ in chosen)
        question = self._prompts.question(prompt, raw=raw_prompt) if asks else None
        clock = Clock(self.stages.sync)
        images = [
            each if isinstance(each, VisualTokens) else self._encode(each, passed_over, question if own else None)
            for each, passed_over in chosen
        ]
        clock.lap("encode")
        continuation = self.stages.prefill(images, read, limit, self._reuse)
        clock.lap("prefill")
        text, decoder = self.bundle.manifest.text, self.bundle.manifest.decoder
        choose = decoding.start(unpruned, limit, text.eos_token_ids, decoder.vocab_size, self._prompts.tokenizer)
        if question is not None:
            images = [asked(visual, question.text) for visual in images]
        clock.lap("first_token")  # goes on when the first piece is asked for
        encoded_here = not all(isinstance(each, VisualTokens) for each, _ in chosen)
        return AnswerStream(self._pieces(images, continuation, choose, clock, encoded_here))

    def _pieces(
        self,
        images: Sequence[VisualTokens],
        continuation: Continuation,
        choose: TokenChooser,
        clock: Clock,
        encoded_here: bool,
    ) -> Generator[str | Answer, None, None]:
        """Pieces of text, and the whole `Answer` last."""
        clock.resume()
        decoder, stages = self._prompts.stream(), self.stages
        token_ids: list[int] = []
        lap = "first_token"
        try:
            while True:
                token = choose(continuation.logits)
                token_ids.append(token)
                if lap == "first_token":
                    clock.lap(lap)
                    lap = "decode"
                piece = decoder.step(token)  # of an end token, too, which has text where it is not a special one
                clock.lap(lap)
                yield piece
                clock.resume()
                if choose.finish_reason is not None:
                    break
                stages.decode(continuation, token)
        except GeneratorExit:  # its reader has left
            self._keep(continuation)
            raise
        self._keep(continuation)
        rest = decoder.finish()
        clock.lap(lap)
        yield rest
        yield Answer(
            text=decoder.text,
            token_ids=token_ids,
            finish_reason=choose.finish_reason,
            prompt_tokens=continuation.prompt_tokens,
            reused_tokens=continuation.reused_tokens,
            kept_by_layer={
                step.layer: kept.numpy()[0].tolist()
                for step, kept in zip(self.plans[0].steps if images else (), continuation.sequence.kept, strict=True)
            },
            timings_ms=timings(images, clock.laps, encoded_here=encoded_here),
            **of_images([summary(visual) for visual in images], self.name),
        )

    def _keep(self, continuation: Continuation) -> None:
        if self._reuse is not None and not self._closed:
            self.stages.keep(continuation, self._reuse)

    def _unpruned(self, read: Prompt) -> np.ndarray:
        """The prompt's ids [L] int64 as transformers has them: a placeholder for each visual token of each image."""
        manifest = self.bundle.manifest
        return read.ids(manifest.text.image_token_id, [manifest.vision.largest.tokens] * read.images)

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError(f"this pipeline of {self.bundle.folder} is closed; open it again")
