"""ops.toml as objects; its keys are explained there."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = Path(__file__).with_name("ops.toml")
ROLES = ("inputs", "outputs", "diagnostics")
ELEMENTS = ("features", "float32", "int64", "bool")
KINDS = ("integer", "number", "flag", "word")
COUNTS = ("keep", "patches to keep", "visual_count", "tokens")  # the upper bounds that a call's sizes give

Condition = dict[str, tuple[Any, ...]]  # the values of attributes with which something is there; {}: always


class SchemaError(ValueError):
    """A description that contradicts itself; the sentence names the op."""


@dataclass(frozen=True)
class Attribute:
    """One attribute of a node.

    Attributes:
        words: The number in C of every word that may stand there: a constant's name, a whole number, or None for
            attributes that native forms do not read.
        type: In C, such as "int32_t" or "vtx_center".
        field: The field of the op's structure, None where there is none.
    """

    name: str
    kind: str
    least: float | None
    most: float | str | None
    above: float | None
    words: Mapping[str, str | int | None]
    type: str
    field: str | None
    read: bool
    optional: bool
    when: Condition
    default: str | list[str]
    allowed: str
    about: str


@dataclass(frozen=True)
class Tensor:
    """An input, an output or an intermediate value; `member` is its name in the C structure."""

    name: str
    member: str
    element: str
    axes: str
    about: str = ""
    when: Condition = field(default_factory=dict)


@dataclass(frozen=True)
class Axis:
    """A letter of `Tensor.axes`. Its length is in a field of the sizes, or an attribute `plus` so many, or neither."""

    symbol: str
    most: str | None = None
    size: str | None = None
    attribute: str | None = None
    plus: int = 0


@dataclass(frozen=True)
class Place:
    """A place where ops act, with the structures that they share there."""

    name: str
    about: str
    sizes_type: str
    sizes: Mapping[str, str]
    tensors_type: str
    tensors_about: str
    axes: Mapping[str, Axis]
    tensors: Mapping[str, tuple[Tensor, ...]]


@dataclass(frozen=True)
class Op:
    """An op. `attributes` are those of its page; `all_attributes` are those of its nodes."""

    name: str
    function: str
    place: Place
    page: str
    least_keep: int
    cls_rows: str | None
    needs_grid: Condition | None
    columns: tuple[str, ...]
    attributes: tuple[Attribute, ...]
    tensors: Mapping[str, tuple[Tensor, ...]]

    @property
    def fields(self) -> list[Attribute]:
        """The attributes that the op's structure in C holds, in its order."""
        return [each for each in self.attributes if each.field is not None]

    @property
    def all_attributes(self) -> list[Attribute]:
        """The attributes of a node in their order."""
        counts = [_count("keep", self.least_keep, "tokens + 1")]
        if self.place.name == "llm":
            counts = [_count("visual_count", 1, None), _count("keep", 1, "visual_count")]
        elif self.needs_grid is not None:
            counts += [_count(name, 1, None, optional=True) for name in ("grid_rows", "grid_columns")]
        marks = [_attribute({"name": name, "kind": "word", "read": False}) for name in _MARKS]
        return [*marks, *counts, *(each for each in self.attributes if each.name != "keep")]

    def attribute(self, name: str) -> Attribute:
        return next(each for each in self.all_attributes if each.name == name)


@dataclass(frozen=True)
class Schema:
    """All ops. `enumerations` are those of C, with their constants by number."""

    abi_version: int
    enumerations: Mapping[str, list[str]]
    places: Mapping[str, Place]
    ops: tuple[Op, ...]

    def number_of(self, word: str | int) -> int:
        """The number behind a word: what the constant of an enumeration is, or the number itself."""
        if isinstance(word, int):
            return word
        for constants in self.enumerations.values():
            if word in constants:
                return constants.index(word)
        raise SchemaError(f"no enumeration has {word}")


_MARKS = ("plugin_namespace", "plugin_version")


def read(path: Path = FILE) -> Schema:
    """The schema of a file.

    Raises:
        SchemaError: It contradicts itself.
        KeyError: A key is missing, or one is there that ops.toml does not know.
    """
    raw = tomllib.loads(path.read_text(encoding="utf-8"))
    places = {name: _place(name, each) for name, each in raw["places"].items()}
    schema = Schema(raw["abi_version"], raw["enumerations"], places, tuple(_op(each, places) for each in raw["op"]))
    for op in schema.ops:
        _check(schema, op)
    return schema


def _place(name: str, raw: dict[str, Any]) -> Place:
    return Place(
        name,
        raw["about"],
        raw["sizes_type"],
        {each["name"]: each.get("about", "") for each in raw["sizes"]},
        raw["tensors_type"],
        raw["tensors_about"],
        {letter: Axis(**each) for letter, each in raw["axes"].items()},
        {role: tuple(Tensor(member=each.get("member", each["name"]), **_without(each, "member"))
                     for each in raw["tensors"][role]) for role in ROLES},
    )  # fmt: skip


