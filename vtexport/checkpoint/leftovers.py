"""Stored tensors that a model has no place for, judged by their names: what they are, and whether answers change.

transformers' from_pretrained passes over every tensor that it does not know. Most are left by training or conversion
and change nothing; some show that the weights are not what they seem.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from vtexport.checkpoint.model_config import ModelConfig
from vtexport.checkpoint.safetensors_index import WEIGHT_FORMATS, TensorEntry
from vtexport.errors import InputError, quoted

NAMED_AT_MOST = 3
_NAME_LENGTH = 100
_NAMES_LENGTH = 100  # of several together
_FLOATS = (*WEIGHT_FORMATS, "F64")
# peft's tuners and its wrappers of layers, by a part of the name
_ADAPTER = re.compile(
    r"(?:^|\.)(?:(?:lora|hada|lokr|loha|ia3|oft|boft|poly|vera|dora|delora|randlora|vblora|fourierft|waveft|shira|road|"
    r"c3a|hra|bone|miss|ln_tuning|trainable_tokens|adaption|internal_xlora)_\w+|base_layer|modules_to_save|"
    r"original_module|token_adapter|prompt_encoder|prompt_embeddings|prefix_projection|adapters?)(?:\.|$)"
)
# what quantisers and quantisation-aware training keep beside a weight
_SCALE = re.compile(
    r"(?:^|\.)(?:(?:input|weight|output|activation|act|q|k|v|k_cache|v_cache)_(?:global_)?scale(?:_inv|_2)?|scales|"
    r"\w*zero_point|qzeros|g_idx|absmax|quant_\w+|SCB|\w*fake_quant\w*|activation_post_process)(?:\.|$)"
)
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def refuse_adapters(names: Iterable[str], folder: Path) -> None:
    """Refuses tensors of an adapter that was not merged, which only peft would apply.

    Raises:
        InputError: naming the first.
    """
    found = [name for name in names if _ADAPTER.search(name)]
    if found:
        raise InputError(
            f"{folder} holds {some(found, 'tensor')} of an adapter that was not merged (LoRA or another), which "
            "transformers leaves out; call merge_and_unload() on the model it was trained in, then save_pretrained()"
        )


def refuse_quantised(
    own: Mapping[str, TensorEntry],
    extras: Mapping[str, TensorEntry],
    missing: Iterable[str],
    model: ModelConfig,
    folder: Path,
) -> None:
    """Refuses quantised weights, by what is stored: whole numbers and 8-bit floats in place of a weight, or beside it.

    `own` has the stored tensors by the model's names, `extras` all others by their own. Scales beside weights in full
    precision are refused only where config.json says that something is quantised: then transformers would compute with
    them.

    Raises:
        InputError: naming the method, as far as config.json does, and the first such tensor.
    """
    claim = model.file.quantisation
    packed = next((found for found in own.items() if found[1].dtype not in _FLOATS), None)
    if packed is None:
        modules = {name.removesuffix("weight") for name in missing if name.endswith(".weight")}
        packed = next((found for found in extras.items() if _replaces(*found, modules, model)), None)
    if packed is not None:
        by = f", quantised by {claim} as its config.json says" if claim else ""
        raise InputError(
            f"{folder} stores {shown(packed[0])} as {packed[1].dtype}{by}, and vtexport reads float32, float16 and "
            "bfloat16; use the checkpoint that this one was quantised from"
        )
    scale = next((name for name in extras if _SCALE.search(name)), None)
    if scale is not None and claim is not None:
        raise InputError(
            f"{folder} stores scales ({shown(scale)}) beside weights in full precision, and its config.json names the "
            f"quantisation {claim}, so the weights alone do not answer as the model does; use the checkpoint before "
            "quantisation"
        )


def refuse_foreign_layers(extras: Iterable[str], model: ModelConfig, folder: Path) -> None:
    """Refuses layers beyond those that the configuration counts: weights and config.json are of different models.

    Raises:
        InputError: naming them.
    """
    kinds = {_NUMBER.sub("#", name) for name in model.shapes if _NUMBER.search(name)}
    canonical = {name: model.family.canonical_name(name) for name in extras}
    beyond = [name for name, own in canonical.items() if _NUMBER.search(own) and _NUMBER.sub("#", own) in kinds]
    if beyond:
        raise InputError(
            f"{folder} holds {some(beyond, 'tensor')} that the model of its config.json has no place for, because it "
            "counts fewer layers; check that weights and config.json belong together"
        )


def refuse_more_of_the_tower(extras: Iterable[str], model: ModelConfig, folder: Path) -> None:
    """Refuses weights and biases more than the model has in the parts of the vision tower that every graph reads.

    The tower that was saved computes with them; transformers would leave them out and answer as another model.

    Raises:
        InputError: naming them.
    """
    tower = model.spec.vision
    parts = tower.parts_read(range(tower.feature_layer))
    names = {name: model.family.canonical_name(name) for name in extras}
    more = [name for name, own in names.items() if own.startswith(parts) and own.endswith((".weight", ".bias"))]
    if more:
        raise InputError(
            f"{folder} holds {some(more, 'tensor')} that the vision tower of its config.json has no place for, so "
            "it is of another kind; check that weights and config.json belong together"
        )


def common_prefix(missing: Collection[str], extras: Iterable[str], canonical_name: Callable[[str], str]) -> str | None:
    """The prefix of every missing tensor's stored name among the extras, where it is the same for all."""
    prefixes: dict[str, str] = {}
    for stored in extras:
        at = stored.find(".")
        while at >= 0:
            name = canonical_name(stored[at + 1 :])
            if name in missing:
                prefixes[name] = stored[: at + 1]
                break
            at = stored.find(".", at + 1)
    found = set(prefixes.values())
    return found.pop() if len(found) == 1 and len(prefixes) == len(missing) else None


def some(names: Iterable[str], what: str) -> str:
    """`the tensor a`, `3 tensors (a, b, c)` or `7 tensors (a, b, ...)`: as many of three as are short, one at least."""
    listed = list(names)
    if len(listed) == 1:
        return f"the {what} {shown(listed[0])}"
    named = [shown(listed[0])]
    for name in map(shown, listed[1:NAMED_AT_MOST]):
        if sum(map(len, named)) + len(name) > _NAMES_LENGTH:
            break
        named.append(name)
    more = ", ..." if len(listed) > len(named) else ""
    return f"{len(listed)} {what}s ({', '.join(named)}{more})"


def shown(name: str) -> str:
    """A tensor's name as a message has it, however long or odd it is."""
    return quoted(name if name.isprintable() else repr(name), limit=_NAME_LENGTH)


def _replaces(stored: str, entry: TensorEntry, modules: Collection[str], model: ModelConfig) -> bool:
    """True where an extra stands in the module of a missing weight and is no float: `qweight`, `weight_packed`, ..."""
    if entry.dtype in _FLOATS:
        return False
    name = model.family.canonical_name(stored)
    return any(name[: at + 1] in modules for at in range(len(name)) if name[at] == ".")
