"""docs/measuring.md against the structs of a report: every key in its object's row, and no other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from vtexport.measure import record
from vtexport.measure.record import SCHEMA_VERSION

PAGE = (Path(__file__).parents[2] / "docs" / "measuring.md").read_text(encoding="utf-8")
STRUCTS = [
    each
    for name, each in vars(record).items()
    if isinstance(each, type) and issubclass(each, msgspec.Struct) and not name.startswith("_") and name != "Note"
]


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_every_key_is_on_the_page(struct: Any) -> None:
    (row,) = re.findall(rf"^\| `{struct.__name__}` \| (.*) \|$", PAGE, re.MULTILINE)
    named = set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", row)))
    described = inspect.type_info(struct)
    assert isinstance(described, inspect.StructType)
    tag = {"type"} if described.tag is not None else set()
    assert named == {field.encode_name for field in described.fields} | tag


def test_the_version_is_on_the_page() -> None:
    assert f"`schema_version` {SCHEMA_VERSION}." in PAGE
