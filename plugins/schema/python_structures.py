"""vtexport/plugins/op_structures.py: the structures for ctypes, and what a node of each op has."""

from __future__ import annotations

from c_header import NOTE
from schema import ROLES, Attribute, Op, Place, Schema, Tensor

_HEAD = '''"""The ops' C structures (plugins/include/vtx_structures.h) for ctypes, and what their nodes have.

{note}
"""

# fmt: off
from __future__ import annotations

import ctypes

from vtexport.plugins.op_table import Attribute, Axis, NativeOp, NativeTensor

ABI_VERSION = {version}

_int, _float, _pointer = ctypes.c_int32, ctypes.c_float, ctypes.c_void_p
'''
_STRUCTURES = {"vtx_sizes": "NativeSizes", "vtx_tensors": "NativeTensors", "vtx_step_sizes": "NativeStepSizes",
               "vtx_step_tensors": "NativeStepTensors"}  # fmt: skip


def write(schema: Schema) -> str:
    """The module's text."""
    parts = [_HEAD.format(note=NOTE, version=schema.abi_version)]
    for place in schema.places.values():
        parts.append(_structure(_STRUCTURES[place.sizes_type], place.sizes_type, dict.fromkeys(place.sizes, "_int")))
        pointers = {each.member: "_pointer" for role in ROLES for each in place.tensors[role]}
        parts.append(_structure(_STRUCTURES[place.tensors_type], place.tensors_type, pointers))
    for op in schema.ops:
        if op.fields:
            kinds = {str(each.field): "_float" if each.kind == "number" else "_int" for each in op.fields}
            parts.append(_structure(structure_name(op), f"vtx_{op.function}", kinds))
    for place in schema.places.values():
        parts.append(_axes(place))
    parts.append("\n".join(["\nOPS = {", *(_op(schema, op) for op in schema.ops), "}\n"]))
    return "\n".join(parts)


def structure_name(op: Op) -> str:
    return f"{op.name.removeprefix('Vtx')}Parameters"


def _structure(name: str, c_name: str, fields: dict[str, str]) -> str:
    lines = [f'\nclass {name}(ctypes.Structure):\n    """`{c_name}`."""\n\n    _fields_ = [']
    lines += _packed([f'("{field}", {kind})' for field, kind in fields.items()], 8)
    return "\n".join([*lines, "    ]\n"])


def _packed(items: list[str], indent: int) -> list[str]:
    """Items with their commas, as many in a line as it holds; none has a quotation mark in a text of its own."""
    lines: list[str] = []
    for item in (each.replace(chr(39), chr(34)) for each in items):
        if lines and len(lines[-1]) + len(item) + 2 <= 120:
            lines[-1] += f" {item},"
        else:
            lines.append(" " * indent + f"{item},")
    return lines


def _axes(place: Place) -> str:
    items = []
    for letter, axis in place.axes.items():
        given = [f"size={axis.size!r}"] if axis.size else []
        given += [f"parameter={axis.attribute!r}"] if axis.attribute else []
        given += [f"plus={axis.plus}"] if axis.plus else []
        items.append(f"{letter!r}: Axis({', '.join(given)})")
    return "\n".join([f"\n{_axes_name(place)} = {{", *_packed(items, 4), "}"])


def _axes_name(place: Place) -> str:
    return f"_{place.name.upper()}_AXES"


def _op(schema: Schema, op: Op) -> str:
    parameters = structure_name(op) if op.fields else "None"
    lines = [f'    "{op.name}": NativeOp(', f'        "{op.function}", "{op.name}", {parameters},']
    lines.append(f"        is_step={op.place.name == 'llm'}, needs_grid={op.needs_grid is not None},")
    lines.append(f"        axes={_axes_name(op.place)},")
    lines.append("        attributes=(")
    lines += _packed([_attribute(schema, each) for each in op.all_attributes], 12)
    lines.append("        ),")
    for role, tensors in op.tensors.items():
        lines.append(f"        {role}=(")
        lines += _packed([_tensor(each) for each in tensors], 12)
        lines.append("        ),")
    return "\n".join([*lines, "    ),"])


def _attribute(schema: Schema, each: Attribute) -> str:
    given = [repr(each.name), repr(each.kind)]
    if each.field is not None:
        given.append(repr(each.field))
    if not each.read:
        given.append("is_read=False")
    if each.words:
        numbers = {word: None if of is None else schema.number_of(of) for word, of in each.words.items()}
        given.append(f"words={numbers!r}")
    return f"Attribute({', '.join(given)})"


def _tensor(each: Tensor) -> str:
    given = [repr(each.name), repr(each.element), repr(each.axes), repr(each.member)]
    if each.when:
        given.append(f"when={each.when!r}")
    return f"NativeTensor({', '.join(given)})"
