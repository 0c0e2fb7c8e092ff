"""The generation configuration: what transformers makes of a checkpoint's files is what the manifest says."""

from __future__ import annotations

import inspect
import itertools
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from tiny_llava import VOCABULARY, make_config
from transformers import GenerationConfig, LlavaConfig, LlavaForConditionalGeneration

from vtexport.bundle.manifest import Generation
from vtexport.errors import InputError, MissingDependencyError
from vtexport.processing import generation as module
from vtexport.processing.generation import (
    HONOURED,
    NO_EFFECT,
    NOTED,
    _own_settings,
    _with_defaults,
    read_generation,
)

Read = tuple[Generation, tuple[int, ...], list[str]]


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    """The content of a config.json whose text_config names end token 2."""
    return json.loads(make_config().to_json_string(use_diff=True))


def read(folder: Path, config: dict[str, Any], generation: dict[str, Any] | str | None) -> Read:
    """The generation settings of these two files, and the notes."""
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        text = generation if isinstance(generation, str) else json.dumps(generation)
        (folder / "generation_config.json").write_text(text)
    notes: list[str] = []
    made = read_generation(folder, LlavaConfig.from_pretrained(folder, local_files_only=True), notes.append)
    return *made, notes


def test_every_attribute_is_in_one_class() -> None:
    """A release that adds one has to be looked at: whether it changes answers."""
    classes = [HONOURED, set(NOTED), *map(set, NO_EFFECT.values())]
    for name in {*vars(GenerationConfig()), *GenerationConfig._get_default_generation_params()}:
        assert sum(name in names for names in classes) == 1, name
    assert not {name for name in HONOURED if not hasattr(GenerationConfig(), name)}, "misspelt, or no longer there"


def test_nothing_said_is_greedy_without_processors(tmp_path: Path, described: dict[str, Any]) -> None:
    assert read(tmp_path, described, {"eos_token_id": 2}) == (Generation(), (2,), [])
    defaults = GenerationConfig._get_default_generation_params()
    for field in msgspec.structs.fields(Generation):
        if field.name in defaults and field.name not in {"max_length"}:  # which the library counts otherwise unset
            assert getattr(Generation(), field.name) in (defaults[field.name], []), field.name


HONOURED_VALUES = {
    "repetition_penalty": 1.3, "encoder_repetition_penalty": 0.8, "no_repeat_ngram_size": 3,
    "encoder_no_repeat_ngram_size": 2, "bad_words_ids": [[5], [6, 7]], "sequence_bias": [[[8], -2.0], [[9, 10], 1.5]],
    "min_new_tokens": 4, "forced_bos_token_id": 1, "forced_eos_token_id": 2,
    "exponential_decay_length_penalty": [5, 1.1], "suppress_tokens": [11, 12], "begin_suppress_tokens": [13],
    "remove_invalid_values": True, "renormalize_logits": True, "stop_strings": "END",
}  # fmt: skip


def test_logits_processors_are_taken_without_a_note(tmp_path: Path, described: dict[str, Any]) -> None:
    generation, eos, notes = read(tmp_path, described, {"eos_token_id": [2, 3], **HONOURED_VALUES})
    plain = HONOURED_VALUES | {"forced_eos_token_id": [2], "stop_strings": ["END"]}
    assert generation == msgspec.convert(plain, Generation)
    assert (eos, notes) == ((2, 3), [])


def test_min_new_tokens_overrides_min_length(tmp_path: Path, described: dict[str, Any]) -> None:
    assert read(tmp_path, described, {"eos_token_id": 2, "min_length": 30})[0] == Generation(min_length=30)
    both = {"eos_token_id": 2, "min_length": 30, "min_new_tokens": 0}
    assert read(tmp_path, described, both)[0] == Generation()


def test_sampling_is_recorded_and_told(tmp_path: Path, described: dict[str, Any]) -> None:
    given = {"do_sample": True, "temperature": 0.9, "top_p": 0.6, "max_new_tokens": 5}
    generation, _, notes = read(tmp_path, described, {"eos_token_id": 2, **given})
    assert generation == Generation(**given)  # type: ignore[arg-type]
    assert generation.top_k == 50
    (note,) = notes
    assert "do_sample = True, temperature = 0.9, top_p = 0.6, max_new_tokens = 5" in note
    assert "--sampling checkpoint" in note


