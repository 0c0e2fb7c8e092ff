"""docs/bundle.md against the structs that read these files: every key with its type and default, and no other."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from vtexport.backends.record import Engines
from vtexport.bundle.adaptive import AdaptiveFile
from vtexport.bundle.manifest import SCHEMA_VERSION, Manifest

PAGE = (Path(__file__).parents[2] / "docs" / "bundle.md").read_text(encoding="utf-8")
ROOTS = (Manifest, AdaptiveFile, Engines)


def structs_below(kind: inspect.Type) -> dict[str, inspect.StructType]:
    """Every struct that a type is made of, by its name."""
    if isinstance(kind, inspect.StructType):
        inner = [field.type for field in kind.fields]
        found = {kind.cls.__name__: kind}
    else:
        inner = [getattr(kind, name) for name in ("item_type", "key_type", "value_type") if hasattr(kind, name)]
        inner += getattr(kind, "types", ()) or getattr(kind, "item_types", ())
        found = {}
    for each in inner:
        found |= structs_below(each)
    return found


STRUCTS = {name: struct for root in ROOTS for name, struct in structs_below(inspect.type_info(root)).items()}


def said(kind: inspect.Type) -> str:
    """A type in the page's words."""
    match kind:
        case inspect.Metadata():
            return said(kind.type)
        case inspect.StructType():
            return kind.cls.__name__
        case inspect.ListType() | inspect.VarTupleType():
            return f"array of {said(kind.item_type)}"
        case inspect.TupleType():
            return f"[{', '.join(said(each) for each in kind.item_types)}]"
        case inspect.DictType():
            keys = f" by {said(kind.key_type)}" if isinstance(kind.key_type, inspect.LiteralType) else ""
            return f"object of {said(kind.value_type)}{keys}"
        case inspect.LiteralType():
            return ", ".join(json.dumps(value) for value in kind.values)
        case inspect.UnionType():
            return " or ".join(said(each) for each in kind.types)
    words = {"Str": "string", "Int": "integer", "Float": "number", "Bool": "boolean", "None": "null", "Any": "any"}
    return words[type(kind).__name__.removesuffix("Type")]


def default_of(field: inspect.Field) -> str:
    """The value of a key that is absent, as JSON; "required" where it must be there."""
    if field.required:
        return "required"
    value: Any = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    return "defaults" if isinstance(value, msgspec.Struct) else json.dumps(value)


def fields_of(struct: inspect.StructType) -> dict[str, tuple[str, str]]:
    """Keys with type and default; the one that tells tagged structs apart among them."""
    tag = {struct.tag_field: (json.dumps(struct.tag), "required")} if struct.tag_field else {}
    return tag | {field.encode_name: (said(field.type), default_of(field)) for field in struct.fields}


def table_of(name: str) -> dict[str, tuple[str, str]]:
    """The page's table under the heading of a struct."""
    sections = re.findall(rf"^#+ `{name}`\n(.*?)(?=^#|\Z)", PAGE, flags=re.DOTALL | re.MULTILINE)
    assert len(sections) == 1, f"the page has {len(sections)} sections `{name}`"
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]*) \| ([^|]*) \|[^|]*\|$", sections[0], flags=re.MULTILINE)
    assert len({key for key, *_ in rows}) == len(rows) == sections[0].count("\n| `")
    return {key: (kind.replace("`", ""), default.replace("`", "")) for key, kind, default in rows}


@pytest.mark.parametrize("name", STRUCTS)
def test_every_key_is_named_with_type_and_default(name: str) -> None:
    assert table_of(name) == fields_of(STRUCTS[name])


def test_no_other_struct_is_named() -> None:
    assert set(re.findall(r"^#+ `(\w+)`$", PAGE, flags=re.MULTILINE)) == set(STRUCTS)


def test_the_page_is_about_this_schema() -> None:
    assert f"schema_version` {SCHEMA_VERSION}" in PAGE
