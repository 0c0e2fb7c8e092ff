"""Whether the outputs of a native op are the right ones: exactly, wherever more than float32's rounding decides them.

A `Case` holds what the float64 reference (or the authors' code) gives and which parts of it are *sure*: decided by
margins beyond the arithmetic's error. `problems` lists what is wrong with the outputs of a call. Every selection has to
be valid, and all that is sure has to be there; where an image is sure as a whole, everything has to be equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from native_ops.calls import Call, Runner, single_images, widened

# Relative and absolute tolerance of outputs that are computed numbers. Whole numbers are compared exactly.
TOLERANCES = {
    "rho": (2e-6, 1e-6),
    "tau": (2e-6, 2e-6),
    "energy": (2e-6, 2e-6),
    "leverage": (1e-5, 2e-6),
    "leverages": (1e-5, 2e-6),
    "density": (1e-5, 1e-30),
    "delta": (1e-5, 1e-6),
    "pillar_threshold": (2e-6, 0.0),
    "relevance": (1e-5, 2e-5),
    "saliency": (2e-5, 1e-7),
}
ROWS = {"float32": (2e-5, 2e-5), "float16": (1e-3, 1e-4), "bfloat16": (8e-3, 1e-4)}  # merged rows; the rest is bits
RESIDUAL = 2e-6  # of the eigenvectors, relative to the largest eigenvalue


@dataclass(frozen=True)
class Case:
    """A call and what it has to give.

    Attributes:
        name: For people.
        call: What is run.
        expected: Outputs by name, as many as are known. `kept_features` and `hidden_states_out` are left out where all
            rows are copies; where rows are merged they are float32 and compared with a tolerance. NaN
            in it stands for what is not known.
        sure: [B] bool, images of which everything known has to be equal.
        parts: Boolean arrays by output, of what has to be equal in any case. "kept" is membership: [B, T], whether
            a token is among the kept ones as it is in the expected selection.
        merged: For ops inside the language model, [n'] bool: which visual rows are merged ones.
        tolerances: Instead of those of TOLERANCES, and "rows" instead of ROWS.
    """

    name: str
    call: Call
    expected: Mapping[str, np.ndarray]
    sure: np.ndarray
    parts: Mapping[str, np.ndarray] = field(default_factory=dict)
    merged: np.ndarray | None = None
    tolerances: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def check(runner: Runner, case: Case) -> list[str]:
    """What is wrong with a library's answer to a case, two runs of which have to be the same to the last bit."""
    try:
        found, changed = runner.run_twice(case.call)
    except (AssertionError, RuntimeError) as error:
        return [f"{case.name}: {error}"]
    unsteady = [f"{case.name}: {name} differs between two runs, or is not all written" for name in changed]
    return unsteady + problems(case, found)


def check_batch(runner: Runner, name: str, call: Call) -> list[str]:
    """Whether a batch's outputs are those of its images one by one, bit for bit."""
    together = runner.run(call)
    wrong = []
    for image, single in enumerate(single_images(call)):
        alone = runner.run(single)
        wrong += [
            f"{name}: {output} of image {image} is another one in the batch"
            for output in alone
            if alone[output].tobytes() != together[output][image : image + 1].tobytes()
        ]
    return wrong


def problems(case: Case, found: Mapping[str, np.ndarray]) -> list[str]:
    """Sentences, each on one thing that is wrong; empty where nothing is."""
    wrong = _invalid_step(case, found) if case.call.is_step else _invalid_selection(case.call, found)
    if wrong:
        return [f"{case.name}: {each}" for each in wrong]
    if "residual" in found and not (found["residual"][case.sure] <= RESIDUAL).all():
        wrong.append(f"residual {found['residual'].max():.1e} is above {RESIDUAL:.0e}")
    kept = "out_rows" if case.call.is_step else "keep_indices"
    for name, expected in case.expected.items():
        got = _numbers(case.call, name, found[name])
        mask = np.broadcast_to(_spread(case.sure, expected, case.call.is_step), expected.shape)
        if name in case.parts and name != "kept":
            mask = mask | case.parts[name]
        wrong += _differences(case, name, got, expected, mask)
    if "kept" in case.parts:
        wanted, have = (_membership(case.call, each) for each in (case.expected[kept], found[kept]))
        moved = (wanted != have) & case.parts["kept"]
        if moved.any():
            wrong.append(f"kept: {int(moved.sum())} tokens are in or out against a clear margin")
    return [f"{case.name}: {each}" for each in wrong]


def _spread(sure: np.ndarray, like: np.ndarray, is_step: bool) -> np.ndarray:
    return sure if is_step else sure.reshape(-1, *([1] * (like.ndim - 1)))


def _numbers(call: Call, name: str, got: np.ndarray) -> np.ndarray:
    return widened(got, call.dtype) if name in ("kept_features", "hidden_states_out") else got


def _differences(case: Case, name: str, got: np.ndarray, expected: np.ndarray, mask: np.ndarray) -> list[str]:
    if got.shape != expected.shape:
        return [f"{name} has shape {got.shape} instead of {expected.shape}"]
    if np.issubdtype(expected.dtype, np.integer) or expected.dtype == bool:
        bad = (got != expected) & mask
    else:
        rows = name in ("kept_features", "hidden_states_out")
        usual = ROWS[case.call.dtype] if rows else TOLERANCES[name]
        relative, absolute = case.tolerances.get("rows" if rows else name, usual)
        with np.errstate(invalid="ignore"):
            near = np.abs(got.astype(np.float64) - expected) <= absolute + relative * np.abs(expected)
        bad = ~(near | (got == expected) | np.isnan(expected)) & mask
    if not bad.any():
        return []
    place = tuple(int(each[0]) for each in np.nonzero(bad))
    return [
        f"{name}: {int(bad.sum())} of {int(mask.sum())} differ, first at {place}: "
        f"{got[place]!s} instead of {expected[place]!s}"
    ]


def _membership(call: Call, kept: np.ndarray) -> np.ndarray:
    """[B, T] (or [n]) bool: which tokens are among the kept ones."""
    if call.is_step:
        start, visual = int(call.inputs["visual_start"][0]), call.sizes.visual_count
        own = kept[start : start + call.sizes.keep] - start
        return np.isin(np.arange(visual), own)
    tokens = call.sizes.grid_rows * call.sizes.grid_columns
    return np.stack([np.isin(np.arange(tokens), each) for each in kept])


def _invalid_selection(call: Call, found: Mapping[str, np.ndarray]) -> list[str]:
    """What every input has to give: N different tokens in range and in order, and their rows' bits."""
    slot = int(call.parameter("cls_slot"))
    keep, tokens = call.sizes.keep, call.sizes.grid_rows * call.sizes.grid_columns
    by_group = call.op_type == "VtxPruneSID" and call.parameter("order") == 0
    wrong = []
    for image, indices in enumerate(found["keep_indices"].tolist()):
        patches = indices[slot:]
        if indices[:slot] != [-1] * slot or len(set(patches)) != keep - slot:
            wrong.append(f"image {image}: {len(set(patches))} different patches, first {indices[:3]}")
        elif not all(0 <= each < tokens for each in patches):
            wrong.append(f"image {image}: a patch index is not among 0 to {tokens - 1}")
        elif not by_group and not _raster(call, patches, image, found):
            wrong.append(f"image {image}: patches are not in raster order")
    if wrong:
        return wrong
    rows = found["keep_indices"] + slot
    copies = np.take_along_axis(call.inputs["features"], rows[:, :, None], axis=1)
    single = found["merged"] == 0 if "merged" in found else np.ones(rows.shape, bool)
    if "merged" in found and found["merged"].max() > 1:
        wrong.append("merged holds another byte than 0 and 1")
    if found["kept_features"][single].tobytes() != copies[single].tobytes():
        wrong.append("a row of kept_features is not its patch's, bit for bit")
    return wrong


def _raster(call: Call, patches: list[int], image: int, found: Mapping[str, np.ndarray]) -> bool:
    """Ascending; in SVD-Prune's mode leverage, first the set and then what fills the budget."""
    count = len(patches)
    if call.op_type == "VtxSVDPrune" and call.parameter("mode") == 1:
        count = int(found["count"][image])
    return patches[:count] == sorted(patches[:count]) and patches[count:] == sorted(patches[count:])


def _invalid_step(case: Case, found: Mapping[str, np.ndarray]) -> list[str]:
    """n' different visual tokens, ascending; text in its place with its bits; single rows with theirs."""
    call = case.call
    before, rows, hidden = call.inputs["hidden_states"], found["out_rows"], found["hidden_states_out"]
    visual, keep = call.sizes.visual_count, call.sizes.keep
    start = int(np.clip(call.inputs["visual_start"][0], 0, call.sizes.rows - visual))
    own = rows[start : start + keep]
    text = [*range(start), *range(start + visual, call.sizes.rows)]
    block = np.s_[start : start + keep]
    if np.delete(rows, block).tolist() != text:
        return ["out_rows: text rows are not in their places"]
    if not (np.diff(own) > 0).all() or own[0] < start or own[-1] >= start + visual:
        return ["out_rows: visual rows are not different visual tokens, ascending"]
    wrong = []
    if np.delete(hidden, block, axis=0).tobytes() != before[text].tobytes():
        wrong.append("hidden_states_out: a text row is not its input row, bit for bit")
    single = np.ones(keep, bool) if case.merged is None else ~case.merged
    if (case.merged is None or bool(case.sure.all())) and hidden[block][single].tobytes() != before[own][
        single
    ].tobytes():
        wrong.append("hidden_states_out: a visual row that stands for one token is not its input row, bit for bit")
    return wrong
