"""The table on stdout and the file with every sample."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as what is in them; the first to the left, the others to the right."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(text.ljust(width) if not place else text.rjust(width)
                  for place, (text, width) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in lines
    )  # fmt: skip


def parity_text(parity: dict[str, Any]) -> str:
    """A line a section, then what is wrong, at most ten sentences of each."""
    lines = []
    for section in parity["sections"]:
        wrong = section["problems"]
        sure = f", {section['sure']} of {section['images']} images decided in full" if section["images"] else ""
        verdict = "right" if not wrong else f"WRONG in {len(wrong)} ways"
        lines.append(f"{section['name']}: {section['cases']} cases{sure}: {verdict} ({section['seconds']:.0f} s)")
        lines += [f"    {each}" for each in wrong[:10]]
        if len(wrong) > 10:
            lines.append(f"    and {len(wrong) - 10} more, in the results file")
    return "\n".join(lines)


def sanitizer_text(entries: Sequence[dict[str, Any]]) -> str:
    """A line a tool, and the end of its output where that matters."""
    lines = []
    for entry in entries:
        lines.append(f"compute-sanitizer {entry['tool']}: {entry['outcome']} ({entry['seconds']:.0f} s)")
        if entry["outcome"] in ("errors", "failed"):
            lines += [f"    {line}" for line in entry["output"].split("\n")[-15:]]
    return "\n".join(lines)


def ceilings_text(ceilings: dict[str, Any]) -> str:
    fp32, fp16 = (ceilings[f"{name}_flops_per_s"] / 1e12 for name in ("fp32", "fp16"))
    return (
        f"copy {ceilings['copy_bytes_per_s'] / 1e9:.0f} GB/s, products in float32 {fp32:.1f} TFLOP/s, "
        f"in float16 {fp16:.0f} TFLOP/s, two events with nothing between them {ceilings['overhead_us']:.1f} us"
    )


def times_text(rows: Sequence[dict[str, Any]]) -> str:
    """Microseconds: one replay, one call of many in a graph, the floor and its ratio, PyTorch and its ratio."""
    header = ["op", "T", "N", "batch", "median us", "p99", "in a chain", "floor", "x floor", "torch us", "x quicker",
              "torch finds"]  # fmt: skip
    lines = []
    for row in sorted(rows, key=lambda each: (each["op"], each["tokens"], each["keep"], each["batch"])):
        sizes = [row["op"], str(row["tokens"]), str(row["keep"]), str(row["batch"])]
        if "error" in row:
            lines.append([*sizes, row["error"].split("\n")[0][:60], *[""] * 7])
            continue
        torch = row["torch"]
        beside = ["", "", ""]
        if torch:
            beside = [
                f"{torch['us']['median']:.0f}",
                f"{row['times_quicker_than_torch']:.0f}",
                f"{torch['overlap']:.0%}",
            ]
        over = "" if row["over_floor"] is None else f"{row['over_floor']:.1f}"
        lines.append([*sizes, f"{row['us']['median']:.1f}", f"{row['us']['p99']:.1f}", f"{row['chained_us']:.1f}",
                      f"{row['floor_us']:.2f}", over, *beside])  # fmt: skip
    text = table(header, lines)
    for row in rows:
        if "torch_error" in row:
            text += f"\n{row['op']} {row['tokens']}->{row['keep']} in PyTorch: {row['torch_error'][:200]}"
    slow = [row for row in rows if row["torch"] and "reference_us" in row["torch"]]
    for row in slow:
        median = row["torch"]["reference_us"]["median"] / 1e3
        text += f"\n{row['op']} {row['tokens']}->{row['keep']}: the float64 reference on CUDA tensors {median:.0f} ms"
    return text


def model_text(rows: Sequence[dict[str, Any]]) -> str:
    """Milliseconds by stage and budget, and what follows."""
    header = ["model", "visual tokens", "vision ms", "selection", "projector", "prefill", "selection/prefill",
              "prefill x", "behind vision x", "in all x", "torch selection"]  # fmt: skip
    lines = []
    for row in rows:
        stages = [row.get(f"{name}_ms") for name in ("vision", "selection", "projector", "prefill")]
        shown = ["" if each is None else f"{each['median']:.3f}" for each in stages]
        ratios = [row.get(name) for name in ("prefill_speedup", "speedup_behind_vision", "speedup_in_all")]
        share = "" if "selection_share" not in row else f"{row['selection_share']:.2%}"
        slow = "" if "torch_selection_ms" not in row else f"{row['torch_selection_ms']['median']:.1f}"
        lines.append([row["model"], str(row["visual_tokens"]), *shown, share,
                      *("" if each is None else f"{each:.2f}" for each in ratios), slow])  # fmt: skip
    notes = [
        f"{row['model']}: pruning pays below {row['break_even']:.0f} of {row['visual_tokens']} visual tokens"
        for row in rows
        if "break_even" in row
    ]
    return "\n".join([table(header, lines), *notes])


def targets_text(targets: Sequence[dict[str, Any]]) -> str:
    """Targets, and what was reached."""
    if not targets:
        return "no target can be looked at: their parts have not run"
    lines = [[each["what"], each["wanted"], f"{each['found']:.4g}", "yes" if each["met"] else "NO"] for each in targets]
    return table(["target", "wanted", "found", "met"], lines)


def write(report: dict[str, Any], folder: Path, output: Path | None = None) -> Path:
    """The report as JSON, by default named after the GPU."""
    name = re.sub(r"[^a-z0-9]+", "_", report["machine"]["gpu_name"].lower()).strip("_") or "gpu"
    path = output or folder / f"gpu_check_{name}{'_quick' if report['quick'] else ''}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=1)
    text = re.sub(r"\[[\s\d.,e+-]+\]", lambda numbers: " ".join(numbers[0].split()), text)  # samples on one line
    path.write_text(text + "\n")
    return path
