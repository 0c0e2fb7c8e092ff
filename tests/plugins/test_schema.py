"""plugins/schema/ops.toml: what is generated from it is current, and it says what Python's nodes are."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import generate
import onnx
import pytest
import schema
from onnx import AttributeProto, TensorProto

from vtexport.errors import UsageError
from vtexport.pruning import ModelShape, Op, Sizes, get_method, list_methods, list_ops, make_options, op_model
from vtexport.pruning.onnx_op import model_of_op
from vtexport.pruning.ops.attention_topk import AttentionTopK
from vtexport.pruning.ops.cluster_merge import ClusterMerge
from vtexport.pruning.ops.key_norm_topk import KeyNormTopK
from vtexport.pruning.ops.text_similarity_topk import TextSimilarityTopK
from vtexport.pruning.options import settings_of

ROOT = Path(__file__).parents[2]
TEXTS = generate.texts()
OPS = {op.name: op for op in schema.read().ops}

GRID, KEEP, WIDTH, HEADS, HEAD_WIDTH, EMBEDDING = (6, 8), 20, 24, 3, 8, 40
VISUAL = 48


def _own_op(name: str) -> str | None:
    """The type of the op that a method has before the language model."""
    method = get_method(name)
    with contextlib.suppress(UsageError):
        return method.first_op(make_options(method, {}), ModelShape(GRID, layers=32), KEEP).op.op_type
    return None


METHODS = {method.name: OPS[own] for method in list_methods() if (own := _own_op(method.name)) in OPS}
KINDS = {
    "integer": AttributeProto.INT,
    "flag": AttributeProto.INT,
    "number": AttributeProto.FLOAT,
    "word": AttributeProto.STRING,
}
MARKS = ("plugin_namespace", "plugin_version")


@pytest.mark.parametrize("path", TEXTS, ids=str)
def test_what_is_generated_is_current(path: Path) -> None:
    assert (ROOT / path).read_text() == TEXTS[path], "run python plugins/schema/generate.py"


def _copy(folder: Path) -> Path:
    """The generator with what it writes, in a folder of its own; its script."""
    shutil.copytree(ROOT / "plugins" / "schema", folder / "plugins" / "schema")
    for path in TEXTS:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / path)
    return folder / "plugins" / "schema" / "generate.py"


def _run(script: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(script), *options], capture_output=True, text=True)


def test_check_names_what_is_stale(tmp_path: Path) -> None:
    script = _copy(tmp_path)
    assert _run(script, "--check").returncode == 0
    page = tmp_path / "docs" / "ops" / "divprune.md"
    page.write_text(page.read_text().replace("N, all of them patches", "N"))
    done = _run(script, "--check")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "docs/ops/divprune.md is not what ops.toml makes of it; run python plugins/schema/generate.py"
    ]
    assert _run(script).stdout == "written: docs/ops/divprune.md\n"
    assert page.read_text() == TEXTS[Path("docs/ops/divprune.md")]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('kind = "flag"', 'kind = "maybe"', "VtxPruneSID: attribute cls_slot is of kind 'maybe'"),
        ('nms_score = "cls_attention"', 'nms_score = "both"', "VtxPruneSID: a condition names nms_score"),
        ('"VTX_ABS_V" }', '"VTX_ABS_W" }', "no enumeration has VTX_ABS_W"),
        ('most = "keep"', 'most = "some"', "VtxViTCoP: attribute cluster_count is at most 'some'"),
        ('"keep_indices", "merged"]', '{ name = "merged", when = { variant = "paper" } }, "keep_indices"]',
         "VtxNuwa: output 1 has several types"),
        ('inputs = ["features"]', 'inputs = ["feature"]', "no tensor of this place and role is called feature"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(old: str, new: str, sentence: str, tmp_path: Path) -> None:
    text = schema.FILE.read_text()
    assert old in text
    path = tmp_path / "ops.toml"
    path.write_text(text.replace(old, new))
    with pytest.raises(schema.SchemaError, match=re.escape(sentence)):
        schema.read(path)


def _options() -> list[tuple[str, dict[str, Any]]]:
    """Every method's defaults, and each word and flag that its parameters take."""
    found: list[tuple[str, dict[str, Any]]] = []
    for name in METHODS:
        found.append((name, {}))
        for each in get_method(name).options:
            values = each.choices or ((False, True) if each.kind is bool else ())
            # What is projected has no CLS row.
            beside = {"cls_slot": False} if (name, each.name) == ("prunesid", "space") else {}
            found += [(name, {each.name: value} | beside) for value in values]
    return found


