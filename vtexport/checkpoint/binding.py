"""Stored tensors matched with those of a model: what is stored decides, and what no graph reads may be missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vtexport.checkpoint.layouts import refuse_other_names
from vtexport.checkpoint.leftovers import (
    common_prefix,
    refuse_adapters,
    refuse_foreign_layers,
    refuse_more_of_the_tower,
    refuse_quantised,
    shown,
    some,
)
from vtexport.checkpoint.model_config import ModelConfig
from vtexport.checkpoint.safetensors_index import WEIGHT_FORMATS, TensorEntry
from vtexport.checkpoint.stored_values import same_values
from vtexport.dtypes import WEIGHT_DTYPES
from vtexport.errors import InputError
from vtexport.models.parts import EMBEDDING, HEAD
from vtexport.models.wrappers import WRAPPERS


@dataclass(frozen=True)
class Binding:
    """A model's tensors as a checkpoint's files hold them, by canonical name, and how its tied ones are stored."""

    tensors: dict[str, TensorEntry]  # in the model's order
    head: str  # name of the output matrix; the embedding's where both are one
    embedding: str
    absent: tuple[str, ...]  # of the model's tensors, those that not every graph reads and the files lack
    notes: tuple[str, ...]  # for the user


def bind_tensors(stored: Mapping[str, TensorEntry], model: ModelConfig, folder: Path) -> Binding:
    """Matches stored tensors with those of the configuration's model, as transformers' from_pretrained takes them.

    Where the configuration ties the output head to the token embedding and both are stored, their values are compared.

    Raises:
        InputError: a tensor that every graph reads is missing; the files hold quantised weights, an adapter, layers
            beyond the model's, more in the vision tower's parts than they have, another layout, one tensor under two
            names or in another shape; a file cannot be read.
    """
    judge_names(stored, folder)
    names = _Names.read(stored, model, folder)
    optional = model.spec.optional()
    needed = [name for name in model.shapes if not name.startswith(optional)]
    tied = {source: name for name, source in model.ties.items()}  # the name under which a missing one may be stored
    missing = [name for name in needed if name not in names.own and tied.get(name) not in names.own]
    refuse_quantised(names.own, names.extras, missing, model, folder)
    if missing:
        raise InputError(_lacking(missing, names, model, folder))
    _check_shapes(names.own, model, folder)
    extras = [name for name in names.extras if not model.family.is_harmless(name)]
    refuse_foreign_layers(extras, model, folder)
    refuse_more_of_the_tower(extras, model, folder)

    notes = names.notes(folder)
    if model.file.quantisation is not None:
        notes.append(
            f"{model.file.path} names the quantisation {model.file.quantisation}, but the weights are stored in full "
            "precision; they are taken as they are"
        )
    if extras:
        notes.append(
            f"{folder} also holds {some(extras, 'tensor')} that the model has no place for; not used, as in "
            "transformers"
        )
    bound = {name: names.own[name] for name in model.shapes if name in names.own}
    head = _head(names.own, bound, model, notes)
    absent = tuple(name for name in model.shapes if name not in bound and tied.get(name) not in bound)
    return Binding(bound, *head, absent, tuple(notes))


def judge_names(stored: Iterable[str], folder: Path) -> None:
    """Refuses what the tensors' names alone show, so that it can be known before they are there.

    Raises:
        InputError: they are of another layout, or of an adapter that was not merged.
    """
    listed = list(stored)
    refuse_other_names(listed, folder)
    refuse_adapters(listed, folder)


@dataclass(frozen=True)
class _Names:
    """Stored tensors: the model's own by canonical name, all others by the name they have."""

    own: dict[str, TensorEntry]
    extras: dict[str, TensorEntry]
    wrappers: tuple[str, ...]  # prefixes that from_pretrained does not look behind

    @classmethod
    def read(cls, stored: Mapping[str, TensorEntry], model: ModelConfig, folder: Path) -> _Names:
        own: dict[str, TensorEntry] = {}
        extras: dict[str, TensorEntry] = {}
        original: dict[str, str] = {}
        wrappers: dict[str, None] = {}
        for stored_name, entry in stored.items():
            name, around = model.family.read_name(stored_name)
            if name not in model.shapes and name not in model.ties:
                extras[stored_name] = entry
                continue
            if name in own:
                raise InputError(
                    f"{folder} holds one tensor under two names, {shown(original[name])} and {shown(stored_name)}: "
                    "files of two checkpoints are mixed; fetch one of them into an empty folder"
                )
            own[name], original[name] = entry, stored_name
            wrappers.update(dict.fromkeys(around))
        return cls(own, extras, tuple(wrappers))

    def notes(self, folder: Path) -> list[str]:
        if not self.wrappers:
            return []
        left = " and ".join(f"{prefix!r} ({WRAPPERS.get(prefix, 'doubled')})" for prefix in self.wrappers)
        return [
            f"the tensor names of {folder} contain {left}, left by training; they are read without it, while "
            "from_pretrained would put random weights in their place"
        ]


