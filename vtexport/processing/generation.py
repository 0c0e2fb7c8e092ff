"""A checkpoint's generation configuration and end tokens: what transformers' `generate()` does by default.

The library itself reads it, as `from_pretrained` and `generate()` do: generation_config.json, or else what config.json
says of generation, with the library's defaults for what is left out. Every key is in one of three classes: honoured by
the bundle (`HONOURED`), told in a note because answers differ without it (`NOTED`), or without effect on a single
answer (`NO_EFFECT`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from vtexport.bundle import manifest as schema
from vtexport.errors import InputError, MissingDependencyError, quoted
from vtexport.processing.library import quiet

GENERATION_FILE, CONFIG_FILE = "generation_config.json", "config.json"

WARPERS = ("temperature", "top_k", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
LENGTHS = ("max_new_tokens", "max_length")
HONOURED = frozenset({*schema.Generation.__struct_fields__, "eos_token_id"})
_PROCESSORS = HONOURED - {*WARPERS, *LENGTHS, "do_sample", "stop_strings", "eos_token_id"}

# Key -> what it asks for, and whether a value asks for it
NOTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "num_beams": ("beam search", lambda value: value != 1),
    "constraints": ("constrained beam search", lambda value: True),
    "force_words_ids": ("constrained beam search", lambda value: True),
    "num_return_sequences": ("several answers", lambda value: value != 1),
    "penalty_alpha": ("contrastive search", lambda value: value != 0),
    "dola_layers": ("contrasting layers", lambda value: True),
    "guidance_scale": ("classifier-free guidance", lambda value: value != 1),
    "watermarking_config": ("a watermark", lambda value: True),
    "token_healing": ("healing the prompt's last token", bool),
    "max_time": ("a limit in seconds", lambda value: True),
    "is_assistant": ("stopping where the model is unsure", bool),
    "cache_implementation": ("a quantised cache", lambda value: value == "quantized"),
}
NO_EFFECT: dict[str, tuple[str, ...]] = {
    "of beam search, which num_beams asks for": (
        "early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty", "low_memory",
    ),
    "drafts that the model verifies, so that tokens stay the same": (
        "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
        "assistant_early_exit", "assistant_lookbehind", "target_lookbehind", "prompt_lookup_num_tokens",
        "max_matching_ngram_size", "use_mtp", "speculation_type",
    ),
    "of a draft model, which generate() is given": ("assistant_ensemble_weight",),
    "how the library computes": (
        "use_cache", "cache_config", "max_cache_len", "compile_config", "disable_compile",
        "continuous_batching_config", "prefill_chunk_size",
    ),
    "what generate() gives back with tokens": (
        "output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
    ),
    "for batches, empty prompts and encoders": ("pad_token_id", "bos_token_id", "decoder_start_token_id"),
    "about the file": ("transformers_version", "_from_model_config", "_commit_hash"),
}  # fmt: skip
_KNOWN = HONOURED.union(NOTED, *NO_EFFECT.values())


def read_generation(
    folder: Path, config: Any, note: Callable[[str], None]
) -> tuple[schema.Generation, tuple[int, ...]]:
    """Reads what `generate()` does with a checkpoint when nothing else is asked, and the ids of its end tokens.

    Args:
        folder: the checkpoint's.
        config: its configuration as transformers read it.
        note: called with a sentence for everything that answers of a bundle differ by, unless it is asked to follow.

    Raises:
        InputError: a file is damaged, transformers refuses a value now or when it generates, or there is no end token.
        MissingDependencyError: a logits processor is asked for, which the library judges with torch.
    """
    stored, described = _read(folder / GENERATION_FILE), _read(folder / CONFIG_FILE) or {}
    where = folder / (GENERATION_FILE if stored is not None else CONFIG_FILE)
    with quiet():
        try:
            own = _own_settings(folder)
            settings = _with_defaults(own, config)
        except Exception as error:  # the library raises whatever its checks and constructors trip over
            raise InputError(f"{where} is refused by transformers ({quoted(error, limit=130)}); correct it") from error
        eos = _end_tokens(settings, config, where, note)
        generation = _honoured(_Checks(config, eos, where), settings, own, where, note)
    _tell_sampling(generation, where, note)
    _tell_noted(settings, where, note)
    _tell_unknown({**(stored or {}), **vars(own)}, where, note)
    if stored is not None:
        _tell_passed_over(described, settings, note)
    return generation, eos


def _read(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is no file."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # transformers would pass over a damaged file
        raise InputError(
            f"{path} is not readable as JSON ({quoted(error, path)}); correct it or fetch it again"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object; correct it or fetch it again")
    return content


def _own_settings(folder: Path) -> Any:
    """transformers' GenerationConfig of a checkpoint, as `from_pretrained` gives it to a model."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(str(folder.absolute()), local_files_only=True)
    except OSError:  # no such file: what config.json says of generation
        return GenerationConfig.from_pretrained(
            str(folder.absolute()), config_file_name=CONFIG_FILE, _from_model_config=True, local_files_only=True
        )


