"""The authors' vectors of tests/data/golden as cases for native ops: index for index.

`golden_names()` lists them, `golden_case(name, dtype)` reads one. The features are exact in float32, float16 and
bfloat16, so the answers hold in all three; only the mixed crops of the batch are not exact in bfloat16.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from native_ops.calls import encoder_call, step_call
from native_ops.compare import Case
from vtexport.pruning.llm.cluster_merge import ClusterMergeParameters

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "data" / "golden"
GRID = (24, 24)
START, SUFFIX = 35, 20  # rows of text before and behind the image in the files of the language model's steps
BUDGETS = (32, 64, 128, 192)


@functools.cache
def _file(stem: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{stem}.npz") as file:
        return {name: file[name] for name in file.files}


def _prefixed(stem: str, prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): each for name, each in _file(stem).items() if name.startswith(prefix)}


def golden_features(seed: int) -> np.ndarray:
    """[577, 1024], CLS first; float16 holds them exactly."""
    return _file(f"features_seed{seed}")["hidden"]


def golden_names() -> list[str]:
    """Every case: "method/file/case"."""
    names = [f"prunesid/{path.stem}/" for path in sorted(GOLDEN.glob("prunesid_llava_*.npz"))]
    names += [f"prunesid/{path.stem}/N{need}" for path in sorted(GOLDEN.glob("prunesid_qwen_*.npz"))
              for need in (64, 128, 256)]  # fmt: skip
    for path in sorted(GOLDEN.glob("vitcop_*.npz")):
        found = sorted(name.removesuffix("_params") for name in _file(path.stem) if name.endswith("_params"))
        names += [f"{op}/{path.stem}/{case}" for case in found for op in ("vitcop", "cluster_merge", "key_norm_topk")]
    for seed in (1, 2, 3):
        names += [f"nuwa/nuwa_seed{seed}/N{target}" for target in (64, 128, 192)]
        names += [f"attention_topk/nuwa_seed{seed}/N{target}" for target in (64, 128, 192)]
        names += [f"attention_topk/fastv_seed{seed}/N{keep}" for keep in (32, 64, 128, 192, 288)]
        for op in ("divprune", "cdpruner"):
            names += [f"{op}/divprune_cdpruner_seed{seed}/N{keep}" for keep in BUDGETS]
    return names


def golden_case(name: str, dtype: str = "float16") -> Case:
    """One of `golden_names()`, with features (or hidden states, keys and query) of that type."""
    op, stem, case = name.split("/")
    made: Callable[..., Case] = _MAKERS[op]
    return made(f"{name} {dtype}", stem, case, dtype)


def golden_types(name: str) -> tuple[str, ...]:
    """The types in which a case's features are exact."""
    if "batch5" in name or "fastv" in name or "attention_topk" in name:  # attention's logarithms are float32 numbers
        return ("float32",) if "batch5" not in name else ("float32", "float16")
    return "float32", "float16", "bfloat16"


