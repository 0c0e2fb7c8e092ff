"""Seeded random cases for native ops: structured inputs, the float64 reference's answers, and what of them is sure.

`random_case(seed)` makes one; all ops, types, batches, odd sizes and parameters come along as the seed rises. The
authors' vectors are in `golden`, the comparison in `compare`, what runs a library in `calls`.

What is sure. A float32 op may be off by its rounding, and near a tie that decides. So each maker asks the reference how
near its answer is to another one. For eigenvectors that is first-order perturbation theory: a vector v_j computed with
the residual r has the error sum over k of (v_k . r) / (lambda_k - lambda_j) v_k, so in token i at most
|r| sqrt(sum of V_ik² / (lambda_k - lambda_j)²).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from native_ops.calls import encoder_call
from native_ops.compare import Case
from native_ops.golden import GRID, golden_case, golden_features, golden_names, golden_types
from native_ops.inputs import draw, fields, rounded, separated
from native_ops.step_cases import STEPS, step_case
from vtexport.pruning import get_method, make_parameters, select
from vtexport.pruning.methods.cdpruner import OFFSET
from vtexport.pruning.methods.svdprune import SVDPruneParameters

__all__ = [
    "LARGE",
    "RANDOM_KINDS",
    "STEPS",
    "golden_case",
    "golden_names",
    "golden_types",
    "large_case",
    "random_case",
    "svdprune_golden_case",
]

RESIDUAL = 1.5e-6  # of an eigenvector, over the largest eigenvalue: what an op may leave and float32's part of it
GRAM = 1e-7  # error of the Gram matrix over its trace
COSINE = 3e-6  # error of a cosine, and of what is compared with it
Images = dict[str, np.ndarray]


def _encoder_case(
    name: str,
    method: str,
    inputs: Images,
    *,
    keep: int,
    grid: tuple[int, int],
    dtype: str,
    outputs: tuple[str, ...],
    judge: Callable[[Any, Any], tuple[np.ndarray, dict[str, np.ndarray]]],
    **options: Any,
) -> Case:
    """A case from the reference's selection; `judge(found, resolved parameters)` says what of it is sure."""
    call = encoder_call(method, inputs, keep=keep, grid=grid, dtype=dtype, **options)
    read = {each: inputs[each] for each in call.inputs}
    found = select(method, read.pop("features"), read.pop("scores", None), keep=keep, grid=grid, **read, **options)
    chosen = get_method(method)
    sure, parts = judge(found, chosen.resolve(make_parameters(chosen, options), grid=grid, keep=keep)[1])
    expected: Images = {"keep_indices": np.asarray(found.keep_indices)}
    expected |= {each: np.asarray(found.details[each]) for each in outputs}
    if found.merged is not None:
        expected |= {"merged": found.merged.astype(np.uint8), "kept_features": found.kept_features}
    shown = f"{grid[0]}x{grid[1]}x{inputs['features'].shape[2]} batch {len(inputs['features'])} keep {keep} {dtype}"
    return Case(f"{name} {shown} {options or ''}".rstrip(), call, expected, sure, parts)


def _turns(values: np.ndarray, vectors: np.ndarray, residual: float, count: int) -> np.ndarray:
    """[T, count]: the largest error of each entry of the leading eigenvectors; all of them ascending, as from eigh."""
    values, vectors = values[::-1], vectors[:, ::-1]
    gaps = np.abs(values[:count, None] - values[None, :])
    with np.errstate(divide="ignore"):
        weights = np.where(np.eye(count, len(values), dtype=bool), 0.0, 1 / gaps**2)
    return np.sqrt(np.minimum((vectors**2) @ weights.T, 1e30)) * residual + 2e-7