def _with_defaults(own: Any, config: Any) -> Any:
    """The settings that `generate()` goes by (`GenerationMixin._prepare_generation_config`), which needs no model."""
    from transformers import GenerationConfig

    if changed := config._get_generation_parameters():
        raise ValueError(f"the model's configuration has settings of generation, {changed}")
    settings = GenerationConfig()
    settings.update(**own.to_dict(), defaults_only=True, allow_custom_entries=True)
    settings.update(**own._get_default_generation_params(), defaults_only=True)
    return settings


def _end_tokens(settings: Any, config: Any, where: Path, note: Callable[[str], None]) -> tuple[int, ...]:
    text = config.get_text_config()
    eos = settings.eos_token_id
    if eos is None:
        where = where.parent / CONFIG_FILE
        stated = [getattr(each, "eos_token_id", None) for each in (config, text)]
        eos = next((value for value in stated if value is not None), None)
        if eos is not None:
            note(
                f"no file sets eos_token_id for generation, so transformers' generate() would go on to its limit; the "
                f"bundle stops at {eos}, the {type(text).__name__}'s"
            )
    ids = eos if isinstance(eos, (list, tuple)) else [eos]
    if not ids or not all(type(token) is int and 0 <= token < text.vocab_size for token in ids):
        raise InputError(
            f"{where} has eos_token_id = {_shown(eos)}; give the id of the token that ends an answer (0 to "
            f"{text.vocab_size - 1}), or a list of such ids"
        )
    return tuple(dict.fromkeys(ids))


class _Checks:
    """Lets transformers make and run a processor for one setting, to hear what it refuses."""

    def __init__(self, config: Any, eos: tuple[int, ...], where: Path):
        self._config, self._eos, self._where = config, eos, where
        self.vocabulary: int = config.get_text_config().vocab_size

    def run(self, name: str, value: Any) -> None:
        """Raises what the library raises for it.

        Raises:
            MissingDependencyError: torch is not installed, without which the library's processors cannot be made, and
                the value is not the library's default.
        """
        from transformers import GenerationConfig

        defaults = GenerationConfig._get_default_generation_params()
        if find_spec("torch") is None:
            if value == defaults.get(name):
                return
            raise MissingDependencyError(
                f"{self._where} has {name} = {_shown(value)}, which only transformers' own processor can judge, and "
                "that needs PyTorch; run pip install 'vtexport[pytorch]'"
            )
        import torch

        settings = GenerationConfig(**defaults)
        settings.top_k, settings.do_sample, settings.max_length = 0, name in WARPERS, 3
        setattr(settings, name, value)
        settings._eos_token_tensor = torch.tensor(self._eos)
        ids = torch.zeros((1, 1 if name == "forced_bos_token_id" else 2), dtype=torch.long)
        processors = self._model()._get_logits_processor(
            generation_config=settings,
            input_ids_seq_length=ids.shape[1],
            encoder_input_ids=ids,
            device="cpu",
            model_kwargs={},
        )
        processors(ids, torch.zeros((1, self.vocabulary)))

    def _model(self) -> Any:
        """A stand-in for the model that the library makes processors for."""
        from transformers import GenerationMixin

        class Asked(GenerationMixin):
            config = self._config

        return Asked()


