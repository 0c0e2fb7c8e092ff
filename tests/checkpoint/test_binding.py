"""Stored tensors against what the configuration says: names, ties, quantisation and leftovers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vtexport.checkpoint.aliases import ALIASES
from vtexport.checkpoint.binding import Binding, bind_tensors, judge_names
from vtexport.checkpoint.model_config import ModelConfig, read_model_config
from vtexport.checkpoint.safetensors_index import DTYPE_BYTES, TensorEntry
from vtexport.errors import InputError

FOLDER = Path("somewhere")
Stored = dict[str, TensorEntry]

HEAD, EMBEDDING = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"
PROJECTOR = "multi_modal_projector.linear_1.bias"
WEIGHT = "multi_modal_projector.linear_1.weight"
LAYER = "language_model.model.layers.{}.mlp.up_proj.weight"
BLOCK = "vision_tower.vision_model.encoder.layers.{}."
POST = "vision_tower.vision_model.post_layernorm."


@pytest.fixture(scope="module")
def model() -> ModelConfig:
    """mini, whose head is tied to its embedding."""
    return read_model_config(ALIASES["mini"].folder)


@pytest.fixture(scope="module")
def untied() -> ModelConfig:
    return read_model_config(ALIASES["llava"].folder)


def stored_of(model: ModelConfig, dtype: str = "F32") -> Stored:
    return {
        model.family.hub_name(name): TensorEntry(FOLDER / "model.safetensors", 0, 0, shape, dtype)
        for name, shape in model.shapes.items()
    }


@pytest.fixture
def stored(model: ModelConfig) -> Stored:
    return stored_of(model)


def claiming(model: ModelConfig, method: str | None) -> ModelConfig:
    return replace(model, file=replace(model.file, quantisation=method))


# Names


def test_hub_names_bind_in_model_order(model: ModelConfig, stored: Stored) -> None:
    bound = bind_tensors(dict(reversed(stored.items())), model, FOLDER)
    assert list(bound.tensors) == list(model.shapes)
    assert bound.tensors["language_model.embed_tokens.weight"] is stored[EMBEDDING]
    assert (bound.absent, bound.notes) == ((), ())


def test_names_in_memory_bind_too(model: ModelConfig, stored: Stored) -> None:
    in_memory = {
        name.replace("language_model.model.", "model.language_model.")
        .replace("vision_tower.vision_model.", "model.vision_tower.")
        .replace("multi_modal", "model.multi_modal"): entry
        for name, entry in stored.items()
    }
    assert not set(in_memory) & set(stored)
    assert bind_tensors(in_memory, model, FOLDER) == bind_tensors(stored, model, FOLDER)


def wrapped(stored: Stored, rename: Callable[[str], str]) -> Stored:
    return {rename(name): entry for name, entry in stored.items()}


@pytest.mark.parametrize(
    ("rename", "named"),
    [
        (lambda name: "module." + name, "'module.' (DistributedDataParallel or DeepSpeed)"),
        (lambda name: "_orig_mod." + name, "'_orig_mod.' (torch.compile)"),
        (lambda name: "base_model.model." + name, "'base_model.model.' (peft)"),
        (lambda name: "_forward_module." + name, "'_forward_module.' (Lightning)"),
        (lambda name: "model." + name, "'model.' (doubled)"),
        (lambda name: "_orig_mod.module." + name, "'_orig_mod.' (torch.compile) and 'module.' (Distributed"),
        (
            lambda name: "_fsdp_wrapped_module." + re.sub(r"(layers\.\d+\.)", r"\1_fsdp_wrapped_module.", name),
            "'_fsdp_wrapped_module.' (FSDP)",
        ),
        (lambda name: re.sub(r"(layers\.\d+\.)", r"\1_checkpoint_wrapped_module.", name), "(activation checkpointing)"),
    ],
)
def test_what_trainers_leave_in_names_is_read_and_named(
    untied: ModelConfig, rename: Callable[[str], str], named: str
) -> None:
    stored = stored_of(untied)
    bound = bind_tensors(wrapped(stored, rename), untied, FOLDER)
    assert bound.tensors == bind_tensors(stored, untied, FOLDER).tensors
    assert len(bound.notes) == 1
    assert named in bound.notes[0]
    # a bundle's own files keep the names, and plans that are added later find the tensors by them
    assert {untied.family.canonical_name(rename(name)) for name in stored} == set(untied.shapes)


def test_an_unknown_prefix_is_named_with_the_step_that_removes_it(untied: ModelConfig) -> None:
    for rename in (lambda name: "net.vlm." + name, lambda name: "module.net.vlm." + name):
        with pytest.raises(InputError, match=r"with '(module\.)?net\.vlm\.' in front.*removeprefix\('") as caught:
            bind_tensors(wrapped(stored_of(untied), rename), untied, FOLDER)
        assert len(str(caught.value)) < 320


def test_tensors_under_several_unknown_prefixes_are_missing(model: ModelConfig, stored: Stored) -> None:
    names = iter(range(len(stored)))
    with pytest.raises(InputError, match=r"lacks \d+ tensors .*others are there, such as part0\."):
        bind_tensors(wrapped(stored, lambda name: f"part{next(names)}.{name}"), model, FOLDER)


# What no graph reads


def without(stored: Stored, *prefixes: str) -> Stored:
    return {name: entry for name, entry in stored.items() if not name.startswith(prefixes)}


def test_what_stands_behind_the_feature_layer_may_be_missing(untied: ModelConfig) -> None:
    """LLaVA-1.5 reads the output of block 22 of 24 (numbered from 0), and never the norm behind the last."""
    stored = stored_of(untied)
    bound = bind_tensors(without(stored, BLOCK.format(23), POST), untied, FOLDER)
    assert set(untied.shapes) - set(bound.tensors) == set(bound.absent)
    assert {name.rsplit(".", 2)[0] for name in bound.absent if "layernorm" in name} == {"vision_tower"}
    assert sum(".layers.23." in name for name in bound.absent) == 16
    assert bound.notes == ()
    with pytest.raises(InputError, match=r"lacks 16 tensors \(vision_tower.encoder.layers.22"):
        bind_tensors(without(stored, BLOCK.format(22)), untied, FOLDER)


# What the model has no place for


def test_buffers_of_older_versions_are_passed_over_as_transformers_does(model: ModelConfig, stored: Stored) -> None:
    extras = (
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.language_model.rotary_emb.inv_freq",
        "vision_tower.vision_model.embeddings.position_ids",
    )
    bound = bind_tensors(stored | dict.fromkeys(extras, stored[PROJECTOR]), model, FOLDER)
    assert list(bound.tensors) == list(model.shapes)
    assert bound.notes == ()


@pytest.mark.parametrize(
    "extra",
    [
        "vision_tower.logit_scale",
        "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.input_scale",
        "vision_tower.vision_model.post_layernorm.more.weight",
        "vision_tower.text_model.encoder.layers.0.mlp.fc1.weight",
        "image_newline",
        "model.image_newline",
        "language_model.model.layers.0.self_attn.q_proj.input_scale",
        "language_model.model.layers.0.self_attn.q_proj.weight_scale",
        "language_model.model.layers.0.mlp.up_proj.activation_post_process.scale",
        "ema.language_model.model.layers.0.mlp.up_proj.weight",
        "optimizer.state.0.exp_avg",
        "what.is.this",
    ],
)
def test_other_leftovers_are_named_and_not_used(model: ModelConfig, stored: Stored, extra: str) -> None:
    bound = bind_tensors(stored | {extra: stored[PROJECTOR]}, model, FOLDER)
    assert list(bound.tensors) == list(model.shapes)
    assert len(bound.notes) == 1
    assert f"the tensor {extra} that the model has no place for" in bound.notes[0]


def test_a_note_of_many_leftovers_is_short(model: ModelConfig, stored: Stored) -> None:
    extras = {f"ema.{'x' * 5000}.{number}": stored[PROJECTOR] for number in range(500)}
    [note] = bind_tensors(stored | extras, model, FOLDER).notes
    assert "500 tensors" in note
    assert len(note) < 500


# What is refused


def _without(*names: str) -> Callable[[Stored], Stored]:
    return lambda stored: {name: entry for name, entry in stored.items() if name not in names}


def _with(**changes: Any) -> Callable[[Stored], Stored]:
    return lambda stored: stored | {PROJECTOR: replace(stored[PROJECTOR], **changes)}


def _plus(*names: str) -> Callable[[Stored], Stored]:
    return lambda stored: stored | dict.fromkeys(names, stored[PROJECTOR])


def _renamed(old: str, new: str) -> Callable[[Stored], Stored]:
    return lambda stored: {name.replace(old, new): entry for name, entry in stored.items()}


REFUSED = {
    "missing": (_without(PROJECTOR), f"lacks the tensor {PROJECTOR} that its config.json asks for"),
    "layers missing": (
        _without(*map(LAYER.format, range(5))),
        r"lacks 5 tensors \(language_model.layers.0[^,]*, [^,]*, \.\.\.\)",
    ),
    "layers beyond": (
        _plus(*map(LAYER.format, (8, 9))),
        r"holds 2 tensors \(language_model.model.layers.8[^,]*, [^,]*\) that the model .* fewer layers",
    ),
    "blocks beyond": (_plus(BLOCK.format(60) + "mlp.fc1.weight"), "holds the tensor vision_tower.*layers.60"),
    "a bias more": (
        _plus("vision_tower.vision_model.embeddings.patch_embedding.bias"),
        r"holds the tensor .*patch_embedding.bias that the vision tower of its config.json has no place for",
    ),
    "a norm more": (
        _plus(*(f"{BLOCK.format(0)}self_attn.{part}_norm.weight" for part in "qk")),
        r"holds 2 tensors \(.*q_norm.weight, .*\) that the vision tower of its config.json",
    ),
    "another shape": (_with(shape=(127,)), re.escape(f"({PROJECTOR}: [127], not [128])")),
    "two names": (_plus("model." + PROJECTOR), f"one tensor under two names, {PROJECTOR} and model.{PROJECTOR}"),
    "two sets": (_plus("module." + PROJECTOR), f"one tensor under two names, {PROJECTOR} and module.{PROJECTOR}"),
    "double precision": (_with(dtype="F64"), f"stores the tensor {PROJECTOR} as F64, .*dtype='float32'"),
    "LoRA": (
        _plus(LAYER.format(0).removesuffix("weight") + "lora_A.default.weight"),
        r"holds the tensor .*lora_A\.default\.weight of an adapter .*merge_and_unload",
    ),
    "unmerged": (_renamed("up_proj.weight", "up_proj.base_layer.weight"), r"base_layer.*merge_and_unload"),
    "modules to save": (
        _plus("base_model.model.lm_head.modules_to_save.default.weight"),
        "modules_to_save.*merge_and_unload",
    ),
    "original code": (
        _plus("model.mm_projector.0.weight"),
        r"as the original LLaVA code does \(model.mm_projector.0.weight\)",
    ),
    "original tower": (
        _plus("model.vision_tower.vision_tower.vision_model.post_layernorm.bias"),
        "as the original LLaVA code does",
    ),
    "language model alone": (
        lambda stored: {
            name.replace("language_model.", ""): entry
            for name, entry in stored.items()
            if name.startswith("language_model.")
        },
        r"the tensors of a language model alone \(model\.layers\.0",
    ),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(model: ModelConfig, stored: Stored, change: Callable[[Stored], Stored], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        bind_tensors(change(stored), model, FOLDER)
    assert str(caught.value).startswith("somewhere ")
    assert len(str(caught.value)) < 310


def test_names_alone_show_another_layout_or_an_adapter(stored: Stored) -> None:
    """As an index of shards lists them before the shards are there."""
    judge_names(stored, FOLDER)
    for name in ("model.mm_projector.0.weight", "model.layers.0.lora_B.weight"):
        with pytest.raises(InputError):
            judge_names([*stored, name], FOLDER)


# As peft's tuners name what they train, behind a layer's name where nothing stands in front
PEFT = (
    "q_proj.lora_A.weight", "q_proj.lora_magnitude_vector", "q_proj.hada_w1_a", "q_proj.lokr_w1", "q_proj.ia3_l",
    "q_proj.oft_R", "q_proj.boft_R", "q_proj.vera_lambda_b", "q_proj.fourierft_spectrum", "q_proj.hra_u",
    "q_proj.bone_block", "q_proj.miss_block", "q_proj.c3a_kernel", "q_proj.randlora_lambda", "q_proj.shira_weight",
    "q_proj.road_theta", "q_proj.vblora_logits_A", "q_proj.waveft_spectrum", "adaption_gate", "adaption_prompt",
    "q_proj.delora_lambda", "token_adapter.trainable_tokens_delta", "prompt_encoder.default.embedding.weight",
)  # fmt: skip


def test_adapters_of_every_kind(stored: Stored) -> None:
    layer = LAYER.format(0).removesuffix("mlp.up_proj.weight")
    for name in [*(f"{layer}self_attn.{part}" for part in PEFT), "prompt_embeddings", "base_model.vera_A"]:
        with pytest.raises(InputError, match=f"holds the tensor {name} of an adapter that was not merged"):
            judge_names([*stored, name], FOLDER)


def test_names_of_any_length_give_a_short_sentence(model: ModelConfig, stored: Stored) -> None:
    for extra in ("x" * 50_000 + ".lora_A.weight", "language_model.model.layers.99.mlp.up_proj.weight" + "\n" * 9000):
        for tensors in (stored | {extra: stored[PROJECTOR]}, {extra: stored[PROJECTOR]}):
            try:
                said = bind_tensors(tensors, model, FOLDER).notes[0]
            except InputError as error:
                said = str(error)
            assert len(said) < 400
            assert said.isprintable()


# Quantised weights, by what is stored


Q_PROJ = "language_model.model.layers.0.self_attn.q_proj."
QUANTISED = {
    "gptq, awq": {"qweight": "I32", "qzeros": "I32", "scales": "F16"},
    "bitsandbytes": {"weight": "U8", "weight.absmax": "F32", "weight.quant_map": "F32"},
    "int8": {"weight": "I8", "SCB": "F32"},
    "fp8": {"weight": "F8_E4M3", "weight_scale_inv": "F32"},
    "compressed-tensors": {"weight_packed": "I32", "weight_scale": "BF16", "weight_shape": "I64"},
    "hqq": {"W_q": "U8", "meta": "F32"},
    "quanto": {"weight._data": "I8", "weight._scale": "F16"},
    "aqlm": {"codes": "I16", "codebooks": "F16"},
}


@pytest.mark.parametrize("parts", QUANTISED.values(), ids=QUANTISED)
@pytest.mark.parametrize("method", [None, "awq"])
def test_quantised_weights_are_seen_without_the_configuration(
    model: ModelConfig, stored: Stored, parts: dict[str, str], method: str | None
) -> None:
    stored.pop(Q_PROJ + "weight")
    stored |= {Q_PROJ + part: TensorEntry(FOLDER / "x", 0, 0, (7,), dtype) for part, dtype in parts.items()}
    with pytest.raises(InputError, match=r"stores language_model\.\S*q_proj\.\S+ as [IUF]\d+") as caught:
        bind_tensors(stored, claiming(model, method), FOLDER)
    said = str(caught.value)
    assert ("quantised by awq" in said) == (method is not None)
    assert said.endswith("use the checkpoint that this one was quantised from")
    assert len(said) < 300


def test_a_quantisation_that_is_only_claimed_is_noted(model: ModelConfig, stored: Stored) -> None:
    bound = bind_tensors(stored, claiming(model, "bitsandbytes"), FOLDER)
    assert list(bound.tensors) == list(model.shapes)
    assert len(bound.notes) == 1
    assert "names the quantisation bitsandbytes, but the weights are stored in full precision" in bound.notes[0]


def test_scales_beside_full_weights_count_where_a_quantisation_is_claimed(model: ModelConfig, stored: Stored) -> None:
    stored[Q_PROJ + "input_scale"] = stored[PROJECTOR]
    assert "input_scale" in bind_tensors(stored, model, FOLDER).notes[0]
    with pytest.raises(InputError, match=r"stores scales \(.*input_scale\).*quantisation compressed-tensors"):
        bind_tensors(stored, claiming(model, "compressed-tensors"), FOLDER)


def test_all_weight_formats(model: ModelConfig, stored: Stored) -> None:
    for dtype in DTYPE_BYTES:
        changed = stored | {PROJECTOR: replace(stored[PROJECTOR], dtype=dtype)}
        if dtype in {"F16", "BF16", "F32"}:
            assert isinstance(bind_tensors(changed, model, FOLDER), Binding)
        else:
            with pytest.raises(InputError, match=f" as {dtype},"):
                bind_tensors(changed, model, FOLDER)


# The head


def test_a_head_that_is_not_tied_is_needed(untied: ModelConfig) -> None:
    entries = stored_of(untied, "F16")
    bound = bind_tensors(entries, untied, FOLDER)
    assert (len(bound.tensors), bound.head) == (len(untied.shapes), "lm_head.weight")
    del entries[HEAD]
    with pytest.raises(InputError, match=r"lacks the tensor lm_head\.weight, .*tie_word_embeddings.*random numbers"):
        bind_tensors(entries, untied, FOLDER)


def test_a_tied_head_alone_is_the_embedding(model: ModelConfig, stored: Stored) -> None:
    only_embedding = bind_tensors(stored, model, FOLDER)
    assert (only_embedding.head, only_embedding.embedding) == ("language_model.embed_tokens.weight",) * 2
    entry = stored.pop(EMBEDDING)
    only_head = bind_tensors(stored | {HEAD: entry}, model, FOLDER)
    assert (only_head.head, only_head.embedding) == ("lm_head.weight",) * 2
    assert only_head.tensors["lm_head.weight"] is entry
    assert only_head.absent == ()
    with pytest.raises(InputError, match=r"lacks the tensor language_model.embed_tokens.weight"):
        bind_tensors(stored, model, FOLDER)


def test_a_tied_head_of_another_shape_is_refused(model: ModelConfig, stored: Stored) -> None:
    stored[HEAD] = replace(stored[EMBEDDING], shape=(1, *stored[EMBEDDING].shape[1:]))
    with pytest.raises(InputError, match=r"lm_head\.weight: \[1, 128\]"):
        bind_tensors(stored, model, FOLDER)


def test_every_sentence_is_one_line(model: ModelConfig, stored: Stored) -> None:
    def sentences() -> Iterable[str]:
        for change, _ in REFUSED.values():
            with pytest.raises(InputError) as caught:
                bind_tensors(change(stored), model, FOLDER)
            yield str(caught.value)

    assert all(sentence.isprintable() for sentence in sentences())