def _hold(op: schema.Op, model: onnx.ModelProto, lengths: dict[str, Any], dtype: int) -> None:
    """Holds a one-node model to the schema."""
    (node,) = model.graph.node
    (body,) = model.functions
    given = {each.name: each for each in node.attribute}
    carried = [each for each in op.all_attributes if each.read or each.name in MARKS]
    assert [each.name for each in node.attribute] == list(body.attribute) == [each.name for each in carried]
    for each in carried:
        attribute = given[each.name]
        assert attribute.type == KINDS[each.kind], each.name
        if each.words:
            assert attribute.s.decode() in each.words, each.name
    assert (given["plugin_namespace"].s, given["plugin_version"].s) == (b"vtexport", b"1")

    def value(name: str) -> Any:
        return given[name].s.decode() if op.attribute(name).kind == "word" else given[name].i

    types = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "bool": TensorProto.BOOL, "features": dtype}
    for role, described in (("inputs", model.graph.input), ("outputs", model.graph.output)):
        there = [each for each in op.tensors[role] if all(value(name) in of for name, of in each.when.items())]
        assert [each.name for each in there] == [each.name for each in described]
        for each, info in zip(there, described, strict=True):
            tensor = info.type.tensor_type
            assert tensor.elem_type == types[each.element], each.name
            shape = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
            assert shape == [lengths[letter] for letter in each.axes], each.name


@pytest.mark.parametrize(("method", "options"), _options(), ids=str)
def test_nodes_behind_the_tower_are_the_schemas(method: str, options: dict[str, Any]) -> None:
    op = METHODS[method]
    model = op_model(
        method, tokens=48, grid=GRID, keep=KEEP, width=WIDTH, heads=HEADS, head_dim=HEAD_WIDTH, batch=2,
        embedding_width=WIDTH if options.get("relevance", "llm") == "llm" else EMBEDDING, dtype="float16", **options,
    )  # fmt: skip
    given = {each.name: each.i for each in model.graph.node[0].attribute}
    rows = 48 + (given[op.cls_rows] if op.cls_rows else 0)
    lengths = {"B": 2, "R": rows, "T": 48, "D": WIDTH, "N": KEEP, "H": HEADS, "K": HEAD_WIDTH, "E": EMBEDDING}
    (text,) = {each.type.tensor_type.shape.dim[1].dim_param for each in model.graph.input
               if each.name == "text_embeds"} or {""}  # fmt: skip
    _hold(op, model, lengths | {"M": text}, TensorProto.FLOAT16)


@pytest.mark.parametrize(
    "op",
    [
        AttentionTopK(),
        KeyNormTopK(),
        TextSimilarityTopK(),
        ClusterMerge(clusters=9),
        ClusterMerge(clusters=1, merge="mean"),
    ],
    ids=str,
)
def test_nodes_inside_the_language_model_are_the_schemas(op: Op) -> None:
    sizes = Sizes(batch=1, grid=(1, VISUAL), width=WIDTH, keep=KEEP, heads=6, kv_heads=2, head_dim=HEAD_WIDTH)
    model = model_of_op(op, sizes, dtype="bfloat16")
    lengths = {"1": 1, "S": "S", "U": "R", "W": WIDTH, "V": VISUAL, "G": 2, "H": 6, "K": HEAD_WIDTH}
    _hold(OPS[op.op_type], model, lengths, TensorProto.BFLOAT16)


@pytest.mark.parametrize("method", [*METHODS, "cluster_merge"])
def test_options_are_the_schemas(method: str) -> None:
    """Names, order, kinds, words and lower bounds of what a person may set."""
    options = settings_of(ClusterMerge) if method == "cluster_merge" else get_method(method).options
    op = OPS["VtxClusterMerge"] if method == "cluster_merge" else METHODS[method]
    own = [each for each in op.attributes if each.name != "keep"]
    assert [each.name for each in own] == [each.name for each in options]
    kinds = {"integer": int, "number": float, "flag": bool, "word": str}
    for attribute, option in zip(own, options, strict=True):
        assert kinds[attribute.kind] is option.kind, attribute.name
        assert sorted(attribute.words) == sorted(option.choices), attribute.name
        assert attribute.above == option.above, attribute.name
        assert attribute.least == option.minimum, attribute.name


@pytest.mark.parametrize("op", list_ops(), ids=lambda op: op.op_type)
def test_ops_know_whether_they_have_a_native_form(op: type[Op]) -> None:
    assert op.has_native == (op.op_type in OPS)
    if op.has_native:
        read = [each for each in OPS[op.op_type].attributes if each.read and each.name not in ("keep", "visual_count")]
        assert [each.name for each in read] == [option.name for option in settings_of(op)]
        assert (
            op.merges == ("merged" in {each.name for each in OPS[op.op_type].tensors["outputs"]})
            or op.rows != "features"
        )


def test_every_op_is_some_methods() -> None:
    encoder, llm = ({name for name in OPS if OPS[name].place.name == place} for place in ("encoder", "llm"))
    assert {op.name for op in METHODS.values()} == encoder
    assert {"VtxAttentionTopK", "VtxKeyNormTopK", "VtxTextSimilarityTopK", "VtxClusterMerge"} == llm
