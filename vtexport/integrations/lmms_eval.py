"""A bundle as a model of lmms-eval, so that its tasks (GQA, POPE, TextVQA, RefCOCO, ...) run on it as they are.

    lmms-eval --model vtexport --model_args bundle=llava-64,plan=prunesid-64 --tasks pope,gqa --batch_size 1

lmms-eval finds the model by the entry point `lmms_eval.models`, which is installed with vtexport. The answers are those
of `Pipeline.generate` with the bundle's own chat template, and with the checkpoint's logits processors, as lmms-eval's
own models answer; each task sets the question's wording, the number of tokens and the sampling. Written against
lmms-eval 0.7.3.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from tqdm import tqdm

from vtexport.errors import UsageError
from vtexport.runtime.pipeline import Pipeline

_KNOWN = {"max_new_tokens", "temperature", "top_p", "do_sample", "until", "num_beams"}


def manifest() -> ModelManifest:
    """Entry that lmms-eval's registry loads: the name `vtexport` for `VtexportModel`."""
    return ModelManifest(model_id="vtexport", simple_class_path=f"{__name__}.VtexportModel")


class VtexportModel(lmms):
    """A plan of a bundle behind lmms-eval's model interface, one question at a time, about any number of images.

    Args:
        bundle: the bundle's folder.
        plan: as for `Pipeline.open`.
        device: "cpu", or "cuda" with onnxruntime-gpu; `cuda:0` is taken for `cuda`.
        threads: threads for one operator; all cores when left out.
        seed: for tasks that sample.
        max_new_tokens: where a task names none.
        logits_processors: False leaves the checkpoint's logits processors out.
        batch_size: 1, the only one a bundle has; lmms-eval passes it.
        max_batch_size: not used; lmms-eval passes it.

    Raises:
        UsageError: another batch size, several processes, or a wrong value.
        InputError, BundleError, MissingDependencyError: as `Pipeline.open`.
    """

    is_simple = True

    def __init__(
        self,
        bundle: str = "",
        plan: str | None = None,
        device: str | None = None,
        threads: int | None = None,
        seed: int = 0,
        max_new_tokens: int = 1024,  # as lmms-eval's own LLaVA has it
        logits_processors: bool = True,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if not bundle:
            raise UsageError("no bundle is named; give --model_args bundle=FOLDER")
        if str(batch_size) != "1":
            raise UsageError(f"batch_size is {batch_size} and a bundle answers one question at a time; give 1")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UsageError("lmms-eval was started with several processes and a bundle runs in one; start one")
        self._seed, self._max_new_tokens, self._logits_processors = seed, max_new_tokens, logits_processors
        name = "cpu" if not device else str(device).partition(":")[0]
        self.pipeline = Pipeline.open(str(bundle), plan, device=name, threads=threads)
        self._image_token = self.pipeline.bundle.manifest.text.image_token

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """An answer to each request, in order, with its numbers of tokens (visual ones among the input).

        A document's images stand before its question, wherever the task writes a placeholder.

        Raises:
            UsageError: a question about more images than the model or the plan takes, or one that asks for what a
                bundle does not do, such as beam search.
            InputError: an image cannot be read.
        """
        results = []
        for request in tqdm(requests, desc=f"vtexport {self.pipeline.name}", disable=self.rank != 0):
            context, options, doc_to_visual, doc_id, task, split = request.args
            images = _images(doc_to_visual(self.task_dict[task][split][doc_id]), task, doc_id)
            sampling, until = _options(options, task, self._max_new_tokens)
            question = context.replace(self._image_token, "").strip()
            answer = self.pipeline.generate(
                images, question, seed=self._seed, logits_processors=self._logits_processors, **sampling
            )
            text = _cut(answer.text, until)
            results.append(GenerationResult(text, TokenCounts(answer.prompt_tokens, len(answer.token_ids))))
            self.cache_hook.add_partial("generate_until", (context, options), text)
        return results

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not done by a bundle.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("vtexport answers single questions; choose a task without several rounds")

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Not done by a bundle.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "vtexport generates answers and gives no likelihoods; choose the generate_until variant of the task"
        )


def _images(visuals: Any, task: str, doc_id: Any) -> list[Any]:
    """A document's images as lmms-eval's tasks give them: a list, one alone, or None for a question without any."""
    visuals = list(visuals) if isinstance(visuals, (list, tuple)) else [visuals]
    absent = sum(each is None for each in visuals)
    if absent == len(visuals):
        return []
    if absent:
        raise UsageError(
            f"document {doc_id} of {task} has {len(visuals)} images, of which {absent} are None; check the task's "
            "doc_to_visual"
        )
    return visuals


def _options(given: Mapping[str, Any], task: str, max_new_tokens: int) -> tuple[dict[str, Any], list[str]]:
    """Arguments for `Pipeline.generate`, and the texts before which an answer ends."""
    if (given.get("num_beams") or 1) != 1:
        raise UsageError(
            f"{task} asks for num_beams={given['num_beams']} and a bundle searches no beams; give "
            "--gen_kwargs num_beams=1"
        )
    if unknown := sorted(name for name, value in given.items() if name not in _KNOWN and value is not None):
        warnings.warn(f"vtexport has no {', '.join(unknown)} and passes over what {task} sets", stacklevel=3)
    samples = given.get("do_sample") is not False
    until = given.get("until") or []
    return {
        "max_new_tokens": int(given.get("max_new_tokens") or max_new_tokens),
        "temperature": float(given.get("temperature") or 0.0) if samples else 0.0,
        "top_p": float(given.get("top_p") or 1.0),
    }, [until] if isinstance(until, str) else list(until)


def _cut(text: str, until: Sequence[str]) -> str:
    ends = [text.find(each) for each in until if each and each in text]
    return text[: min(ends)] if ends else text