@functools.cache
def golden_images() -> tuple[np.ndarray, np.ndarray]:
    """The five golden images: features [5, 577, 1024] float16 and CLS scores [5, 576] float32."""
    files = [_file(f"features_seed{seed}") for seed in (1, 2, 3)]
    hidden = [file["hidden"] for file in files]
    attention = [file["cls_attention"] for file in files]

    def mix(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        mixed: np.ndarray = (0.5 * (p.astype(np.float32) + q.astype(np.float32))).astype(np.float16)
        return mixed

    hidden += [mix(hidden[0], hidden[1]), mix(hidden[1], hidden[2][:, ::-1])]
    half = np.float32(0.5)
    attention += [half * (attention[0] + attention[1]), half * (attention[1] + attention[2])]
    return np.stack(hidden), np.stack([each.sum(0) for each in attention])


def _all_sure(batch: int) -> np.ndarray:
    return np.ones(batch, bool)


def _prunesid(name: str, stem: str, case: str, dtype: str) -> Case:
    if stem.startswith("prunesid_qwen"):
        golden, tokens = _prefixed(stem, f"{case}_"), _file(stem)["tokens"][None]
        keep, rho = int(golden["n"]), golden["rho_q"]
        call = encoder_call("prunesid", {"features": tokens}, keep=keep, grid=(20, 20), dtype=dtype, variant="qwen")
        indices = golden["indices"][None].astype(np.int64)
        golden = {each: golden[each][None] for each in ("groups", "m_g", "n_g", "tau")} | {"rho": rho[None]}
    else:
        golden = _file(stem)
        which = stem.split("_")[2]
        images = slice(None) if which == "batch5" else slice(int(which[4:]) - 1, int(which[4:]))
        features, scores = golden_images()
        inputs = {"features": features[images], "scores": scores[images]}
        call = encoder_call("prunesid", inputs, keep=golden["indices"].shape[1], grid=GRID, dtype=dtype)
        indices = golden["indices"].astype(np.int64) - 1
    expected = {
        "keep_indices": indices,
        "groups": golden["groups"].astype(np.int64),
        "survivors": golden["m_g"].astype(np.int64),
        "taken": golden["n_g"].astype(np.int64),
        "rho": golden["rho"],
        "tau": golden["tau"],
    }
    return Case(name, call, expected, _all_sure(len(indices)))


def _vitcop(name: str, stem: str, case: str, dtype: str) -> Case:
    golden = _prefixed(stem, f"{case}_")
    inputs = _file(f"features_seed{stem.removeprefix('vitcop_seed').split('_')[0]}")
    _, _, share, factor = golden["params"]
    keys = inputs["keys"][None, 1:].astype(np.float32) * np.float32(factor)
    given = {
        "features": inputs["hidden"][None, 1:],
        "scores": inputs["cls_attention"].sum(0)[None],
        "keys": keys.reshape(1, 576, 16, 64),
    }
    kept = golden["stage1_indices"][None].astype(np.int64)
    call = encoder_call(
        "vitcop", given, keep=kept.shape[1], grid=GRID, dtype=dtype, clusters=True, cluster_share=float(share)
    )
    expected = {"keep_indices": kept, "density": golden["density"][None], "delta": golden["delta"][None]}
    expected["parent"] = golden["parent"][None].astype(np.int64)
    if golden["vic_n_inf_delta"] > 1:
        # The authors' sort is unstable between infinite gammas, so clusters may have any numbers there: the numbers are
        # the reference's, which the ordinary tests hold to the authors' clusters.
        from vtexport.pruning import select

        details = select("vitcop", **given, keep=kept.shape[1], clusters=True, cluster_share=float(share)).details
        expected |= {each: details[each] for each in ("labels", "centers")}
    else:
        expected |= {each: golden[each][None].astype(np.int64) for each in ("labels", "centers")}
    return Case(name, call, expected, _all_sure(1))


def _pool_rows(pool: np.ndarray, visual: int) -> np.ndarray:
    """The rows of a case with that many visual tokens: its prefix and visual rows, and the pool's last ones."""
    return np.concatenate([pool[: START + visual], pool[-SUFFIX:]])


def _out_rows(kept: np.ndarray, visual: int) -> np.ndarray:
    kept = START + kept.astype(np.int64)
    return np.concatenate([np.arange(START), kept, np.arange(START + visual, START + visual + SUFFIX)])


def _cluster_merge(name: str, stem: str, case: str, dtype: str) -> Case:
    golden, file = _prefixed(stem, f"{case}_"), _file(stem)
    labels = golden["labels"].astype(np.int64)
    visual, keep, clusters = len(labels), int(golden["n_S"]), len(golden["centers"])
    inputs = {
        "hidden_states": _pool_rows(file["hidden_pool"], visual),
        "keys": np.stack([_pool_rows(head, visual) for head in file["k_shallow_pool"]], axis=1),
        "labels": labels,
    }
    call = step_call("VtxClusterMerge", inputs, start=START, visual=visual, keep=keep, dtype=dtype,
                     merging=ClusterMergeParameters(clusters=clusters))  # fmt: skip
    kept = golden["stage2_positions"][START:-SUFFIX].astype(np.int64) - START
    rows = _out_rows(kept, visual)
    hidden = inputs["hidden_states"][rows].astype(np.float32)
    hidden[START : START + keep] = golden["stage2_visual"]
    expected = {"out_rows": rows, "hidden_states_out": hidden, "saliency": golden["saliency2"]}
    if "quotas" in golden:
        quotas = np.zeros(clusters + 1, np.int64)
        quotas[np.unique(labels) + 1] = golden["quotas"]
        expected["quotas"] = quotas
    # The rows are stored in float16.
    return Case(name, call, expected, _all_sure(1), merged=golden["stage2_is_merged"],
                tolerances={"rows": (8e-3, 2e-3) if dtype == "bfloat16" else (2e-3, 2e-3)})  # fmt: skip


def _key_norm_topk(name: str, stem: str, case: str, dtype: str) -> Case:
    golden, file = _prefixed(stem, f"{case}_"), _file(stem)
    visual, keep = int(golden["n_S"]), int(golden["n_P"])
    keys = np.stack([_pool_rows(head, visual) for head in file["k_deep_pool"]], axis=1)
    hidden = np.random.default_rng(0).standard_normal((len(keys), 16)).astype(np.float16)
    inputs = {"hidden_states": hidden, "keys": keys}
    call = step_call("VtxKeyNormTopK", inputs, start=START, visual=visual, keep=keep, dtype=dtype)
    expected = {"out_rows": _out_rows(golden["stage3_kept"], visual), "saliency": golden["saliency3"]}
    return Case(name, call, expected, _all_sure(1))


def _attention_topk(name: str, stem: str, case: str, dtype: str) -> Case:
    """The files hold attention, so keys are made that give just this attention."""
    file = _file(stem)
    nuwa = stem.startswith("nuwa")
    attention = file[f"{case}_stage2_attention_last_row" if nuwa else "attention_last_row"]
    kept = file[f"{case}_stage2_kept" if nuwa else f"{case}_kept"]
    heads, rows = attention.shape
    visual = rows - START - SUFFIX
    # With keys of width 2, q k / sqrt(2) is the attention's logarithm for q = (sqrt(2), 0) and k = (log a, 0).
    keys, query = np.zeros((rows, heads, 2), np.float32), np.zeros((heads, 2), np.float32)
    keys[:, :, 0] = np.log(np.maximum(attention, 1e-30)).T
    query[:, 0] = 2**0.5
    hidden = np.random.default_rng(0).standard_normal((rows, 8)).astype(np.float32)
    inputs = {"hidden_states": hidden, "keys": keys, "query": query}
    call = step_call("VtxAttentionTopK", inputs, start=START, visual=visual, keep=len(kept), dtype=dtype)
    expected: dict[str, Any] = {"out_rows": _out_rows(kept, visual)}
    expected["saliency"] = (attention / attention.sum(1, keepdims=True)).mean(0)[START : START + visual]
    return Case(name, call, expected, _all_sure(1))


def _nuwa(name: str, stem: str, case: str, dtype: str) -> Case:
    golden, inputs = _prefixed(stem, f"{case}_"), _file(f"features_seed{stem.removeprefix('nuwa_seed')}")
    given = {
        "features": inputs["hidden"][None, 1:],
        "scores": inputs["cls_attention"].sum(0)[None],
        "similarity_features": inputs["sim_features"][None].astype(np.float32),
    }
    keep = int(golden["k"])
    call = encoder_call("nuwa", given, keep=keep, grid=GRID, dtype=dtype)
    kept = golden["indices"].astype(np.int64)
    rows = np.full((1, keep, 1024), np.nan, np.float32)  # of some cases the files hold every eighth row
    rows[:, golden["feature_rows"].astype(int)] = golden["features"]
    expected = {
        "keep_indices": kept,
        "merged": (~golden["pillar"]).astype(np.uint8),
        "kept_features": rows,
    }
    return Case(name, call, expected, _all_sure(1),
                tolerances={"rows": (1e-2 if dtype == "bfloat16" else 2e-3, 2e-3)})  # fmt: skip


def _greedy(name: str, stem: str, case: str, dtype: str) -> Case:
    golden, inputs = _prefixed(stem, f"{case}_"), _file(f"features_seed{stem[-1]}")
    given = {"features": inputs["hidden"][None, 1:]}
    options = {}
    if name.startswith("divprune"):
        method, order, margin = "divprune", golden["divprune_order"], golden["divprune_step_margin"]
        kept = np.sort(order)
    else:
        given |= {each: inputs[each][None].astype(np.float32) for each in ("image_embeds", "text_embeds")}
        method, order, margin = "cdpruner", golden["cdpruner_order_fp64"], golden["cdpruner_step_margin"]
        kept, options = golden["cdpruner_indices"], {"relevance": "clip"}
    call = encoder_call(method, given, keep=len(kept), grid=GRID, dtype=dtype, **options)
    expected = {"keep_indices": kept[None].astype(np.int64)}
    if (margin > 1e-6).all():  # one file has picks that float32 may take in another order; the set is the same
        expected["order"] = order[None].astype(np.int64)
    return Case(name, call, expected, _all_sure(1))


_MAKERS: dict[str, Callable[..., Case]] = {
    "prunesid": _prunesid,
    "vitcop": _vitcop,
    "cluster_merge": _cluster_merge,
    "key_norm_topk": _key_norm_topk,
    "attention_topk": _attention_topk,
    "nuwa": _nuwa,
    "divprune": _greedy,
    "cdpruner": _greedy,
}
