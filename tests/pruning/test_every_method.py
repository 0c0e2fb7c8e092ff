"""Promises of every method, whatever the input: a new method is held to it by being there."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pruning_cases import has_own_op, run_stock, structured

from vtexport.errors import InputError, UsageError
from vtexport.pruning import (
    ModelShape,
    Op,
    Schedule,
    Sizes,
    get_method,
    list_methods,
    list_ops,
    make_options,
    op_model,
    select,
)
from vtexport.pruning.onnx_op import model_of_op
from vtexport.pruning.ops.prunesid import PruneSID
from vtexport.pruning.ops.visionzip import VisionZip

GRID = (6, 8)
TOKENS, WIDTH, HEADS, HEAD_DIM, TEXT = 48, 24, 3, 8, 5
EVERY = [method.name for method in list_methods()]
METHODS = [name for name in EVERY if has_own_op(name)]
# Whose choice does not depend on where a patch stands; for the others a permutation of the tokens is another image.
EQUIVARIANT = {"cdpruner", "divprune", "none", "prunesid", "svdprune", "vitcop"}
# A hair's difference decides these ones' ties, so only exact copies of tokens are compared elsewhere.
KINDS = ["equal", "zero", "rank1", "large", "tiny", "repeated", "one token", "half repeated", "structured", "random"]

every_method = pytest.mark.parametrize("name", METHODS)


@functools.cache
def budgets(name: str, grid: tuple[int, int] = GRID) -> tuple[int | None, ...]:
    """The smallest, a middle and the largest budget that the method gives on this grid."""
    method = get_method(name)
    possible = []
    for keep in range(1, grid[0] * grid[1] + 2):
        try:
            method.first_op(make_options(method, {}), ModelShape(grid, layers=1), keep)
        except UsageError:
            continue
        possible.append(keep)
    return tuple(sorted({possible[0], possible[len(possible) // 2], possible[-1]})) if possible else ()


def own_op(name: str, grid: tuple[int, int] = GRID) -> Op:
    """The method's op with the settings of its smallest budget."""
    method = get_method(name)
    return method.first_op(make_options(method, {}), ModelShape(grid, layers=1), budgets(name, grid)[0]).op


