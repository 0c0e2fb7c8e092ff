"""The tables in docs/ops/*.md: attributes and tensors of every op, between two comments that name it."""

from __future__ import annotations

from pathlib import Path

from c_header import range_text
from schema import Attribute, Op, Place, Schema, SchemaError, Tensor

_TYPES = {"integer": "int", "flag": "int", "number": "float", "word": "string"}
_ROLES = {"inputs": "in", "outputs": "out", "diagnostics": "test"}
_END = "<!-- end -->"
_FEATURES = "float32, float16 or bfloat16"


def write(schema: Schema, page: Path) -> str:
    """The page's text with its tables as the schema has them."""
    text = page.read_text(encoding="utf-8")
    for op in (each for each in schema.ops if each.page == page.name):
        for part, table in (("attributes", _attributes(op)), ("tensors", _tensors(op))):
            first = f"<!-- {part} of {op.name}: plugins/schema/ops.toml -->"
            if not table:
                continue
            before, found, rest = text.partition(first)
            _, found_end, behind = rest.partition(_END)
            if not (found and found_end):
                raise SchemaError(f"docs/ops/{page.name} has no lines {first} and {_END}")
            text = f"{before}{first}\n\n{table}\n\n{_END}{behind}"
    return text


def _attributes(op: Op) -> str:
    if not op.attributes:
        return ""
    defaults = [f"`{word}`" for word in op.columns] or ["default"]
    rows = [["attribute", "type", *defaults, "allowed", "meaning"]]
    for each in op.attributes:
        default = each.default if isinstance(each.default, list) else [each.default]
        kind = _TYPES[each.kind] if each.read else "option"
        rows.append([f"`{each.name}`", kind, *default, _allowed(op, each), each.about])
    return _table(rows)


def _allowed(op: Op, attribute: Attribute) -> str:
    if attribute.allowed:
        return attribute.allowed
    if attribute.kind == "flag":
        return "0, 1"
    return range_text(op, attribute) or ", ".join(f"`{word}`" for word in attribute.words)


def _tensors(op: Op) -> str:
    rows = [["", "name", "type", "shape", "there"]]
    for role, said in _ROLES.items():
        for each in op.tensors[role]:
            rows.append([said, f"`{each.name}`", _type(op, each), _shape(op.place, each), _there(each)])
    return _table(rows)


def _type(op: Op, tensor: Tensor) -> str:
    if tensor.element != "features":
        return tensor.element
    first = op.tensors["inputs"][0]
    return _FEATURES if tensor == first else f"as `{first.name}`"


def _shape(place: Place, tensor: Tensor) -> str:
    return f"[{', '.join(place.axes[letter].symbol for letter in tensor.axes)}]"


def _there(tensor: Tensor) -> str:
    return " and ".join(
        f"with `{name}` = {' or '.join(f'`{value}`' for value in values)}" for name, values in tensor.when.items()
    )


def _table(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |".replace("|  |", "| |").replace("|  |", "| |") for row in rows]
    lines.insert(1, "| " + " | ".join(["---"] * len(rows[0])) + " |")
    return "\n".join(lines)