def _op(raw: dict[str, Any], places: Mapping[str, Place]) -> Op:
    known = {"name", "function", "place", "page", "least_keep", "cls_rows", "needs_grid", "columns", "attribute"}
    if unknown := set(raw) - known - set(ROLES):
        raise KeyError(f"{raw['name']}: {', '.join(sorted(unknown))}")
    place = places[raw["place"]]
    grid = raw.get("needs_grid")
    return Op(
        raw["name"],
        raw["function"],
        place,
        raw["page"],
        raw.get("least_keep", 1),
        raw.get("cls_rows"),
        None if grid is None else {} if grid is True else _condition(grid),
        tuple(raw.get("columns", ())),
        tuple(_attribute(each) for each in raw.get("attribute", ())),
        {role: tuple(_tensor(each, place.tensors[role]) for each in raw[role]) for role in ROLES},
    )


def _attribute(raw: dict[str, Any]) -> Attribute:
    known = {"name", "kind", "least", "most", "above", "words", "type", "field", "read", "when", "default", "allowed",
             "about", "optional"}  # fmt: skip
    if unknown := set(raw) - known:
        raise KeyError(f"{raw['name']}: {', '.join(sorted(unknown))}")
    name, kind, is_read = raw["name"], raw["kind"], raw.get("read", True)
    words = raw.get("words", {})
    is_count = name in ("keep", "visual_count", "grid_rows", "grid_columns")
    return Attribute(
        name,
        kind,
        raw.get("least"),
        raw.get("most"),
        raw.get("above"),
        words if isinstance(words, dict) else dict.fromkeys(words),
        raw.get("type", "float" if kind == "number" else "int32_t"),
        raw.get("field", name) if is_read and not is_count else None,
        is_read,
        raw.get("optional", False),
        _condition(raw.get("when", {})),
        raw.get("default", ""),
        raw.get("allowed", ""),
        raw.get("about", ""),
    )


def _count(name: str, least: int, most: str | None, *, optional: bool = False) -> Attribute:
    return _attribute({"name": name, "kind": "integer", "least": least, "most": most, "optional": optional})


def _tensor(raw: str | dict[str, Any], known: tuple[Tensor, ...]) -> Tensor:
    given = {"name": raw} if isinstance(raw, str) else raw
    found = next((each for each in known if each.name == given["name"]), None)
    if found is None:
        raise SchemaError(f"no tensor of this place and role is called {given['name']}")
    when = _condition(given.get("when", {}))
    return Tensor(found.name, found.member, found.element, given.get("axes", found.axes), found.about, when)


def _condition(raw: Mapping[str, Any]) -> Condition:
    return {name: tuple(value) if isinstance(value, list) else (value,) for name, value in raw.items()}


def _without(raw: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in raw.items() if name not in names}


def _check(schema: Schema, op: Op) -> None:
    def refuse(sentence: str) -> None:
        raise SchemaError(f"{op.name}: {sentence}")

    for each in op.all_attributes:
        if each.kind not in KINDS:
            refuse(f"attribute {each.name} is of kind {each.kind!r}; kinds are {', '.join(KINDS)}")
        if isinstance(each.most, str) and each.most not in (*COUNTS, "tokens + 1"):
            refuse(f"attribute {each.name} is at most {each.most!r}; counts are {', '.join(COUNTS)}")
        if each.least is not None and each.above is not None:
            refuse(f"attribute {each.name} has `least` and `above`; give one")
        if each.read and each.kind == "integer" and each.least is None:
            refuse(f"attribute {each.name} has no `least`")
        if each.field is not None and each.kind == "word" and not each.words:
            refuse(f"attribute {each.name} has no words")
        for word in each.words.values():
            if word is not None:
                schema.number_of(word)
    if op.columns and any(len(each.default) != len(op.columns) for each in op.attributes):
        refuse("an attribute's `default` has not as many entries as `columns`")
    for condition in _conditions(op):
        if len(condition) > 1:
            refuse("a condition names several attributes; the table of C++ has one")
        for name, values in condition.items():
            attribute = op.attribute(name)
            allowed = list(attribute.words) if attribute.kind == "word" else [0, 1]
            if attribute.field is None or attribute.kind not in ("word", "flag") or not set(values) <= set(allowed):
                refuse(f"a condition names {name} = {values}; it takes flags and words of attributes that are read")
    for role in ROLES:
        for tensor in op.tensors[role]:
            if unknown := set(tensor.axes) - set(op.place.axes) or tensor.element not in ELEMENTS:
                refuse(f"{tensor.name} has an unknown axis or element: {unknown}")
    # ONNX Runtime is told one type a position, and which positions every node has.
    for role in ("inputs", "outputs"):
        for position, types in enumerate(positions(op, role)):
            if len(types) > 1:
                refuse(f"{role[:-1]} {position} has several types, {', '.join(sorted(types))}, by its attributes")


def positions(op: Op, role: str) -> list[set[str]]:
    """The element types that may stand at each position of a node's inputs or outputs, whatever its attributes."""
    names = sorted({name for each in op.tensors[role] for name in each.when})
    choices = [tuple(op.attribute(name).words) or (0, 1) for name in names]
    found: list[set[str]] = []
    for values in itertools.product(*choices):
        given = dict(zip(names, values, strict=True))
        there = [each for each in op.tensors[role] if all(given[name] in of for name, of in each.when.items())]
        found += [set() for _ in there[len(found) :]]
        for position, tensor in enumerate(there):
            found[position].add(tensor.element)
    return found


def _conditions(op: Op) -> Iterator[Condition]:
    yield from (each.when for each in op.attributes)
    for role in ROLES:
        yield from (each.when for each in op.tensors[role])
    if op.needs_grid:
        yield op.needs_grid
