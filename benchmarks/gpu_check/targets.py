"""Targets of the kernels on a GPU of the class of an H100, next to what was measured."""

from __future__ import annotations

from typing import Any

ONE_IMAGE_US, FIVE_IMAGES_US = 100.0, 200.0  # 576 x 1024, N = 64, float16
QUICKER = 100.0  # than PyTorch, where that has a decomposition or loops in Python
SLOW_IN_PYTORCH = ("prunesid", "svdprune", "vitcop clusters", "divprune", "cdpruner")
SHARE = 0.01  # of selection in the prefill at 64 tokens
PREFILL_SPEED_UP = 7.8  # at 160 of 2880 tokens, selection included: the figure of PruneSID's paper


def targets(report: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry a target that this run can speak of: what, wanted, found and whether it is met."""
    found: list[dict[str, Any]] = []

    def add(what: str, wanted: str, value: float, met: bool) -> None:
        found.append({"what": what, "wanted": wanted, "found": value, "met": met})

    for row in report.get("times", {}).get("rows", []):
        if "us" not in row or (row["tokens"], row["keep"], row["dtype"]) != (576, 64, "float16"):
            continue
        most = ONE_IMAGE_US if row["batch"] == 1 else FIVE_IMAGES_US
        name = f"{row['op']}, {row['batch']} x 576 -> 64"
        add(f"{name}, us", f"below {most:.0f}", row["us"]["median"], row["us"]["median"] < most)
        if row["op"] in SLOW_IN_PYTORCH and row["torch"]:
            quicker = row["times_quicker_than_torch"]
            add(f"{name}, times quicker than PyTorch", f"at least {QUICKER:.0f}", quicker, quicker >= QUICKER)
    for row in report.get("model", {}).get("rows", []):
        if row["visual_tokens"] == 64:
            share = row["selection_share"]
            add("selection over prefill at 64 of 576 tokens", f"below {SHARE}", share, share < SHARE)
        if row["visual_tokens"] == 160:
            times = row["prefill_speedup"]
            what = "prefill of 2880 tokens over selection and prefill of 160"
            add(what, f"at least {PREFILL_SPEED_UP}", times, times >= PREFILL_SPEED_UP)
    return found
