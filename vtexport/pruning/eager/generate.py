"""The side of `generate()` and the outer forward pass while a model is pruned.

transformers' generation counts the unpruned prompt and hands caches, masks and images on by methods of the model. Those
that would be wrong for a cache with fewer rows are laid over here, each with the original behind it; what a plan cannot
do is refused before a token is made.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from typing import Any

import torch

from vtexport.errors import UsageError
from vtexport.pruning.eager.cut import cut_of, images_per_row
from vtexport.pruning.eager.patches import Patches

RECORD = "_vtexport_record"  # argument by which the outer forward pass learns of the inner one


@dataclass
class KeptColumns:
    """Columns of input_ids that the inner forward pass's rows are, [B, L'] int64, told to the outer one."""

    columns: torch.Tensor | None = None


class GenerateSide:
    """The methods of one model that are laid over.

    Args:
        model: The `LlavaForConditionalGeneration`.
        patches: Where they are noted, and taken off.
        owner: Number of the `apply`.
        tokens: Placeholders of an image.
        steps: Name of the method where it prunes inside the language model, else None.
    """

    def __init__(self, model: Any, patches: Patches, owner: int, tokens: int, steps: str | None):
        self._model, self._patches, self._owner, self._tokens, self._steps = model, patches, owner, tokens, steps

    def lay(self) -> None:
        """Lays them over."""
        put = self._patches.put
        # generate() would encode the images itself, before the forward pass sees the placeholders.
        put(self._model, "_supports_mm_encoder_outputs", lambda: False)
        # It would also make masks for a cache of fixed size, of the unpruned length; the inner model makes its own.
        put(self._model, "create_masks_for_generate", lambda *, attention_mask=None, **others: attention_mask)
        for name in (
            "forward",
            "prepare_inputs_for_generation",
            "_expand_inputs_for_generation",
            "_prefill",
            "_get_candidate_generator",
            "init_continuous_batching",
        ):
            original = getattr(self._model, name)
            own = getattr(self, f"_over_{name.lstrip('_')}")
            put(self._model, name, functools.wraps(original)(functools.partial(self._call, own, original)))

    def _call(self, own: Any, original: Any, *args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs) if self._patches.removed else own(original, *args, **kwargs)

    def _over_forward(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        """With labels: the loss over the rows that are left, each with its own label."""
        if (
            len(args) < 9
            and kwargs.get("labels") is None
            and not isinstance(kwargs.get("logits_to_keep"), torch.Tensor)
        ):
            return original(*args, **kwargs)
        signature = inspect.signature(original)
        given = dict(signature.bind(*args, **kwargs).arguments)
        further = given.pop("kwargs", {})
        labels, to_keep = given.get("labels"), given.get("logits_to_keep", 0)
        if given.get("pixel_values") is None:
            return original(*args, **kwargs)
        if isinstance(to_keep, torch.Tensor) or (labels is not None and to_keep):
            raise UsageError(
                "a pruned model takes logits_to_keep as a number of rows from the end, and not together with labels; "
                "leave it out and choose from the logits"
            )
        if labels is None:
            return original(*args, **kwargs)
        if further.get("shift_labels") is not None:
            raise UsageError("a pruned model takes labels, not shift_labels; give labels for the unpruned prompt")
        ids = given.get("input_ids")
        if ids is None or labels.shape != ids.shape:
            raise UsageError(
                f"labels have to fit the unpruned input_ids, {None if ids is None else list(ids.shape)}, "
                f"not {list(labels.shape)}"
            )
        record = KeptColumns()
        as_dict = further.pop("return_dict", None)
        del given["labels"]
        outputs = original(**given, **further, return_dict=True, **{RECORD: record})
        assert record.columns is not None
        kept = labels.gather(1, record.columns.to(labels.device))
        sizes = {"vocab_size": self._model.config.text_config.vocab_size}
        loss = self._model.loss_function(logits=outputs.logits, labels=kept, **sizes, **further)
        outputs = type(outputs)(**{**outputs, "loss": loss})
        as_dict = self._model.config.return_dict if as_dict is None else as_dict
        return outputs if as_dict else outputs.to_tuple()

    def _over_prepare_inputs_for_generation(
        self, original: Any, input_ids: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """The column at which a cache goes on with the whole sequence: the first token that it does not stand for."""
        given = dict(inspect.signature(original).bind(input_ids, *args, **kwargs).arguments)
        given |= given.pop("kwargs", {})
        cache, asked = given.get("past_key_values"), given.get("next_sequence_length")
        cut = None if cache is None else cut_of(cache, self._owner)
        if cache is not None and cut is not None and asked is not None:
            cached = int(cache.get_seq_length())
            whole = given.get("inputs_embeds") if given.get("is_first_iteration") else None
            length = (input_ids if whole is None else whole).shape[1]
            new = length - cut.unpruned(cached)
            if asked == length - cached and new > 0:  # else the new tokens were counted otherwise, and rightly
                given["next_sequence_length"] = new
        return original(**given)

    def _over_expand_inputs_for_generation(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        """Beams and further answers to a prompt see all of its images; transformers repeats image by image."""
        given = dict(inspect.signature(original).bind(*args, **kwargs).arguments)
        given |= given.pop("model_kwargs", {})
        size, pixels, ids = given.get("expand_size", 1), given.get("pixel_values"), given.get("input_ids")
        if pixels is None or ids is None or size == 1:
            return original(**given)
        if self._steps is not None:
            raise UsageError(
                f"{self._steps} prunes inside the language model and takes one prompt at a time, not {size} beams or "
                "answers of it; use num_beams=1 and num_return_sequences=1"
            )
        is_image = ids == self._model.config.image_token_id
        images = images_per_row(is_image, len(pixels), self._tokens)
        del given["pixel_values"]
        ids, others = original(**given)
        groups = pixels.unflatten(0, (-1, images)).repeat_interleave(size, dim=0)
        return ids, {**others, "pixel_values": groups.flatten(0, 1)}

    def _over_prefill(
        self,
        original: Any,
        input_ids: torch.Tensor,
        generation_config: Any,
        model_kwargs: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        pruned = self._is_pruned(model_kwargs)
        if pruned and generation_config.prefill_chunk_size is not None:
            raise UsageError(
                f"a pruned model takes a prompt at once, not in chunks (prefill_chunk_size="
                f"{generation_config.prefill_chunk_size}); use prefill_chunk_size=None"
            )
        if pruned and self._steps is not None and not generation_config.use_cache:
            raise UsageError(
                f"{self._steps} prunes inside the language model once for an answer, and without a cache every token "
                "would prune anew; use use_cache=True"
            )
        return original(input_ids, generation_config, model_kwargs, *args, **kwargs)

    def _over_get_candidate_generator(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        if self._steps is not None:
            given = inspect.signature(original).bind(*args, **kwargs).arguments
            if self._is_pruned(given["model_kwargs"]):
                raise UsageError(
                    f"{self._steps} prunes inside the language model by the prompt's last token, which assisted "
                    "generation hides behind its candidates; leave out assistant_model and prompt_lookup_num_tokens"
                )
        return original(*args, **kwargs)

    def _over_init_continuous_batching(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        raise UsageError(
            "continuous batching takes token ids alone, so a pruned model would not see the image; "
            "use generate() with another cache_implementation than 'paged'"
        )

    def _is_pruned(self, model_kwargs: Any) -> bool:
        """True where a generation has images, or goes on behind some."""
        cache = model_kwargs.get("past_key_values")
        return model_kwargs.get("pixel_values") is not None or (
            cache is not None and cut_of(cache, self._owner) is not None
        )
