"""Pruning a Hugging Face LLaVA in eager PyTorch: how papers are evaluated, and the other side of the parity tests.

`apply` replaces the forward pass of the model's inner part, so `model(...)` and `model.generate(...)` go on taking what
transformers' processor makes, placeholders for all patches included; the visual tokens that a method drops never reach
the language model. The signals come from the tower's own hidden states, independently of the exported graphs.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from vtexport.errors import InputError, UsageError
from vtexport.pruning.arrays import checked_inputs
from vtexport.pruning.eager_steps import StepHooks, StepState
from vtexport.pruning.llm.step import LLMSelection
from vtexport.pruning.method import Schedule, Selection, Sizes
from vtexport.pruning.registry import get_method, make_parameters
from vtexport.pruning.signals import SIGNALS

_MARK = "_vtexport_pruned"  # attribute of a model that is pruned


@dataclass
class _Cut:
    """What a prefill dropped, for the decoding steps on the same cache."""

    columns: torch.Tensor  # [B, L'] places in the unpruned prompt that were kept
    length: int  # L, of the unpruned prompt
    shift: int  # position ids that the images of a row gave up
    steps: StepState | None = None  # where the method prunes inside the language model


class Applied:
    """A model under pruning; `remove()` (or leaving a `with` block) gives the model back as it was.

    Attributes:
        selections: What the last forward pass with images kept behind the vision tower, one `Selection` of batch 1 an
            image.
        steps: What it kept at each step inside the language model.
        extra_signals: Tensors by name for methods that read what no vision tower gives (`text_embeds` [1, M, W],
            `image_embeds` [1, T, W]); used for every image until changed.
    """

    def __init__(self, model: Any, schedule: Schedule, grid: tuple[int, int]):
        self.selections: list[Selection] = []
        self.steps: list[LLMSelection] = []
        self.extra_signals: dict[str, torch.Tensor] = {}
        self.schedule = schedule
        self.method, self.parameters, self.keep = schedule.encoder, schedule.parameters, schedule.visual_tokens
        self._hooks = StepHooks(model.model.language_model, schedule.steps) if schedule.steps else None
        self._model, self._inner, self._grid = model, model.model, grid
        self._original = self._inner.forward
        self._cuts: weakref.WeakKeyDictionary[Any, _Cut] = weakref.WeakKeyDictionary()
        self._inner.forward = self._forward
        # generate() would encode the images itself, before the forward pass sees the placeholders.
        model._supports_mm_encoder_outputs = lambda: False
        setattr(self._inner, _MARK, self)

    def __enter__(self) -> Applied:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Gives the model its own forward pass back. Does nothing the second time."""
        if getattr(self._inner, _MARK, None) is self:
            del self._inner.forward, self._model._supports_mm_encoder_outputs
            delattr(self._inner, _MARK)
            if self._hooks is not None:
                self._hooks.remove()

    def ask(self, question_ids: torch.Tensor) -> None:
        """Sets `text_embeds` to the language model's embeddings of a question's token ids [M] or [1, M]."""
        ids = question_ids.reshape(1, -1).to(self._inner.device)
        self.extra_signals["text_embeds"] = self._inner.get_input_embeddings()(ids).detach()

    def _forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **rest: Any,
    ) -> Any:
        cut = None if past_key_values is None else self._cuts.get(past_key_values)
        if pixel_values is None and cut is None:  # text alone
            if self._hooks is not None:
                self._hooks.begin(None, prefill=False)
            return self._original(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                **rest,
            )
        if pixel_values is not None and (input_ids is None or cut is not None):
            raise UsageError(
                "a pruned model takes images with input_ids, in the first forward pass of a cache; "
                "give the whole conversation with a new cache"
            )
        if rest.get("mm_encoder_outputs"):
            raise UsageError("a pruned model encodes its images itself; give pixel_values, not mm_encoder_outputs")
        if attention_mask is not None and attention_mask.ndim != 2:
            raise UsageError(
                f"a pruned model takes attention_mask as [batch, length], not {list(attention_mask.shape)}; "
                "use a dynamic cache"
            )
        if inputs_embeds is None:
            inputs_embeds = self._inner.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            assert input_ids is not None
            before = input_ids.shape[1]
            if position_ids is None:
                position_ids = _positions(input_ids, attention_mask)
            inputs_embeds, position_ids, cut = self._prefill(input_ids, inputs_embeds, pixel_values, position_ids)
            if past_key_values is not None:
                self._cuts[past_key_values] = cut
        else:
            assert cut is not None
            before = cut.length
            if position_ids is None:
                raise UsageError("a pruned model needs position_ids in decoding steps; model.generate gives them")
            position_ids = position_ids - cut.shift
        if attention_mask is None and pixel_values is not None:
            # Without a mask transformers takes gaps in position_ids for borders between packed sequences.
            attention_mask = torch.ones(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)
        elif attention_mask is not None:
            kept = attention_mask[:, :before].gather(1, cut.columns)
            attention_mask = torch.cat([kept, attention_mask[:, before:]], dim=1)
        if self._hooks is not None:
            assert cut is not None
            if attention_mask is not None and not bool(attention_mask.all()):
                raise UsageError(f"{self.schedule.name} takes prompts without padding; give one prompt at a time")
            self._hooks.begin(cut.steps, prefill=pixel_values is not None)
        outputs = self._original(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **rest,
        )
        if cut is not None and cut.steps is not None and pixel_values is not None:
            self.steps = list(cut.steps.selections)
        return outputs

    def _prefill(
        self, input_ids: torch.Tensor, embeds: torch.Tensor, pixel_values: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, _Cut]:
        """Embeddings [B, L', W] and positions [B, L'] with kept visual tokens alone, and what was cut."""
        tokens = self._grid[0] * self._grid[1]
        is_image = input_ids == self._inner.config.image_token_id
        counts = set(is_image.sum(1).tolist())
        if len(counts) > 1 or counts.pop() * len(input_ids) != len(pixel_values) * tokens:
            raise InputError(
                f"{len(pixel_values)} images of {tokens} visual tokens do not fit the placeholders in input_ids "
                f"({is_image.sum(1).tolist()} in its rows); every row takes the same number of images"
            )
        blocks, visual_positions = self._encode(pixel_values)
        keep = blocks.shape[1]
        span = keep if self.method.positions == "contiguous" else tokens
        images = len(pixel_values) // len(input_ids)
        columns, ids = [], []
        for row in range(len(input_ids)):
            slots = is_image[row].nonzero().flatten().reshape(images, tokens)
            dropped = torch.zeros_like(is_image[row])
            new = positions[row].clone()
            for number, slot in enumerate(slots):
                dropped[slot[keep:]] = True
                start = positions[row, slot[0]] - number * (tokens - span)
                new[slot[-1] + 1 :] = positions[row, slot[-1] + 1 :] - (number + 1) * (tokens - span)
                new[slot[:keep]] = start + visual_positions[row * images + number]
            columns.append((~dropped).nonzero().flatten())
            ids.append(new[columns[-1]])
        kept = torch.stack(columns)
        embeds = embeds.gather(1, kept[:, :, None].expand(-1, -1, embeds.shape[2]))
        visual = is_image.gather(1, kept)[:, :, None]
        embeds = embeds.masked_scatter(visual, blocks.to(embeds.dtype))
        cut = _Cut(kept, input_ids.shape[1], images * (tokens - span))
        if self._hooks is not None:
            if len(pixel_values) != 1 or len(input_ids) != 1:
                raise UsageError(
                    f"{self.schedule.name} prunes inside the language model and takes one prompt with one image at a "
                    f"time, not {len(input_ids)} with {len(pixel_values)} images"
                )
            labels = self.selections[0].details.get("labels")
            cut.steps = StepState(int(visual[0, :, 0].nonzero()[0]), None if labels is None else labels[0])
        return embeds, torch.stack(ids), cut

    def _encode(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Projected kept rows [images, n, W] and their positions [images, n]; n is N, or the count a method reports."""
        given = signals_of(self._inner, pixel_values, self.method.signals(self.parameters))
        projector = self._inner.multi_modal_projector
        features = given.pop("features")
        if not self.method.takes_cls(self.parameters):
            features = features[:, 1:]
        projected = self.method.space(self.parameters) == "projected"
        if projected:
            features = projector(features)
        self.selections = []
        for image in range(len(features)):
            own = {name: value[image : image + 1] for name, value in given.items()}
            own |= {name: self.extra_signals[name] for name in self._missing(own)}
            image_features = features[image : image + 1].detach()
            signals = {name: own[name] for name in self._wanted()}
            checked_inputs(image_features, signals)
            sizes = self._sizes(features, own)
            self.selections.append(self.method.select(image_features, signals, sizes=sizes, parameters=self.parameters))
        used = self._used()
        rows = torch.cat([selection.kept_features[:, :used] for selection in self.selections])
        indices = torch.cat([selection.keep_indices[:, :used] for selection in self.selections])
        if self.method.positions == "contiguous":
            indices = torch.arange(used, device=indices.device).expand_as(indices)
        return (rows if projected else projector(rows)), indices

    def _used(self) -> int:
        """Rows from the front that every image uses: all, or as many as a method reports (`Method.reports`)."""
        if "count" not in self.method.reports(self.parameters):
            return self.keep
        counts = [int(selection.details["count"][0]) for selection in self.selections]
        if len(set(counts)) > 1:
            raise UsageError(
                f"{self.schedule.name} keeps {', '.join(map(str, counts))} tokens of these images with these "
                "parameters; give one image at a time"
            )
        return counts[0]

    def _wanted(self) -> list[str]:
        return [SIGNALS[name].input for name in self.method.signals(self.parameters)]

    def _missing(self, own: Mapping[str, torch.Tensor]) -> list[str]:
        missing = [name for name in self._wanted() if name not in own]
        for name in missing:
            if name not in self.extra_signals:
                how = "ask(question_ids)" if name == "text_embeds" else f"extra_signals[{name!r}]"
                raise UsageError(f"{self.method.name} needs {name}; set it with {how} on what apply() returned")
        return missing

    def _sizes(self, features: torch.Tensor, own: Mapping[str, torch.Tensor]) -> Sizes:
        heads, head_width = own["keys"].shape[2:] if "keys" in own else (1, 1)
        width = own["text_embeds"].shape[2] if "text_embeds" in own else 1
        return Sizes(1, self._grid, features.shape[2], self.keep, heads, head_width, width)


def apply(model: Any, *, method: str, keep: int | None = None, **parameters: Any) -> Applied:
    """Prunes the visual tokens of a Hugging Face LLaVA in place, in `model(...)` and `model.generate(...)`.

    Args:
        model: `LlavaForConditionalGeneration` with one vision feature layer and a CLIP tower; any device and dtype.
        method: Name of the method (`vtexport list methods`).
        keep: The budget N.
        parameters: The method's parameters.

    Returns:
        The handle that undoes it, usable in a `with` statement; see `Applied`.

    Raises:
        UsageError: Unknown method or parameter, a budget outside the method's range, a model that is no LLaVA-1.5 or is
            pruned already.
    """
    inner = getattr(model, "model", None)
    if getattr(getattr(model, "config", None), "model_type", None) != "llava" or inner is None:
        raise UsageError(f"{type(model).__name__} is no LLaVA-1.5 of transformers (LlavaForConditionalGeneration)")
    if hasattr(inner, _MARK):
        raise UsageError("the model is pruned already; call remove() on what apply() returned first")
    config = model.config
    if not isinstance(config.vision_feature_layer, int) or config.vision_feature_select_strategy != "default":
        raise UsageError(
            f"vision_feature_layer={config.vision_feature_layer!r} with "
            f"vision_feature_select_strategy={config.vision_feature_select_strategy!r} cannot be pruned; "
            "one layer and 'default' can"
        )
    side = config.vision_config.image_size // config.vision_config.patch_size
    chosen = get_method(method)
    layers = config.text_config.num_hidden_layers
    given = make_parameters(chosen, parameters)
    return Applied(model, chosen.schedule(given, grid=(side, side), keep=keep, layers=layers), (side, side))


@torch.no_grad()
def signals_of(inner: Any, pixel_values: torch.Tensor, signals: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """`features` [B, 1 + T, D] and those of `signals` that a CLIP tower gives, by tensor name (`Signal.input`).

    From the hidden states that transformers returns: `hidden_states[k]` is the output of block k - 1. The attention row
    and the keys are computed again from the input of the feature layer's block, softmax in float32.
    """
    states = inner.vision_tower(pixel_values, output_hidden_states=True).hidden_states
    blocks = inner.vision_tower.encoder.layers
    layer = inner.config.vision_feature_layer % len(states)
    found = {"features": states[layer]}
    block = blocks[layer - 1]
    attention = block.self_attn
    x = block.layer_norm1(states[layer - 1])
    batch, rows, _ = x.shape
    keys = attention.k_proj(x).view(batch, rows, attention.num_heads, -1)
    if "cls_attention" in signals:
        query = attention.q_proj(x[:, :1]).view(batch, 1, attention.num_heads, -1)
        logits = torch.einsum("bqhd,bkhd->bhqk", query, keys).float() * attention.scale
        found["scores"] = logits.softmax(-1)[:, :, 0, 1:].sum(1)
    if "keys" in signals:
        found["keys"] = keys[:, 1:]
    if "similarity_features" in signals:
        first = round(2 * len(blocks) / 3)
        found["similarity_features"] = torch.stack(states[first:]).float().mean(0)[:, 1:]
    return found


def _positions(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Position ids [B, L] of the unpruned prompt, as transformers counts them: padding does not count."""
    if attention_mask is None:
        return torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)
