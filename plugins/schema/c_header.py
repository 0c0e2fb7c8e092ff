"""plugins/include/vtx_structures.h: the structures of the C API."""

from __future__ import annotations

import textwrap

from schema import ROLES, Attribute, Op, Place, Schema, Tensor

NOTE = "Generated from plugins/schema/ops.toml by plugins/schema/generate.py. Not to be edited."
_TYPES = {"features": "void", "float32": "float", "int64": "int64_t", "bool": "uint8_t"}


_HEAD = """/* A part of vtx_ops.h, which includes it.
 * {note} */
/* clang-format off */
#ifndef VTX_STRUCTURES_H
#define VTX_STRUCTURES_H

/* Version of the structures and functions; a library answers with its own (vtx_*_abi_version). */
#define VTX_ABI_VERSION {version}
"""


def write(schema: Schema) -> str:
    """The header's text."""
    parts = [_HEAD.format(note=NOTE, version=schema.abi_version)]
    written: set[str] = set()
    for place in schema.places.values():
        parts += [_sizes(place), _tensors(place)]
        for op in (each for each in schema.ops if each.place is place):
            parts.append(_parameters(schema, op, written))
    return "\n".join([*parts, "#endif\n"])


def axes_text(place: Place, tensor: Tensor) -> str:
    """Such as "[B, N, D]"; a batch that is always 1 is no axis in C."""
    axes = tensor.axes[1:] if len(tensor.axes) > 1 and tensor.axes[0] == "1" else tensor.axes
    return f"[{', '.join(place.axes[letter].symbol for letter in axes)}]"


def _sizes(place: Place) -> str:
    rows = [(f"{'vtx_dtype' if name == 'dtype' else 'int32_t'} {name};", text) for name, text in place.sizes.items()]
    return _struct(place.sizes_type, _lines(rows), place.about)


def _tensors(place: Place) -> str:
    inputs, outputs, diagnostics = (place.tensors[role] for role in ROLES)
    lines = _lines([_tensor(place, each, "const ") for each in inputs])
    lines += ["", *_lines([_tensor(place, each) for each in outputs])]
    lines += ["", '  /* Intermediate values for tests, each or NULL: "Margins and diagnostics" of the op\'s page. */']
    lines += _lines([_tensor(place, each) for each in diagnostics])
    return _struct(place.tensors_type, lines, place.tensors_about)


def _tensor(place: Place, tensor: Tensor, qualifier: str = "") -> tuple[str, str]:
    of = " of dtype" if tensor.element == "features" else ""
    about = f", {tensor.about}" if tensor.about else ""
    return f"{qualifier}{_TYPES[tensor.element]}* {tensor.member};", axes_text(place, tensor) + of + about


def _parameters(schema: Schema, op: Op, written: set[str]) -> str:
    """An op's structure, behind the enumerations that no op before it had."""
    said = f"{op.name} reads {_listed(op, 'inputs')}. It writes {_listed(op, 'outputs')}."
    if not op.fields:
        said += " It has no parameters beside its counts."
    made = [textwrap.fill(f"/* {said} */", 120, subsequent_indent=" * ", break_on_hyphens=False)]
    for each in op.fields:
        if each.type in schema.enumerations and each.type not in written:
            numbered = ", ".join(f"{name} = {place}" for place, name in enumerate(schema.enumerations[each.type]))
            made.append(f"typedef enum {each.type} {{ {numbered} }} {each.type};")
            written.add(each.type)
    if op.fields:
        rows = [(f"{each.type} {each.field};", _allowed(op, each)) for each in op.fields]
        made.append(_struct(f"vtx_{op.function}", _lines(rows)))
    else:
        made.append("")
    return "\n".join(made)


def _listed(op: Op, role: str) -> str:
    return ", ".join(each.member + condition_text(each.when) for each in op.tensors[role])


def condition_text(condition: dict[str, tuple[object, ...]], quote: str = "") -> str:
    """Such as " (with mode = leverage)"."""
    parts = [f"{quote}{name} = {' or '.join(map(str, values))}{quote}" for name, values in condition.items()]
    return f" (with {' and '.join(parts)})" if parts else ""


def range_text(op: Op, attribute: Attribute) -> str:
    """The range of an attribute, in words; "" where that is a matter of its words."""
    if attribute.kind in ("word", "flag"):
        return "0 or 1" if attribute.kind == "flag" else ""
    axes = op.place.axes
    kept = axes["N"].symbol
    names = {"keep": kept, "patches to keep": f"{kept} - c" if op.cls_rows else kept}
    names |= {"tokens": "T", "visual_count": "n"}
    most = names.get(attribute.most, attribute.most) if isinstance(attribute.most, str) else attribute.most
    if attribute.above is not None:
        return f"above {attribute.above:g}" + ("" if most is None else f", at most {most}")
    return f"{attribute.least:g} to {most}"


def _allowed(op: Op, attribute: Attribute) -> str:
    """The range of a field, and its meaning where the op's page says so in the table."""
    words = ", ".join(f"{number} for {word}" for word, number in attribute.words.items())
    text = (range_text(op, attribute) or words) + condition_text(attribute.when)
    is_said = attribute.kind == "word" or not attribute.about or attribute.about.startswith("see ")
    return text if is_said else f"{text}; {attribute.about}"


def _struct(name: str, lines: list[str], about: str = "") -> str:
    head = [f"/* {about} */"] if about else []
    return "\n".join([*head, f"typedef struct {name} {{", *lines, f"}} {name};\n"])


def _lines(rows: list[tuple[str, str]]) -> list[str]:
    """Declarations with their comments, one below the other."""
    wide = max(len(declaration) for declaration, _ in rows)
    return [f"  {declaration:{wide}} /* {text} */" if text else f"  {declaration}" for declaration, text in rows]