def rows_of(kind: str, rows: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = (rows, width)
    made = {
        "equal": lambda: np.full(shape, 0.3),
        "zero": lambda: np.zeros(shape),
        "rank1": lambda: rng.standard_normal((rows, 1)) * rng.standard_normal((1, width)),
        "large": lambda: rng.standard_normal(shape) * 1e30,
        "tiny": lambda: rng.standard_normal(shape) * 1e-38,
        "repeated": lambda: np.repeat(rng.standard_normal((-(-rows // 3), width)), 3, axis=0)[:rows],
        "one token": lambda: np.eye(rows)[min(4, rows - 1)][:, None] * rng.standard_normal((1, width)),
        "half repeated": lambda: np.concatenate(
            [np.tile(rng.standard_normal(width), (rows // 2, 1)), rng.standard_normal((rows - rows // 2, width))]
        ),
        "structured": lambda: structured(seed, rows, width, min(10, rows - 1, width - 1)),
        "random": lambda: rng.standard_normal(shape),
    }
    return np.asarray(made[kind](), np.float32)


def scores_of(kind: str, tokens: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    made = {
        "zero": np.zeros(tokens),
        "equal": np.full(tokens, 0.5),
        "underflow": np.full(tokens, 1e-45),
        "negative": -rng.random(tokens),
        "one": np.eye(tokens)[tokens // 2],
        "tied": np.floor(3 * rng.random(tokens)) / 3,
        "random": rng.random(tokens),
    }
    return np.asarray(made[kind], np.float32)


def inputs(
    name: str,
    kind: str = "random",
    scores: str = "random",
    *,
    grid: tuple[int, int] = GRID,
    seed: int = 0,
    batch: int = 1,
) -> dict[str, np.ndarray]:
    """Everything the method's op reads, by name, each signal as hostile as the features."""
    return inputs_of(own_op(name, grid), kind, scores, grid=grid, seed=seed, batch=batch)


def inputs_of(
    op: Op, kind: str, scores: str, *, grid: tuple[int, int], seed: int = 0, batch: int = 1
) -> dict[str, np.ndarray]:
    sizes = sizes_of(grid, keep=1)
    made: dict[str, list[np.ndarray]] = {}
    for image in range(batch):
        own = seed + 100 * image
        made.setdefault("features", []).append(rows_of(kind, sizes.tokens + int(op.takes_cls), WIDTH, own))
        for signal in op.inputs()[1:]:
            if signal.name == "scores":
                value = scores_of(scores, sizes.tokens, own)
            else:
                shape = [TEXT if isinstance(size, str) else size for size in sizes.shape(signal.axes)[1:]]
                value = rows_of(kind, shape[0], int(np.prod(shape[1:])), own + 7).reshape(shape)
            made.setdefault(signal.name, []).append(value)
    return {name: np.stack(values) for name, values in made.items()}


def sizes_of(grid: tuple[int, int], keep: int) -> Sizes:
    return Sizes(1, grid, WIDTH, keep, heads=HEADS, head_dim=HEAD_DIM, embedding_width=WIDTH)


@functools.cache
def op(name: str, keep: int | None, *, grid: tuple[int, int] = GRID, batch: int = 1, dtype: str = "float32") -> Any:
    sizes: dict[str, Any] = {"tokens": grid[0] * grid[1], "grid": grid, "width": WIDTH, "batch": batch, "dtype": dtype}
    model = op_model(name, keep=keep, heads=HEADS, head_dim=HEAD_DIM, embedding_width=WIDTH, **sizes)
    onnx.checker.check_model(model, full_check=True)
    return run_stock(model)


def assert_valid(indices: Any, keep: int, tokens: int = TOKENS) -> None:
    for image in np.asarray(indices).tolist():
        assert len(image) == len(set(image)) == keep
        assert set(image) <= set(range(-1, tokens))


def assert_copied(found: Any, features: np.ndarray, name: str) -> None:
    """Rows that stand for one patch are that patch's row, bit for bit."""
    slot = int(own_op(name).takes_cls)
    merged = found.get("merged")
    for image, row in enumerate(features):
        for place, patch in enumerate(np.asarray(found["keep_indices"])[image].tolist()):
            if merged is None or not merged[image][place]:
                assert found["kept_features"][image][place].tobytes() == row[patch + slot].tobytes()


@every_method
@pytest.mark.parametrize("kind", KINDS)
def test_any_finite_input_gives_exactly_n_tokens(name: str, kind: str) -> None:
    for keep in budgets(name):
        for scores in ("zero", "equal", "underflow", "negative", "one", "tied"):
            given = inputs(name, kind, scores)
            found = op(name, keep)(**given)
            assert_valid(found["keep_indices"], found["kept_features"].shape[1])
            assert_copied(found, given["features"], name)
            by_reference = select(name, keep=keep, grid=GRID, **given)
            assert_valid(by_reference.keep_indices, found["kept_features"].shape[1])
            assert_copied(vars(by_reference), given["features"], name)


@every_method
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite(name: str, value: float) -> None:
    """The reference refuses it; a graph cannot, and still gives N tokens."""
    keep = budgets(name)[len(budgets(name)) // 2]
    for poisoned in inputs(name):
        for where in (slice(None), slice(3, 4)):
            given = inputs(name)
            given[poisoned][:, where] = value
            with pytest.raises(InputError, match=f"{poisoned} holds NaN or infinite values"):
                select(name, keep=keep, grid=GRID, **given)
            found = op(name, keep)(**given)
            assert_valid(found["keep_indices"], found["kept_features"].shape[1])


@every_method
def test_images_do_not_depend_on_each_other(name: str) -> None:
    keep = budgets(name)[len(budgets(name)) // 2]
    both = inputs(name, "structured", batch=2)
    together = op(name, keep, batch=2)(**both)
    reference = select(name, keep=keep, grid=GRID, **both)
    for image in range(2):
        own = {key: value[image : image + 1] for key, value in both.items()}
        for key, value in op(name, keep)(**own).items():
            np.testing.assert_array_equal(together[key][image], value[0])
        np.testing.assert_array_equal(
            reference.keep_indices[image], select(name, keep=keep, grid=GRID, **own).keep_indices[0]
        )


@every_method
def test_numpy_and_pytorch_agree(name: str) -> None:
    keep = budgets(name)[len(budgets(name)) // 2]
    given = inputs(name, "structured")
    by_numpy = select(name, keep=keep, grid=GRID, **given)
    tensors = {key: torch.from_numpy(value) for key, value in given.items()}
    by_torch = select(name, keep=keep, grid=GRID, **tensors)
    assert isinstance(by_torch.keep_indices, torch.Tensor)
    assert by_numpy.keep_indices.dtype == np.int64
    np.testing.assert_array_equal(by_torch.keep_indices, by_numpy.keep_indices)
    np.testing.assert_allclose(by_torch.kept_features, by_numpy.kept_features, rtol=1e-6, atol=1e-7)
    assert (by_torch.merged is None) == (by_numpy.merged is None) == (not own_op(name).merges)
    if by_numpy.merged is not None:
        np.testing.assert_array_equal(by_torch.merged, by_numpy.merged)
        assert by_numpy.merged.dtype == bool


@every_method
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_features(name: str, dtype: str) -> None:
    """Features that are exact in every type give the same choice in every type, in rows of their own type."""
    keep = budgets(name)[len(budgets(name)) // 2]
    given = inputs(name, "structured")
    coarse = torch.from_numpy(given["features"]).bfloat16()
    given["features"] = coarse.float().numpy()
    expected = op(name, keep)(**given)
    tensors = {key: torch.from_numpy(value) for key, value in given.items()}
    tensors["features"] = coarse.to(getattr(torch, dtype))
    if dtype == "float16":
        found = op(name, keep, dtype=dtype)(**given | {"features": tensors["features"].numpy()})
        np.testing.assert_array_equal(found["keep_indices"], expected["keep_indices"])
        np.testing.assert_allclose(found["kept_features"], expected["kept_features"], rtol=1e-3, atol=1e-3)
    by_reference = select(name, keep=keep, grid=GRID, **tensors)
    assert by_reference.kept_features.dtype == getattr(torch, dtype)
    same = select(name, keep=keep, grid=GRID, **given)
    np.testing.assert_array_equal(by_reference.keep_indices, same.keep_indices)


@pytest.mark.parametrize("name", sorted(EQUIVARIANT & set(METHODS)))
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_permuting_tokens_permutes_the_choice(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    keep = budgets(name)[len(budgets(name)) // 2]
    given_ = inputs(name, "random", seed=seed % 1000)
    order = rng.permutation(TOKENS)
    slot = given_["features"].shape[1] - TOKENS
    permuted = {
        key: value if key == "text_embeds" else value[:, order] if value.shape[1] == TOKENS else value
        for key, value in given_.items()
    }
    if slot:
        permuted["features"] = np.concatenate([given_["features"][:, :1], given_["features"][:, 1:][:, order]], axis=1)
    before = select(name, keep=keep, grid=GRID, **given_).keep_indices[0].tolist()
    after = select(name, keep=keep, grid=GRID, **permuted).keep_indices[0].tolist()
    assert sorted(before) == sorted(patch if patch < 0 else order[patch] for patch in after)


@every_method
@pytest.mark.parametrize("keep", [0, -1, 50, 10**9, 2.5, True])
def test_budgets_out_of_range_are_refused(name: str, keep: Any) -> None:
    with pytest.raises(UsageError, match=f"keep={keep!r} is not allowed for {name}"):
        op_model(name, tokens=TOKENS, grid=GRID, width=WIDTH, keep=keep)
    with pytest.raises(UsageError, match="is not allowed"):
        select(name, keep=keep, grid=GRID, **inputs(name))


# Rows whose squares float32 cannot hold are scaled by these (docs/ops.md, "Ties"); another method may leave them.
SCALED = {
    "cdpruner",
    "divprune",
    "none",
    "nuwa",
    "pool",
    "prunesid",
    "random",
    "svdprune",
    "uniform",
    "visionzip",
    "vitcop",
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in METHODS for kind in KINDS if name in SCALED or kind not in {"large", "tiny"}],
)
def test_degenerate_features_have_one_answer(name: str, kind: str) -> None:
    """Choices left to rounding are decided by docs/ops.md: reference, its PyTorch form and the graph keep the same."""
    for keep in budgets(name):
        for scores in ("zero", "equal", "negative", "one", "tied", "random"):
            given = inputs(name, kind, scores)
            expected = select(name, keep=keep, grid=GRID, **given)
            there = {key: torch.from_numpy(value) for key, value in given.items()}
            again = select(name, keep=keep, grid=GRID, **there)
            found = op(name, keep)(**given)
            np.testing.assert_array_equal(np.asarray(again.keep_indices), np.asarray(expected.keep_indices))
            np.testing.assert_array_equal(found["keep_indices"], np.asarray(expected.keep_indices))


@every_method
@pytest.mark.parametrize("grid", [(1, 1), (1, 2), (2, 1), (2, 2), (1, 5), (3, 3), (5, 2)])
def test_few_tokens(name: str, grid: tuple[int, int]) -> None:
    """Down to one patch: N tokens, or a budget refused."""
    tokens = grid[0] * grid[1]
    for keep in budgets(name, grid):
        given = inputs(name, grid=grid)
        found = op(name, keep, grid=grid)(**given)
        assert_valid(found["keep_indices"], found["kept_features"].shape[1], tokens)
        expected = select(name, keep=keep, grid=grid, **given)
        assert_valid(expected.keep_indices, found["kept_features"].shape[1], tokens)


@every_method
def test_what_tools_expect_of_a_function(name: str) -> None:
    """Nodes with names of their own, also inlined, and outputs whose shapes follow from the function alone."""
    sizes: dict[str, Any] = {"tokens": TOKENS, "grid": GRID, "width": WIDTH, "embedding_width": WIDTH}
    model = op_model(name, keep=budgets(name)[-1], heads=HEADS, head_dim=HEAD_DIM, **sizes)
    assert all(node.name for node in (*model.graph.node, *model.functions[0].node))
    flat = onnx.inliner.inline_local_functions(model)
    names = [node.name for node in flat.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    shapes = [onnx.helper.make_tensor_value_info(o.name, o.type.tensor_type.elem_type, None) for o in flat.graph.output]
    expected = [[d.dim_value for d in o.type.tensor_type.shape.dim] for o in flat.graph.output]
    del flat.graph.output[:]
    flat.graph.output.extend(shapes)
    inferred = onnx.shape_inference.infer_shapes(flat, strict_mode=True, data_prop=True)
    assert [[d.dim_value for d in o.type.tensor_type.shape.dim] for o in inferred.graph.output] == expected


@every_method
def test_a_wrong_grid_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"grid=\(5, 5\) does not have 48 patches"):
        select(name, keep=budgets(name)[0], grid=(5, 5), **inputs(name))


SQUARE, LAYERS = (8, 8), 4


def plan(name: str, *, has_cls: bool, **options: Any) -> Schedule:
    """The plan of the method for a quarter of the tokens, or the next budget up that it gives."""
    method, model = get_method(name), ModelShape(SQUARE, LAYERS, has_cls=has_cls)
    made, refused = make_options(method, options), UsageError("no budget at all")
    for keep in range(model.tokens // 4, model.tokens + 1):
        try:
            return method.plan(made, model, keep)
        except UsageError as error:
            refused = error
    raise refused


@pytest.mark.parametrize("name", [name for name in EVERY if name != "visionzip"])
def test_vision_towers_without_cls(name: str) -> None:
    """Every method plans there, its ops take the patches alone, and what stands in for CLS attention is said."""
    schedule = plan(name, has_cls=False)
    first = schedule.first
    assert not any(placed.op.takes_cls for placed in schedule.ops)
    wanted = first.op.signals()
    assert schedule.signals == tuple("received_attention" if each == "cls_attention" else each for each in wanted)
    assert len(schedule.substitutions) == wanted.count("cls_attention")
    for said in schedule.substitutions:
        assert said.startswith("the vision tower has no CLS token, so scores is the mean attention that every patch re")
    given = inputs_of(first.op, "structured", "random", grid=SQUARE)
    sizes = sizes_of(SQUARE, first.keep)
    assert given["features"].shape == (1, sizes.tokens, WIDTH)
    by_reference = first.op.select(given, sizes)
    found = run_stock(model_of_op(first.op, sizes, dtype="float32"))(**given)
    for indices in (by_reference.keep_indices, found["keep_indices"]):
        assert_valid(indices, first.keep, sizes.tokens)
        assert np.min(indices) >= 0
    np.testing.assert_array_equal(found["keep_indices"], by_reference.keep_indices)


@pytest.mark.parametrize("name", EVERY)
def test_vision_towers_with_cls_give_the_signals_themselves(name: str) -> None:
    schedule = plan(name, has_cls=True)
    assert schedule.signals == schedule.first.op.signals()
    assert schedule.substitutions == ()


def test_two_ops_alone_read_the_cls_row() -> None:
    """And every op is somewhere in a plan, so that this and the test above are of all of them."""
    schedules = [plan(name, has_cls=True) for name in EVERY] + [plan("nuwa", has_cls=True, variant="paper")]
    ops = [placed.op for schedule in schedules for placed in schedule.ops]
    assert {type(op) for op in ops} == set(list_ops())
    assert {type(op) for op in ops if op.takes_cls} == {PruneSID, VisionZip}
    assert not plan("prunesid", has_cls=True, cls_slot=False).first.op.takes_cls


def test_prunesid_without_cls_has_no_slot_for_it() -> None:
    method = get_method("prunesid")
    for has_cls in (True, False):
        schedule = plan("prunesid", has_cls=has_cls)
        assert schedule.settings["cls_slot"] is schedule.first.op.takes_cls is has_cls
        assert method.takes_cls(make_options(method, {}), has_cls=has_cls) is has_cls
    with pytest.raises(UsageError, match=r"^cls_slot=True .* this vision tower has no CLS token; give cls_slot=false$"):
        plan("prunesid", has_cls=False, cls_slot=True)


def test_visionzip_needs_cls() -> None:
    sentence = "^visionzip keeps the CLS token, and this vision tower has none; use another method$"
    with pytest.raises(UsageError, match=sentence):
        plan("visionzip", has_cls=False)


@every_method
def test_companions_lose_the_same_rows(name: str) -> None:
    """CLS rows and merged ones included: behind a merged row stands that of the patch it is named after."""
    keep = budgets(name)[len(budgets(name)) // 2]
    given = inputs(name, "structured", batch=2)
    rows, slot = given["features"].shape[1], int(own_op(name).takes_cls)
    rng = np.random.default_rng(3)
    companions = {"deep": rng.standard_normal((2, rows, 7), np.float32), "ids": rng.random((2, rows, 1), np.float32)}
    sizes: dict[str, Any] = {"tokens": TOKENS, "grid": GRID, "width": WIDTH, "embedding_width": WIDTH, "batch": 2}
    widths = {each: value.shape[2] for each, value in companions.items()}
    model = op_model(name, keep=keep, heads=HEADS, head_dim=HEAD_DIM, companions=widths, **sizes)
    onnx.checker.check_model(model, full_check=True)
    found = run_stock(model)(**given, **companions)
    plain = op(name, keep, batch=2)(**given)
    assert set(found) == {*plain, "kept_deep", "kept_ids"}
    by_reference = select(name, keep=keep, grid=GRID, companions=companions, **given)
    assert set(by_reference.companions) == set(companions)
    for each, value in plain.items():
        assert found[each].tobytes() == value.tobytes()
    np.testing.assert_array_equal(found["keep_indices"], by_reference.keep_indices)
    for each, value in companions.items():
        expected = np.stack([value[image][found["keep_indices"][image] + slot] for image in range(2)])
        assert found[f"kept_{each}"].tobytes() == expected.tobytes()
        assert by_reference.companions[each].tobytes() == expected.tobytes()
    tensors = {key: torch.from_numpy(value) for key, value in given.items()}
    maps = torch.arange(2 * rows * 6).reshape(2, rows, 2, 3)  # neither of the features' width nor of their type
    by_torch = select(name, keep=keep, grid=GRID, companions={"maps": maps}, **tensors)
    for image in range(2):
        kept = maps[image][by_torch.keep_indices[image] + slot]
        assert torch.equal(by_torch.companions["maps"][image], kept)


@every_method
def test_companions_are_copied_in_half_precision(name: str) -> None:
    keep = budgets(name)[0]
    given = inputs(name)
    given["features"] = given["features"].astype(np.float16)
    deep = np.random.default_rng(4).standard_normal((1, given["features"].shape[1], 5)).astype(np.float16)
    sizes: dict[str, Any] = {"tokens": TOKENS, "grid": GRID, "width": WIDTH, "embedding_width": WIDTH}
    model = op_model(name, keep=keep, heads=HEADS, head_dim=HEAD_DIM, dtype="float16", companions={"deep": 5}, **sizes)
    found = run_stock(model)(**given, deep=deep)
    kept = deep[0][found["keep_indices"][0] + int(own_op(name).takes_cls)]
    assert found["kept_deep"][0].tobytes() == kept.tobytes()


@pytest.mark.parametrize(
    ("companions", "message"),
    [
        ({"features": 8}, "companion 'features' has the name of the op's own input or output; give another"),
        ({"indices": 8, "scores": 8}, "companion 'scores' has the name"),
        ({"deep": 0}, "deep=0 is not allowed; give a whole number from 1"),
        ({"deep": True}, "deep=True is not allowed"),
        ({"tokens": -1}, "tokens=-1 is not allowed"),
    ],
)
def test_impossible_companions_of_a_model_are_refused(companions: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        op_model("prunesid", tokens=TOKENS, grid=GRID, width=WIDTH, keep=12, companions=companions)


@every_method
def test_companions_with_other_rows_are_refused(name: str) -> None:
    given = inputs(name)
    for shape in ((1, given["features"].shape[1] - 1, 7), (2, given["features"].shape[1], 7)):
        with pytest.raises(InputError, match=r"companion deep has shape .* its rows run beside those of the features"):
            select(name, keep=budgets(name)[0], grid=GRID, companions={"deep": np.zeros(shape)}, **given)
