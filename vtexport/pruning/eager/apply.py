"""Pruning a Hugging Face LLaVA in eager PyTorch: how papers are evaluated, and the other side of the parity tests.

`apply` replaces the forward pass of the model's inner part, so `model(...)` and `model.generate(...)` go on taking what
transformers' processor makes, placeholders for all patches included; the visual tokens that a method drops never reach
the language model. The signals come from the tower's own hidden states, independently of the exported graphs.
docs/eager.md says what of `generate` works and what is refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, NoReturn

import torch

from vtexport.errors import UsageError
from vtexport.pruning.eager.cut import ANEW, Cut, Prompts, check_mask, count_positions, cut_of, images_per_row
from vtexport.pruning.eager.encode import Encoder
from vtexport.pruning.eager.generate import RECORD, GenerateSide, KeptColumns
from vtexport.pruning.eager.patches import Patches
from vtexport.pruning.eager.steps import StepHooks, StepState, no_copy
from vtexport.pruning.eager.tower import TowerFacts
from vtexport.pruning.registry import get_method, make_options
from vtexport.pruning.schedule import Schedule
from vtexport.pruning.types import ModelShape, Selection

_MARK = "_vtexport_pruned"  # attribute of a model that is pruned
_NUMBERS = itertools.count(1)
# Decoders whose keys and queries the steps can project anew (`steps.py`): rotation by halves.
_STEPS_TAKE = ("llama", "mistral", "phi3", "qwen2", "qwen3")


class Applied:
    """A model under pruning; `remove()` (or leaving a `with` block) gives the model back as it was.

    Attributes:
        selections: What the last forward pass with images kept behind the vision tower, one `Selection` of batch 1 an
            image.
        steps: What it kept at each step inside the language model, of batch 1; indices count the visual tokens before
            the step.
        extra_signals: Tensors by name for methods that read what no vision tower gives (`text_embeds` [1, M, W],
            `image_embeds` [1, T, W]); used for every image until changed.
    """

    def __init__(self, model: Any, method: str, schedule: Schedule, tower: TowerFacts):
        self.selections: list[Selection] = []
        self.steps: list[Selection] = []
        self.extra_signals: dict[str, torch.Tensor] = {}
        self.method, self.schedule, self.keep = method, schedule, schedule.visual_tokens
        self._inner, self._tokens = model.model, tower.tokens
        self._encoder = Encoder(self._inner, method, schedule, tower)
        self._number = next(_NUMBERS)
        self._original = self._inner.forward
        self._hooks = StepHooks(self._inner.language_model, schedule.steps) if schedule.steps else None
        self._patches = Patches()
        self._patches.put(self._inner, "forward", self._forward)
        self._patches.put(self._inner, _MARK, self)
        GenerateSide(model, self._patches, self._number, self._tokens, method if schedule.steps else None).lay()

    def __enter__(self) -> Applied:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def __deepcopy__(self, memo: Any) -> NoReturn:
        raise no_copy()

    def __reduce__(self) -> NoReturn:
        raise no_copy()

    def remove(self) -> None:
        """Gives the model its own forward pass back. Does nothing the second time."""
        self._patches.remove()
        if self._hooks is not None:
            self._hooks.remove()

    def ask(self, question_ids: torch.Tensor) -> None:
        """Sets `text_embeds` to the language model's embeddings of a question's token ids [M] or [1, M]."""
        ids = question_ids.reshape(1, -1).to(self._inner.device)
        self.extra_signals["text_embeds"] = self._inner.get_input_embeddings()(ids).detach()

    def select(self, seen: Mapping[str, torch.Tensor]) -> Selection:
        """The selection before the language model from what the tower gave of one image (`eager.encode.signals_of`):
        `features` [1, 1 + T, D] and the signals by name."""
        return self._encoder.select(seen, self.extra_signals)

    def _forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        vision_feature_layer: Any = None,
        vision_feature_select_strategy: Any = None,
        image_sizes: Any = None,
        mm_encoder_outputs: Any = None,
        **rest: Any,
    ) -> Any:
        record: KeptColumns | None = rest.pop(RECORD, None)
        tower = {
            "vision_feature_layer": vision_feature_layer,
            "vision_feature_select_strategy": vision_feature_select_strategy,
            "image_sizes": image_sizes,
            "mm_encoder_outputs": mm_encoder_outputs,
        }
        tower = {name: value for name, value in tower.items() if value is not None}
        untouched = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        untouched |= {"past_key_values": past_key_values, "inputs_embeds": inputs_embeds, **tower, **rest}
        if self._patches.removed:  # called by a wrapper that somebody laid over ours
            return self._original(pixel_values=pixel_values, **untouched)
        if tower.get("mm_encoder_outputs"):
            raise UsageError("a pruned model encodes its images itself; give pixel_values, not mm_encoder_outputs")
        cut = None if past_key_values is None else cut_of(past_key_values, self._number)
        if pixel_values is None and cut is None:  # text alone
            return self._original(**untouched)
        if input_ids is not None and inputs_embeds is not None:
            raise UsageError("a pruned model takes input_ids or inputs_embeds, not both; leave one out")
        cached = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        as_dict = rest.pop("return_dict", None)
        given = {"past_key_values": past_key_values, **rest}
        if pixel_values is None:
            assert cut is not None
            if inputs_embeds is None:
                inputs_embeds = self._inner.get_input_embeddings()(input_ids)
            shape = inputs_embeds.shape[0], inputs_embeds.shape[1]
            attention_mask, position_ids = cut.arguments(cached, shape, attention_mask, position_ids)
            given |= {"attention_mask": attention_mask, "position_ids": position_ids, "inputs_embeds": inputs_embeds}
            outputs = self._run(given, cut, prefill=False)
        else:
            if input_ids is None or cut is not None:
                raise UsageError(
                    f"a pruned model takes images with input_ids, in the first forward pass of a cache; {ANEW}"
                )
            self._check_tower(tower)
            prompts = self._prompts(input_ids, len(pixel_values), attention_mask, position_ids, cached)
            outputs = self._prefill(prompts, input_ids, pixel_values, given, record)
        as_dict = self._inner.config.return_dict if as_dict is None else as_dict
        return outputs if as_dict else outputs.to_tuple()

    def _check_tower(self, given: Mapping[str, Any]) -> None:
        """Refuses what would have the tower do something else than the signals suppose."""
        if "image_sizes" in given:
            raise UsageError("a pruned model takes images of one size; leave image_sizes out")
        for name in ("vision_feature_layer", "vision_feature_select_strategy"):
            own = getattr(self._inner.config, name)
            if given.get(name, own) != own:
                raise UsageError(
                    f"a pruned model takes {name}={own!r} from its configuration, not {str(given[name])[:60]!r} in a "
                    "call; leave it out"
                )

    def _prompts(
        self, ids: torch.Tensor, images: int, mask: torch.Tensor | None, positions: torch.Tensor | None, cached: int
    ) -> Prompts:
        """The unpruned prompts, after a look at whether everything fits."""
        rows, length = ids.shape
        is_image = ids == self._inner.config.image_token_id
        each = images_per_row(is_image, images, self._tokens)
        if mask is not None:
            check_mask(mask, rows, cached + length)
        if positions is None:
            positions = count_positions(mask, ids, cached + length)[:, cached:]
        if positions.ndim != 2 or positions.shape[1] != length or len(positions) not in (1, rows):
            raise UsageError(
                f"a pruned model takes position_ids as [{rows}, {length}], one for each of input_ids, not "
                f"{list(positions.shape)}"
            )
        if self._hooks is not None and (rows > 1 or images > 1 or cached):
            raise UsageError(
                f"{self.method} prunes inside the language model and takes one prompt with one image at a "
                f"time, with an empty cache, not {rows} with {images} images behind {cached} tokens"
            )
        return Prompts(is_image, each, self._tokens, cached, mask, positions.expand(rows, -1))

    def _prefill(
        self,
        prompts: Prompts,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        given: dict[str, Any],
        record: KeptColumns | None,
    ) -> Any:
        """The pass that prunes: kept visual tokens in place of the first placeholders of their image."""
        encoded = self._encoder.encode(pixel_values, self.extra_signals)
        kept, mask, positions, cut = prompts.cut(encoded, self._number)
        embeds = self._inner.get_input_embeddings()(input_ids.gather(1, kept))
        rows = encoded.rows.to(embeds.device, embeds.dtype)
        visual = prompts.is_image.gather(1, kept)[:, :, None].to(embeds.device)
        given |= {
            "inputs_embeds": embeds.masked_scatter(visual, rows),
            "attention_mask": mask,
            "position_ids": positions,
        }
        self.selections = encoded.selections
        if self._hooks is not None:
            self._check_training(pixel_values)
            labels = encoded.selections[0].details.get("labels")
            cut.steps = StepState(cut.first, None if labels is None else labels[0])
        outputs = self._run(given, cut, prefill=True)
        if cut.steps is not None:
            self.steps = list(cut.steps.selections)
            for step, chosen in zip(self.schedule.steps, self.steps, strict=True):
                start, end = cut.first, cut.first + step.tokens
                kept = torch.cat([kept[:, :start], kept[:, start:end][:, chosen.keep_indices[0]], kept[:, end:]], dim=1)
        if record is not None:
            record.columns = kept
        if outputs.past_key_values is not None:
            cut.keep_on(outputs.past_key_values)
        outputs.image_hidden_states = rows.flatten(0, 1)
        return outputs

    def _check_training(self, pixel_values: torch.Tensor) -> None:
        if not self._encoder.wants_gradients(pixel_values):
            return
        if any(step.op.merges for step in self.schedule.steps):
            raise UsageError(
                f"{self.method} merges tokens inside the language model, and no gradient comes back through a "
                "merged one; train with another method"
            )
        if getattr(self._inner.language_model, "gradient_checkpointing", False):
            raise UsageError(
                f"{self.method} prunes inside the language model, whose layers gradient checkpointing runs "
                "twice; call model.gradient_checkpointing_disable()"
            )

    def _run(self, given: dict[str, Any], cut: Cut, *, prefill: bool) -> Any:
        """The original forward pass, under the hooks where the method prunes inside the language model."""
        if self._hooks is None:
            return self._original(**given, return_dict=True)
        mask = given["attention_mask"]
        if mask is not None and not bool(mask.all()):
            raise UsageError(f"{self.method} takes prompts without padding; give one prompt at a time")
        assert cut.steps is not None
        with self._hooks.during(cut.steps, prefill=prefill):
            return self._original(**given, return_dict=True)


def apply(model: Any, *, method: str, keep: int | None = None, **parameters: Any) -> Applied:
    """Prunes the visual tokens of a Hugging Face LLaVA in place, in `model(...)` and `model.generate(...)`.

    Args:
        model: `LlavaForConditionalGeneration` with a CLIP or SigLIP tower; any device and dtype.
        method: Name of the method (`vtexport list methods`).
        keep: The budget N.
        parameters: The method's options.

    Returns:
        The handle that undoes it, usable in a `with` statement; see `Applied`.

    Raises:
        UsageError: Unknown method or option, a budget outside the method's range, a model that is no LLaVA-1.5 or is
            pruned already.
    """
    from transformers import LlavaForConditionalGeneration

    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    if not isinstance(model, LlavaForConditionalGeneration) or model.config.model_type != "llava":
        raise UsageError(
            f"{type(model).__name__} is no LLaVA-1.5 of transformers (LlavaForConditionalGeneration); give the model "
            "itself, without wrappers"
        )
    if hasattr(model.model, _MARK):
        raise UsageError("the model is pruned already; call remove() on what apply() returned first")
    text, tower = model.config.text_config, TowerFacts.of(model.config)
    chosen = get_method(method)
    shape = ModelShape(tower.grid, text.num_hidden_layers, has_cls=tower.cls_rows > 0)
    schedule = chosen.plan(make_options(chosen, parameters), shape, keep)
    if "similarity_features" in schedule.signals and len(tower.feature_layers) > 1:
        raise UsageError(
            f"{method} compares features of one layer's width, and this model joins those of layers "
            f"{', '.join(map(str, tower.feature_layers))}; give another method"
        )
    if schedule.steps and (text.model_type not in _STEPS_TAKE or _slides(text)):
        raise UsageError(
            f"{method} prunes inside the language model, which can be of type {', '.join(_STEPS_TAKE)}, without a "
            f"sliding window, not {text.model_type!r} with a window of {getattr(text, 'sliding_window', None)}; use "
            "another method"
        )
    return Applied(model, method, schedule, tower)


def _slides(text: Any) -> bool:
    """True where a decoder's attention sees a window of the sequence only, in any of its layers."""
    kinds = getattr(text, "layer_types", None)
    if kinds is not None:
        return any(kind != "full_attention" for kind in kinds)
    return getattr(text, "sliding_window", None) is not None