def _lacking(missing: list[str], names: _Names, model: ModelConfig, folder: Path) -> str:
    """The sentence for a checkpoint without tensors that every graph reads."""
    head = HEAD
    if missing == [head]:
        return (
            f"{folder} lacks the tensor {head}, and its config.json does not tie the output head to the embedding "
            "(tie_word_embeddings), so transformers would answer with random numbers; fetch the file that holds it, or "
            'set "tie_word_embeddings": true there if the model was trained so'
        )
    prefix = common_prefix(missing, names.extras, model.family.canonical_name)
    if prefix is not None:
        front = repr(shown(prefix))
        return (
            f"{folder} names its tensors with {front} in front, where transformers finds none; save each file f anew "
            f"with safetensors.torch: t = load_file(f); save_file({{k.removeprefix({front}): t[k] for k in t}}, f, "
            "{'format': 'pt'})"
        )
    others = [name for name in names.extras if not model.family.is_harmless(name)]
    beside = f" (others are there, such as {shown(others[0])})" if others else ""
    return (
        f"{folder} lacks {some(missing, 'tensor')} that its config.json asks for{beside}; "
        "fetch weights and config.json again together"
    )


def _check_shapes(own: Mapping[str, TensorEntry], model: ModelConfig, folder: Path) -> None:
    """Refuses tensors of another shape or a format that no graph takes."""
    shapes = {**model.shapes, **{name: model.shapes[source] for name, source in model.ties.items()}}
    wrong = [name for name, entry in own.items() if entry.shape != shapes[name]]
    if wrong:
        first = wrong[0]
        counted = "a tensor" if len(wrong) == 1 else f"{len(wrong)} tensors"
        raise InputError(
            f"{folder} holds {counted} of another shape than its config.json implies "
            f"({first}: {list(own[first].shape)}, not {list(shapes[first])}); "
            "check that weights and config.json belong together"
        )
    unreadable = [name for name, entry in own.items() if entry.dtype not in WEIGHT_FORMATS]
    if unreadable:
        raise InputError(
            f"{folder} stores {some(unreadable, 'tensor')} as {own[unreadable[0]].dtype}, and vtexport reads "
            f"{', '.join(WEIGHT_DTYPES)}; load it with "
            "from_pretrained(folder, dtype='float32'), then save_pretrained(new_folder)"
        )


def _head(
    own: Mapping[str, TensorEntry], bound: dict[str, TensorEntry], model: ModelConfig, notes: list[str]
) -> tuple[str, str]:
    """The names of output matrix and token embedding; adds what they need to `bound`.

    As transformers ties after loading (`PreTrainedModel.tie_weights`): to whichever is stored, and not at all where
    both are and differ.
    """
    head, embedding = HEAD, EMBEDDING
    if head not in model.ties:
        return head, embedding
    if head not in own:
        return embedding, embedding
    if embedding not in own:
        bound[head] = own[head]
        return head, head
    if same_values(own[head], own[embedding]):
        return embedding, embedding
    bound[head] = own[head]
    notes.append(
        f"{model.file.path} ties the output head to the token embedding, but two different matrices are stored; both "
        "are used, as transformers does"
    )
    return head, embedding
