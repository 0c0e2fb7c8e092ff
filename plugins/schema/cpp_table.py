"""plugins/common/ops_table.h: the one table of the ops in C++, of the types in plugins/common/schema.h."""

from __future__ import annotations

import re

from c_header import NOTE
from schema import Attribute, Condition, Op, Place, Schema, Tensor

_HEAD = f"""// {NOTE}
// clang-format off
#ifndef VTX_COMMON_OPS_TABLE_H
#define VTX_COMMON_OPS_TABLE_H

#include "schema.h"

namespace vtx {{
namespace ops {{
"""
_KINDS = {"integer": "kInteger", "number": "kNumber", "flag": "kFlag", "word": "kWord"}
_ELEMENTS = {"features": "kFeatures", "float32": "kFloat32", "int64": "kInt64", "bool": "kBool"}
_BOUNDS = {"keep": "kKeep", "patches to keep": "kPatchesToKeep", "visual_count": "kVisualCount", "tokens": "kTokens"}
_PLACES = {"encoder": "kEncoder", "llm": "kLlm"}


def write(schema: Schema) -> str:
    """The header's text."""
    parts = [_HEAD]
    for place in schema.places.values():
        parts.append(_axes(place))
    for op in schema.ops:
        parts.append(_op(schema, op))
    listed = ", ".join(f"&{op.function}" for op in schema.ops)
    parts.append(f"inline constexpr const OpSchema* kAll[] = {{{listed}}};\n")
    parts.append("}  // namespace ops\n}  // namespace vtx\n")
    parts.append("// Every op: WITH(function, sizes, tensors), or WITHOUT(...) where it has no parameters of its own.")
    calls = [f"{'WITH' if op.fields else 'WITHOUT'}({op.function}, {op.place.sizes_type}, {op.place.tensors_type})"
             for op in schema.ops]  # fmt: skip
    parts.append("#define VTX_EACH_OP(WITH, WITHOUT) \\\n  " + " \\\n  ".join(calls) + "\n")
    return "\n".join([*parts, "#endif\n"])


def _axes(place: Place) -> str:
    rows = []
    for letter, axis in place.axes.items():
        if axis.most is not None:
            size = f"offsetof({place.sizes_type}, {axis.size})" if axis.size else "kNowhere"
            rows.append(f"    {{'{letter}', {axis.most}, {size}}},")
    return "\n".join([f"inline constexpr Axis {_axes_name(place)}[] = {{", *rows, "};\n"])


def _axes_name(place: Place) -> str:
    return f"{_PLACES[place.name]}Axes"


def _op(schema: Schema, op: Op) -> str:
    lines = [f"namespace {op.function}_parts {{"]
    attributes = op.all_attributes
    for each in attributes:
        if each.read and each.words:
            words = ", ".join(f'{{"{word}", {number}}}' for word, number in each.words.items())
            lines.append(f"inline constexpr Word {_words_name(each)}[] = {{{words}}};")
    lines.append("inline constexpr Attribute kAttributes[] = {")
    lines += [f"    {_attribute(schema, op, each)}," for each in attributes]
    lines.append("};")
    for role, tensors in op.tensors.items():
        lines.append(f"inline constexpr Tensor k{role.capitalize()}[] = {{")
        lines += [f"    {_tensor(schema, op, each)}," for each in tensors]
        lines.append("};")
    lines.append(f"}}  // namespace {op.function}_parts")
    own = f"{op.function}_parts::"
    size = f"sizeof(vtx_{op.function})" if op.fields else "0"
    cls_rows = _index(op, op.cls_rows) if op.cls_rows else -1
    grid = "kNever" if op.needs_grid is None else _condition(schema, op, op.needs_grid)
    lines.append(
        f'inline constexpr OpSchema {op.function} = {{"{op.name}", "{op.function}", Place::{_PLACES[op.place.name]}, '
        f"{op.least_keep}, {cls_rows}, {grid}, {size},\n    {_axes_name(op.place)}, {own}kAttributes, {own}kInputs, "
        f"{own}kOutputs, {own}kDiagnostics}};"
    )
    if op.fields:
        lines.append(f"static_assert({size} <= kMostParameterBytes);")
    return "\n".join(lines) + "\n"


def _attribute(schema: Schema, op: Op, each: Attribute) -> str:
    if not each.read:
        return f'{{"{each.name}", Kind::{_KINDS[each.kind]}, false}}'
    field = f"offsetof(vtx_{op.function}, {each.field})" if each.field else "kNowhere"
    above = each.above is not None
    least, most = each.above if above else each.least, "FLT_MAX"
    bound = "kNone"
    if each.kind == "flag":
        least, most = 0, "1"
    elif each.kind == "integer":
        most = "VTX_MOST_TOKENS"
        if each.most == "tokens + 1":
            most = "VTX_MOST_TOKENS + 1"
        elif isinstance(each.most, str):
            bound = _BOUNDS[each.most]
        elif each.most is not None:
            most = str(each.most)
    elif each.kind == "word":
        most = "0"
    elif each.most is not None:
        most = str(each.most)
    words = f"List<Word>({_words_name(each)})" if each.words else "{}"
    flags = f"true, {str(each.optional).lower()}"
    range_ = f"{0 if least is None else least}, {most}, {str(above).lower()}, Bound::{bound}"
    when = _condition(schema, op, each.when)
    return f'{{"{each.name}", Kind::{_KINDS[each.kind]}, {flags}, {field}, {range_}, {words}, {when}}}'


def _tensor(schema: Schema, op: Op, each: Tensor) -> str:
    offset = f"offsetof({op.place.tensors_type}, {each.member})"
    when = _condition(schema, op, each.when)
    return f'{{"{each.name}", Element::{_ELEMENTS[each.element]}, "{each.axes}", {offset}, {when}}}'


def _condition(schema: Schema, op: Op, condition: Condition) -> str:
    """An attribute's place in the table, and a bit for each of its values."""
    if not condition:
        return "kAlways"
    ((name, values),) = condition.items()
    attribute = op.attribute(name)
    numbers = [schema.number_of(attribute.words[each]) if attribute.kind == "word" else each for each in values]
    return f"{{{_index(op, name)}, {' | '.join(f'1u << {number}' for number in numbers)}}}"


def _index(op: Op, name: str) -> int:
    return [each.name for each in op.all_attributes].index(name)


def _words_name(attribute: Attribute) -> str:
    return "k" + "".join(part.capitalize() for part in re.split(r"[_-]", attribute.name))