def test_what_transformers_samples_with_only_if_asked_is_not_told(tmp_path: Path, described: dict[str, Any]) -> None:
    generation, _, notes = read(tmp_path, described, {"eos_token_id": 2, "temperature": 0.4})
    assert (generation, notes) == (Generation(temperature=0.4), [])
    generation, _, notes = read(tmp_path, described, {"eos_token_id": 2, "temperature": 0.0, "top_k": -1})
    assert generation == Generation()
    assert [note.split(",")[0] for note in notes] == [
        "generation_config.json has temperature = 0.0",
        "generation_config.json has top_k = -1",
    ]


def test_generation_parameters_in_config_json(tmp_path: Path, described: dict[str, Any]) -> None:
    """Old checkpoints have no generation_config.json; transformers then asks config.json and its text_config."""
    text = {**described["text_config"], "no_repeat_ngram_size": 2, "repetition_penalty": 9.0, "eos_token_id": 5}
    config = {**described, "repetition_penalty": 1.2, "text_config": text}
    generation, eos, notes = read(tmp_path, config, None)
    assert generation == Generation(repetition_penalty=1.2, no_repeat_ngram_size=2)
    assert (eos, notes) == ((5,), [])


def test_config_json_is_passed_over_where_there_is_a_generation_config(
    tmp_path: Path, described: dict[str, Any]
) -> None:
    config = {**described, "repetition_penalty": 1.2, "eos_token_id": 5}
    generation, eos, notes = read(tmp_path, config, {"eos_token_id": [2, 7]})
    assert (generation, eos) == (Generation(), (2, 7))
    assert [note.split(",")[0] for note in notes] == [
        "config.json has eos_token_id = 5",
        "config.json has repetition_penalty = 1.2",
    ]


FILES: list[dict[str, Any] | None] = [
    None, {}, {"eos_token_id": 3}, {"eos_token_id": [2, 5], "repetition_penalty": 1.1, "max_length": 90},
]  # fmt: skip
TOP: list[dict[str, Any]] = [{}, {"eos_token_id": 7, "repetition_penalty": 1.2, "suppress_tokens": [8]}]
TEXT: list[dict[str, Any]] = [{}, {"eos_token_id": 9, "no_repeat_ngram_size": 2, "max_length": 80, "do_sample": True}]


@pytest.mark.parametrize(("file", "top", "text"), list(itertools.product(FILES, TOP, TEXT)))
def test_every_combination_of_files_as_the_loaded_model_has_it(
    file: dict[str, Any] | None,
    top: dict[str, Any],
    text: dict[str, Any],
    tiny_checkpoint: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "model.safetensors").symlink_to(tiny_checkpoint / "model.safetensors")
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    generation, eos, _ = read(tmp_path, {**config, **top, "text_config": {**config["text_config"], **text}}, file)
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    wanted = model._prepare_generation_config(None)[0]
    for name in ("repetition_penalty", "no_repeat_ngram_size", "do_sample", "top_k"):
        assert getattr(generation, name) == getattr(wanted, name), name
    assert generation.suppress_tokens == (wanted.suppress_tokens or [])
    assert generation.max_length == model.generation_config.max_length
    if wanted.eos_token_id is None:  # it would never stop
        assert eos == (top.get("eos_token_id") or text.get("eos_token_id") or 2,)
    else:
        assert list(eos) == (wanted.eos_token_id if isinstance(wanted.eos_token_id, list) else [wanted.eos_token_id])


def test_end_tokens_that_only_the_model_configuration_has(tmp_path: Path, described: dict[str, Any]) -> None:
    _, eos, notes = read(tmp_path, described, {"bos_token_id": 1})
    assert eos == (2,)
    assert [note for note in notes if "would go on to its limit; the bundle stops at 2" in note] == notes != []