def _honoured(checks: _Checks, settings: Any, own: Any, where: Path, note: Callable[[str], None]) -> schema.Generation:
    """The settings that the manifest holds, each after a look that it is one.

    `settings` have the library's defaults; lengths are of `own`, which has none.
    """
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(schema.Generation):
        name = field.name
        value = getattr(own if name in LENGTHS else settings, name, None)
        if value is None:
            continue
        try:
            if name in _PROCESSORS or name in WARPERS:
                checks.run(name, value)  # before the manifest's own types: the library takes no integer for a float
            values[name] = msgspec.convert(_plain(name, value, checks.vocabulary), field.type)
            _check_numbers(values[name])
        except MissingDependencyError:
            raise
        except Exception as error:  # as above
            unused = name in WARPERS and settings.do_sample is not True
            if not unused:
                raise InputError(
                    f"{where} has {name} = {_shown(value)} ({quoted(error, where, limit=100)}); correct it"
                ) from error
            note(
                f"{where.name} has {name} = {_shown(value)}, which transformers refuses when it samples; sampling from "
                "the bundle does without it"
            )
    if settings.min_new_tokens is not None:  # it overrides min_length, also as 0
        values.pop("min_length", None)
    return schema.Generation(**values)


def _plain(name: str, value: Any, vocabulary: int) -> Any:
    """A value in the form that the manifest has."""
    if name == "forced_eos_token_id" and isinstance(value, int):
        return [value]
    if name == "stop_strings":
        strings = [value] if isinstance(value, str) else value
        if isinstance(strings, list) and "" in strings:
            raise ValueError("an empty string ends nothing")
        return strings
    if name in {"suppress_tokens", "begin_suppress_tokens"} and isinstance(value, list):
        # The library passes over ids that the model does not have, such as -1.
        return [token for token in value if not isinstance(token, int) or 0 <= token < vocabulary]
    return value


def _check_numbers(value: Any) -> None:
    """Refuses numbers that not every reader of JSON takes."""
    if isinstance(value, (list, tuple)):
        for each in value:
            _check_numbers(each)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("it is not finite; bad_words_ids bans tokens")
    elif isinstance(value, int) and abs(value) >= 2**53:
        raise ValueError("it is too large")


def _tell_sampling(generation: schema.Generation, where: Path, note: Callable[[str], None]) -> None:
    default = schema.Generation()
    names = ["do_sample", *WARPERS] if generation.do_sample else []
    set_here = {name: getattr(generation, name) for name in (*names, *LENGTHS)}
    pairs = [f"{name} = {value}" for name, value in set_here.items() if value != getattr(default, name)]
    if pairs:
        note(
            f"{where.name} has {', '.join(pairs)}; a bundle follows that with --sampling checkpoint and by "
            "default answers greedily, with 128 tokens at most"
        )


def _tell_noted(settings: Any, where: Path, note: Callable[[str], None]) -> None:
    for name, (what, asks) in NOTED.items():
        value = getattr(settings, name, None)
        if value is not None and asks(value):
            note(
                f"{where.name} asks for {what} ({name} = {_shown(value)}), which a bundle does not do; its answers may "
                "differ from transformers'"
            )


def _tell_unknown(said: Mapping[str, Any], where: Path, note: Callable[[str], None]) -> None:
    """Keys that are in none of the classes: a later transformers' or misspelt ones, which it never reads."""
    unknown = [name for name, value in said.items() if value is not None and name not in _KNOWN]
    if unknown := sorted(name for name in unknown if not name.startswith("_")):
        note(f"{where.name} has {quoted(', '.join(unknown), limit=100)}, which a bundle does not know and passes over")


def _tell_passed_over(described: Mapping[str, Any], settings: Any, note: Callable[[str], None]) -> None:
    """Notes what config.json says of generation otherwise than generation_config.json, which the library follows."""
    from transformers import GenerationConfig

    defaults = GenerationConfig._get_default_generation_params()
    text = described.get("text_config")
    said = {**(text if isinstance(text, dict) else {}), **described}
    for name in sorted(HONOURED.union(NOTED)):
        value, taken = said.get(name), getattr(settings, name, None)
        same = value is None or value == defaults.get(name) or _listed(value) == _listed(taken)
        # One of several end tokens, or one that is told already
        if same or (
            name == "eos_token_id" and (taken is None or all(each in _listed(taken) for each in _listed(value)))
        ):
            continue
        note(
            f"{CONFIG_FILE} has {name} = {_shown(value)}, which is passed over as in transformers, because there is a "
            f"{GENERATION_FILE}"
        )


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _shown(value: Any) -> str:
    """A value for a sentence."""
    return quoted(repr(value), limit=100)