def _prunesid(seed: int, rng: np.random.Generator, **full: Any) -> Case:
    sizes = draw(rng, full)
    grid, width, batch, dtype = sizes.grid, sizes.width, sizes.batch, sizes.dtype
    tokens = sizes.tokens
    options: dict[str, Any] = full.get("options", {})
    if "options" not in full:
        options = [{}, {}, {"variant": "paper"}, {"variant": "qwen"}, {"center": "feature"}, {"order": "raster"},
                   {"cls_slot": False, "threshold_scale": 0.3}, {"nms_score": "abs_v"}, {"shares": "proportional"},
                   {"redundancy": "triangle", "threshold_scale": 3.0}][int(rng.integers(10))]  # fmt: skip
    most = max(5, min(tokens - 1, 200))
    usual, any_ = min(most, 4 * int(rng.integers(1, 13))), int(rng.integers(4, most))
    keep = full.get("keep", any_ if rng.random() < 0.3 else usual)
    groups = min(max(keep // 4, 4), max(1, keep - 1), 64)
    decided = full.get("decided", "options" not in full and rng.random() < 0.7)
    if decided and width > groups + 2 and tokens > groups + 2:
        features = separated(rng, tokens + 1, width, groups + 2, batch)
    else:
        features = fields(rng, grid, width, batch)
        features = np.concatenate([features.mean(1, keepdims=True), features], axis=1)
    features = rounded(features, dtype)
    scores = rng.random((batch, tokens), np.float32)
    if rng.random() < 0.3:  # few values, a good part of them zero: ties, and tokens that never survive
        scores = np.floor(4 * scores) / 4
    chosen = get_method("prunesid")
    filled: Any = make_parameters(chosen, options).filled()  # type: ignore[attr-defined]
    inputs = {"features": features if filled.cls_slot else features[:, 1:], "scores": scores}

    def judge(found: Any, resolved: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        sure, groups_sure = np.zeros(batch, bool), np.zeros((batch, tokens), bool)
        for image in range(batch):
            y = 1 / (1 + np.exp(-features[image, 1:].astype(np.float64)))
            y = y - y.mean(1 if resolved.center == "token" else 0, keepdims=True)
            values, vectors = np.linalg.eigh(y @ y.T)
            residual = RESIDUAL * values[-1] + GRAM * values.sum()
            turns = _turns(values, vectors, residual, resolved.groups)
            loading = np.abs(vectors[:, ::-1][:, : resolved.groups])
            own = loading.argmax(1)[:, None]
            best = np.take_along_axis(loading - turns, own, 1)
            others = loading + turns
            np.put_along_axis(others, own, -1, 1)
            groups_sure[image] = best[:, 0] > others.max(1)
            limit = COSINE * (1 + abs(resolved.threshold_scale))
            sure[image] = groups_sure[image].all() and found.details["nms_margin"][image] > limit
            if resolved.nms_score == "abs_v":  # the ranking is a computed number, too
                place = np.lexsort((np.take_along_axis(loading, own, 1)[:, 0], own[:, 0]))
                group, size = own[place, 0], np.take_along_axis(loading, own, 1)[place, 0]
                error = np.take_along_axis(turns, own, 1)[place, 0]
                clear = (np.diff(size) > error[1:] + error[:-1]) | (np.diff(group) > 0)
                sure[image] &= bool(clear.all())
        whole = np.ones((batch,), bool)
        return sure, {"groups": groups_sure, "rho": whole, "tau": whole}

    return _encoder_case(
        f"prunesid {seed}", "prunesid", inputs, keep=keep, grid=grid, dtype=dtype, judge=judge,
        outputs=("groups", "sizes", "survivors", "taken", "rho", "tau"), **options,
    )  # fmt: skip


def _svdprune(seed: int, rng: np.random.Generator, **full: Any) -> Case:
    sizes = draw(rng, full)
    grid, width, batch, dtype = sizes.grid, sizes.width, sizes.batch, sizes.dtype
    tokens = sizes.tokens
    keep = full.get("keep", int(rng.integers(1, min(tokens, 200))))
    most = max(2, min(20, tokens - 3, width - 3))
    options: dict[str, Any] = full.get("options") or [
        {}, {"rank": int(rng.integers(1, most)), "center": "none"}, {"energy": 0.8},
        {"mode": "leverage", "center": "none"}, {"energy": 0.95, "rank_bound": most, "center": "none"},
        {"mode": "leverage", "leverage": 0.8}, {"rank": int(rng.integers(1, most))}][int(rng.integers(7))]  # fmt: skip
    if "features" in full:
        features = full["features"]
    elif "options" in full or rng.random() < 0.4:
        features = fields(rng, grid, width, batch)
    else:
        size = min(tokens, width, 40)
        left, right = (np.linalg.qr(rng.standard_normal((batch, n, size)))[0] for n in (tokens, width))
        ratio = 1 + rng.random() / 4
        features = (left * ratio ** -np.arange(size)) @ right.swapaxes(1, 2)
    features = rounded(features, dtype)

    def judge(found: Any, resolved: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        sure, kept_sure = np.zeros(batch, bool), np.zeros((batch, tokens), bool)
        rank_sure = found.details["rank_margin"] > 3e-6
        for image in np.flatnonzero(rank_sure):
            y = features[image].astype(np.float64)
            y = y - y.mean(0) if resolved.center == "feature-mean" else y
            rank = int(found.details["rank"][image])
            values, vectors = np.linalg.eigh(y @ y.T / max(np.sum(y * y), 1e-300))
            values, vectors = values[::-1], vectors[:, ::-1]
            residual = RESIDUAL * values[0] + GRAM
            with np.errstate(divide="ignore"):
                weights = 1 / np.maximum(values[:rank, None] - values[None, rank:], 0) ** 2
            outside = np.sqrt(np.minimum(vectors[:, rank:] ** 2 @ weights.T, 1e30))
            error = 2 / rank * residual * (np.abs(vectors[:, :rank]) * outside).sum(1) + 2e-7
            leverages = found.details["leverages"][image]
            ranked = np.sort(leverages)[::-1]
            low, high = ranked[keep - 1], ranked[keep] if keep < tokens else -np.inf
            widest = error.max()
            kept_sure[image] = (leverages - error > high + widest) | (leverages + error < low - widest)
            sure[image] = kept_sure[image].all()
            if resolved.mode == "leverage":
                summed, count = np.cumsum(ranked[:keep]), int(found.details["count"][image])
                sure[image] &= np.abs(summed - resolved.leverage).min() > 2 * widest * keep
                sure[image] &= count == keep or ranked[count - 1] - ranked[count] > 2 * widest
        return sure, {"rank": rank_sure, "kept": kept_sure}

    outputs = ["rank", "energy", "leverages"]
    outputs += ["count", "leverage"] if options.get("mode") == "leverage" else []
    return _encoder_case(
        f"svdprune {seed}", "svdprune", {"features": features}, keep=keep, grid=grid, dtype=dtype, judge=judge,
        outputs=tuple(outputs), **options,
    )  # fmt: skip


def _vitcop(seed: int, rng: np.random.Generator, **full: Any) -> Case:
    sizes = draw(rng, full)
    grid, width, batch, dtype = sizes.grid, sizes.width, sizes.batch, sizes.dtype
    tokens, heads = sizes.tokens, int(rng.choice((1, 2, 4)))
    keep = full.get("keep", int(rng.integers(1, tokens + 1)))
    options: dict[str, Any] = {"clusters": True} | (full.get("options") or [
        {}, {}, {"clustering": "fixed"}, {"variant": "paper"}, {"clustering": "fixed", "radius": 0.3},
        {"cluster_count": max(1, keep // 3), "cutoff": 5.0}][int(rng.integers(6))])  # fmt: skip
    if "options" not in full and rng.random() < 0.15:
        options = {}
    scores = rng.random((batch, tokens), np.float32)
    if rng.random() < 0.3:
        scores = np.floor(16 * scores) / 16
    keys = 2.5 * fields(rng, grid, heads * 16, batch, noise=0.7).reshape(batch, tokens, heads, 16)
    inputs = {
        "features": rounded(fields(rng, grid, width, batch), dtype),
        "scores": scores,
        "keys": keys.astype(np.float32),
    }

    def judge(found: Any, resolved: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        whole = np.ones((batch, tokens), bool)
        parts = {"kept": whole, "keep_indices": np.ones((batch, keep), bool)}
        if not resolved.clusters:
            return np.ones(batch, bool), parts
        margins = [found.details[f"{each}_margin"] for each in ("density", "parent", "center")]
        sure = np.min(margins, axis=0) > 1e-5
        for image in range(batch):  # equal by rounding alone, which is no tie for another order of summation
            density = found.details["density"][image]
            others = density[density != 1]
            sure[image] &= len(np.unique(others)) == len(others)
        return sure, parts

    outputs = ("labels", "centers", "density", "delta", "parent") if options else ()
    return _encoder_case(
        f"vitcop {seed}", "vitcop", inputs, keep=keep, grid=grid, dtype=dtype, judge=judge, outputs=outputs, **options
    )


def _nuwa(seed: int, rng: np.random.Generator, **full: Any) -> Case:
    sizes = draw(rng, full)
    grid, width, batch, dtype = sizes.grid, sizes.width, sizes.batch, sizes.dtype
    tokens = sizes.tokens
    keep = full.get("keep", int(rng.integers(1, tokens + 1)))
    options: dict[str, Any] = full.get("options") or [
        {}, {}, {"variant": "paper"}, {"distance": 9.5, "pillar_quantile": 0.3}, {"top_n": 4},
        {"variant": "paper", "distance": 30.0, "pillar_quantile": 1.0}][int(rng.integers(6))]  # fmt: skip
    scores = rng.random((batch, tokens), np.float32)
    if rng.random() < 0.3:
        scores = np.floor(16 * scores) / 16
    features = fields(rng, grid, width, batch)
    inputs = {
        "features": rounded(features, dtype),
        "scores": scores,
        "keys": rng.standard_normal((batch, tokens, 2, 16)).astype(np.float32),
        "similarity_features": (features + 0.3 * rng.standard_normal(features.shape)).astype(np.float32),
    }

    def judge(found: Any, resolved: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        sure = np.ones(batch, bool)  # by scores alone, which everyone compares alike, ties included
        if resolved.variant == "paper":  # salience and key norms are computed numbers
            margins = [found.details[each] for each in ("region_margin", "global_margin", "pillar_margin")]
            sure = np.min(margins, axis=0) > 2e-5
        return sure, {}

    return _encoder_case(
        f"nuwa {seed}", "nuwa", inputs, keep=keep, grid=grid, dtype=dtype, judge=judge,
        outputs=("pillar_threshold",), **options,
    )  # fmt: skip


def _until(margins: np.ndarray, enough: float, ties: int) -> np.ndarray:
    """[B, N]: picks up to the first whose margin is no more than `enough`; the first `ties` may be exact ties."""
    clear = margins > enough
    clear[:, :ties] |= margins[:, :ties] == 0
    return np.logical_and.accumulate(clear, axis=1)


def _divprune(seed: int, rng: np.random.Generator, **full: Any) -> Case:
    sizes = draw(rng, full)
    grid, width, batch, dtype = sizes.grid, sizes.width, sizes.batch, sizes.dtype
    tokens = sizes.tokens
    keep = full.get("keep", int(rng.integers(1, min(tokens, 128) + 1)))
    features = fields(rng, grid, width, batch, noise=float(rng.choice((0.3, 1.0))))

    def judge(found: Any, resolved: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        # Two tokens that are each other's nearest neighbours tie exactly at the first pick, in every form.
        picks = _until(found.details["step_margin"], COSINE, ties=1)
        return picks.all(1), {"order": picks}

    return _encoder_case(
        f"divprune {seed}", "divprune", {"features": rounded(features, dtype)}, keep=keep, grid=grid, dtype=dtype,
        judge=judge, outputs=("order",),
    )  # fmt: skip


def _cdpruner(seed: int, rng: np.random.Generator, **full: Any) -> Case:
    sizes = draw(rng, full)
    grid, width, batch, dtype = sizes.grid, sizes.width, sizes.batch, sizes.dtype
    tokens = sizes.tokens
    keep = full.get("keep", int(rng.integers(1, min(tokens, width // 2, 128) + 1)))
    options: dict[str, Any] = full.get("options") or [
        {}, {"relevance": "clip"}, {"relevance": "none"}, {"negate": True, "theta": 0.6},
        {"relevance": "clip", "theta": 0.8}][int(rng.integers(5))]  # fmt: skip
    features = rounded(fields(rng, grid, width, batch, noise=float(rng.choice((0.5, 1.5)))), dtype)
    embedding = 32 if options.get("relevance") == "clip" else width
    text = rng.standard_normal((batch, int(rng.integers(1, 10)), embedding)).astype(np.float32)
    inputs = {"features": features, "text_embeds": text}
    inputs["image_embeds"] = fields(rng, grid, 32, batch).astype(np.float32)

    def judge(found: Any, resolved: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        picks = np.zeros((batch, keep), bool)
        for image in range(batch):
            error = 3e-5  # of d: sums over all earlier picks, divided by what is left of a token
            if resolved.relevance != "none":  # r is a difference of cosines over their range
                rows = inputs["image_embeds" if resolved.relevance == "clip" else "features"][image].astype(np.float64)
                unit, words = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (rows, text[image]))
                mean = (unit @ words.T.astype(np.float64)).mean(1)
                error += 1e-6 / max(float(np.ptp(mean)), OFFSET)
            ties = int(resolved.relevance == "none")  # then all tokens tie at first
            picks[image] = _until(found.details["step_margin"][image : image + 1], error, ties)[0]
        return picks.all(1), {"order": picks}

    return _encoder_case(
        f"cdpruner {seed}", "cdpruner", inputs, keep=keep, grid=grid, dtype=dtype, judge=judge,
        outputs=("order", "relevance"), **options,
    )  # fmt: skip


_MAKERS: dict[str, Callable[..., Case]] = {
    "prunesid": _prunesid,
    "svdprune": _svdprune,
    "vitcop": _vitcop,
    "nuwa": _nuwa,
    "divprune": _divprune,
    "cdpruner": _cdpruner,
    **{op_type: lambda *a, op_type=op_type, **b: step_case(*a, op_type=op_type, **b) for op_type in STEPS},
}
RANDOM_KINDS = tuple(_MAKERS)
# PruneSID, whose steps are the most, comes three times as often as the others.
_ROTA = ("prunesid", "svdprune", "vitcop", "prunesid", "nuwa", "divprune", "cdpruner", "prunesid", *STEPS)


def random_case(seed: int, kind: str | None = None, **fixed: Any) -> Case:
    """The case of a seed: of one of RANDOM_KINDS, by turns when left out.

    `fixed` has sizes that are not drawn: grid, width, batch, dtype, keep (behind the vision tower), visual, keep, width
    (inside the language model).
    """
    kind = kind or _ROTA[seed % len(_ROTA)]
    return _MAKERS[kind](seed, np.random.default_rng([seed, RANDOM_KINDS.index(kind)]), **fixed)


def svdprune_golden_case(seed: int, dtype: str) -> Case:
    """SVD-Prune's defaults on the golden features of seed 1, 2 or 3; its authors have released no vectors."""
    features = golden_features(seed)[None, 1:]
    fixed = {"grid": GRID, "width": features.shape[2], "batch": 1, "dtype": dtype, "keep": 64, "features": features}
    defaults = {"energy": SVDPruneParameters.energy, "center": SVDPruneParameters.center}
    return _svdprune(seed, np.random.default_rng(seed), **fixed, options=defaults)


# What is too slow on a CPU for ordinary tests, in the sizes of real models: (kind, grid, N, seed, parameters). The
# seeds leave no choice to float32's rounding, but for a few tokens of PruneSID's second and third.
LARGE = [
    ("prunesid", (24, 48), 64, 0, {}),
    ("prunesid", (48, 60), 64, 0, {}),
    ("prunesid", (24, 24), 192, 0, {}),
    ("svdprune", (24, 48), 64, 0, {"rank": 16}),
    ("svdprune", (48, 60), 64, 2, {"rank": 16, "center": "none"}),
    ("vitcop", (24, 48), 345, 3, {"clustering": "fixed"}),
    ("nuwa", (48, 60), 560, 0, {"distance": 280.0}),
    ("divprune", (48, 60), 64, 0, {}),
    ("cdpruner", (48, 60), 64, 0, {"relevance": "llm"}),
]


def large_case(number: int) -> Case:
    """One of LARGE, with features of width 1024 in float16."""
    kind, grid, keep, seed, options = LARGE[number]
    rng = np.random.default_rng([number, seed])
    fixed = {"grid": grid, "width": 1024, "batch": 1, "dtype": "float16", "keep": keep, "options": options}
    return _MAKERS[kind](number, rng, **fixed, **({"decided": True} if kind == "prunesid" else {}))