@pytest.mark.parametrize("name", NOTED)
def test_what_a_bundle_does_not_do_is_told(name: str, tmp_path: Path, described: dict[str, Any]) -> None:
    value: Any = {
        "num_beams": 4, "constraints": [], "force_words_ids": [[3]], "num_return_sequences": 2, "penalty_alpha": 0.6,
        "dola_layers": "low", "guidance_scale": 1.5, "watermarking_config": {"bias": 2.0}, "token_healing": True,
        "max_time": 2.5, "is_assistant": True, "cache_implementation": "quantized",
    }[name]  # fmt: skip
    sampling = {"do_sample": True} if name == "num_return_sequences" else {}  # refused otherwise
    generation, _, notes = read(tmp_path, described, {"eos_token_id": 2, name: value, **sampling})
    assert generation == Generation(**sampling)  # type: ignore[arg-type]
    (note,) = [note for note in notes if name in note]
    assert "which a bundle does not do" in note
    assert len(note) < 300


def test_what_has_no_effect_is_not_told(tmp_path: Path, described: dict[str, Any]) -> None:
    values = {
        "early_stopping": True, "length_penalty": 2.0, "prompt_lookup_num_tokens": 5, "use_cache": False,
        "cache_implementation": "static", "output_scores": True, "pad_token_id": 0, "transformers_version": "4.36.0",
        "_from_model_config": True, "num_beams": 1, "guidance_scale": 1.0,
    }  # fmt: skip
    assert read(tmp_path, described, {"eos_token_id": 2, **values}) == (Generation(), (2,), [])


def test_unknown_keys_cannot_disturb_a_terminal(tmp_path: Path, described: dict[str, Any]) -> None:
    (note,) = read(tmp_path, described, {"eos_token_id": 2, "\x1b[31mred" + "k" * 500: 1})[2]
    assert note.isprintable()
    assert len(note) < 300


@pytest.mark.parametrize("marked", [{}, {"_from_model_config": True}])  # of which transformers keeps none
def test_unknown_keys_are_named(tmp_path: Path, described: dict[str, Any], marked: dict[str, Any]) -> None:
    asked = {"eos_token_id": 2, "repitition_penalty": 1.2, "zoom": 3, "pan": None}
    generation, _, notes = read(tmp_path, described, {**asked, **marked})
    assert generation == Generation()
    assert notes == [
        "generation_config.json has repitition_penalty, zoom, which a bundle does not know and passes over"
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"repetition_penalty": "1.3"}, "repetition_penalty = '1.3'"),
        ({"repetition_penalty": 2}, "repetition_penalty = 2 .*strictly positive float"),
        ({"repetition_penalty": -1.0}, "repetition_penalty = -1.0"),
        ({"no_repeat_ngram_size": 2.5}, "no_repeat_ngram_size = 2.5"),
        ({"bad_words_ids": [3]}, r"bad_words_ids = \[3\]"),
        ({"bad_words_ids": [[3], [5000]]}, r"bad_words_ids = .*\[5000\]"),
        ({"sequence_bias": {"3": 1.0}}, "sequence_bias = "),
        ({"sequence_bias": [[[3], float("-inf")]]}, "sequence_bias = .*not finite"),
        ({"suppress_tokens": "abc"}, "suppress_tokens = 'abc'"),
        ({"forced_eos_token_id": 5000}, "forced_eos_token_id = 5000"),
        ({"forced_bos_token_id": 5000}, "forced_bos_token_id = 5000"),
        ({"exponential_decay_length_penalty": [3]}, r"exponential_decay_length_penalty = \[3\]"),
        ({"min_length": -4}, "min_length = -4"),
        ({"max_new_tokens": 0}, "max_new_tokens.*greater than 0"),
        ({"max_new_tokens": 10**30}, "max_new_tokens = 1000000000000000000000000000000"),
        ({"max_length": "long"}, "max_length = 'long'"),
        ({"stop_strings": [1]}, r"stop_strings = \[1\]"),
        ({"stop_strings": [""]}, r"stop_strings = \[''\]"),
        ({"do_sample": "yes"}, "do_sample = 'yes'"),
        ({"do_sample": True, "temperature": 0.0}, "temperature = 0.0"),
        ({"do_sample": True, "top_k": -1}, "top_k = -1"),
        ({"do_sample": True, "typical_p": 0.0}, "typical_p = 0.0"),
        ({"do_sample": True, "min_p": "x"}, "min_p = 'x'"),
        ({"num_return_sequences": 3}, "refused by transformers .*num_return_sequences"),
        ({"logits_processor": []}, "refused by transformers .*logits_processor"),
        ({"eos_token_id": []}, r"eos_token_id = \[\]"),
        ({"eos_token_id": "</s>"}, "eos_token_id = '</s>'"),
        ({"eos_token_id": [2, VOCABULARY]}, rf"eos_token_id = \[2, {VOCABULARY}\]; .*0 to {VOCABULARY - 1}"),
        ({"eos_token_id": True}, "eos_token_id = True"),
    ],
)
def test_values_that_cannot_be(value: dict[str, Any], message: str, tmp_path: Path, described: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"generation_config\.json .*{message}") as caught:
        read(tmp_path, described, {"eos_token_id": 2, **value})
    assert len(str(caught.value).replace(str(tmp_path), "")) < 300
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ['{"eos_token_id": 2', "[1]", "\udcff", "[" * 100_000])
def test_a_damaged_file_is_not_passed_over(content: str, tmp_path: Path, described: dict[str, Any]) -> None:
    """transformers would take config.json instead without a word."""
    (tmp_path / "config.json").write_text(json.dumps(described))
    (tmp_path / "generation_config.json").write_bytes(content.encode(errors="surrogateescape"))
    config = LlavaConfig.from_pretrained(tmp_path, local_files_only=True)
    with pytest.raises(InputError, match=r"generation_config\.json is not .*; correct it or fetch it again"):
        read_generation(tmp_path, config, lambda note: None)


def test_no_end_token_at_all(tmp_path: Path, described: dict[str, Any]) -> None:
    text = {**described["text_config"], "eos_token_id": None}
    with pytest.raises(InputError, match=r"config\.json has eos_token_id = None; give the id of the token"):
        read(tmp_path, {**described, "text_config": text}, None)


def test_the_library_keeps_its_voice(tmp_path: Path, described: dict[str, Any], capsys: Any) -> None:
    """Its warnings about settings are silent while they are read, and not longer."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    read(tmp_path, described, {"eos_token_id": 2, "temperature": 0.4, "output_scores": True})
    assert logging.get_verbosity() == before
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("generation", [None, {}, {"eos_token_id": 2, **HONOURED_VALUES}, {"num_beams": 3, "top_k": 7}])
def test_settings_are_those_that_generate_goes_by(
    tmp_path: Path, described: dict[str, Any], generation: dict[str, Any] | None
) -> None:
    """`GenerationMixin` makes them of a model, which the build does without."""
    read_files = read(tmp_path, described, {"eos_token_id": 2} if generation is None else generation)
    assert read_files
    if generation is None:
        (tmp_path / "generation_config.json").unlink()
    config = LlavaConfig.from_pretrained(tmp_path, local_files_only=True)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    parameters = inspect.signature(model.adjust_generation_fn).parameters
    asked = dict.fromkeys(name for name in parameters if name != "kwargs")
    asked |= {
        "pretrained_model_name_or_path": str(tmp_path), "local_files_only": True, "from_auto_class": False,
        "force_download": False, "revision": "main", "subfolder": "", "trust_remote_code": False,
    }  # fmt: skip
    model.adjust_generation_fn(**asked)
    wanted, _ = model._prepare_generation_config(None)
    found = _with_defaults(_own_settings(tmp_path), config)
    assert found.to_dict() == wanted.to_dict()


def test_without_pytorch_processors_are_refused(
    tmp_path: Path, described: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library judges their values, and only with PyTorch."""
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert read(tmp_path, described, {"eos_token_id": 2})[0] == Generation()
    message = r"has repetition_penalty = 1\.3, which .* needs PyTorch; run pip install 'vtexport\[pytorch\]'"
    with pytest.raises(MissingDependencyError, match=message):
        read(tmp_path, described, {"eos_token_id": 2, "repetition_penalty": 1.3})
