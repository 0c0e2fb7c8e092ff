"""The plot of a sweep: accuracy against tokens, a line a method, and against the time to first token.

Needs matplotlib (extra `plot`). It draws into a file and needs no display.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vtexport.errors import InputError, MissingDependencyError, quoted
from vtexport.eval.report import PlanReport, Report, Share, Summary
from vtexport.measure.files import write_whole

# Twelve colours that stay apart, and shapes for those who cannot tell them.
_COLOURS = (
    "#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf",
    "#8c564b", "#e377c2", "#bcbd22", "#003f5c", "#7f7f7f", "#444444",
)  # fmt: skip
_MARKERS = "osD^vP*X<>hp"
_FORMATS = (".png", ".svg", ".pdf")


def label(plan: PlanReport) -> str:
    """A plan's name without the budget: plans of one label are a line, other parameters another."""
    return plan.plan.replace(f"-{plan.keep}", "", 1) if plan.keep is not None else plan.plan


def lines(report: Report) -> dict[str, list[PlanReport]]:
    """The pruned plans by label, each by ascending tokens, labels sorted."""
    found: dict[str, list[PlanReport]] = {}
    for plan in report.plans:
        if plan.plan != report.unpruned:
            found.setdefault(label(plan), []).append(plan)
    return {name: sorted(found[name], key=lambda plan: plan.tokens_per_layer) for name in sorted(found)}


def check_plot(path: Path) -> None:
    """Refuses before the work what would be refused after it.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        InputError: no kind of file that it writes.
    """
    _figure_class()
    if path.suffix.lower() not in _FORMATS:
        raise InputError(f"{path} is no kind of picture that is drawn; give a name in {', '.join(_FORMATS)}")


def draw(report: Report, path: Path, title: str) -> None:
    """Writes the plot.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        InputError: the file cannot be written.
    """
    check_plot(path)
    wanted: list[tuple[str, Callable[[PlanReport], Summary | None]]] = [
        ("question answering", lambda plan: plan.question_answering),
        ("grounding, IoU >= 0.5", lambda plan: plan.grounding),
    ]
    panels = [(name, of) for name, of in wanted if any(of(plan) for plan in report.plans)]
    figure = _figure_class()(figsize=(4.6 * (len(panels) + 1), 4.6), layout="constrained")
    axes = figure.subplots(1, len(panels) + 1, squeeze=False, sharey=True)[0]
    for axis, (name, of) in zip(axes[:-1], panels, strict=True):
        _against_tokens(axis, report, of)
        axis.set_title(name)
    _against_time(axes[-1], report)
    for axis in axes:
        axis.label_outer()
    handles, labels = axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(7, len(labels)), frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=10)
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix[1:].lower(), dpi=130)
    write_whole(path, drawn.getvalue())


def _against_tokens(axis: Any, report: Report, of: Callable[[PlanReport], Summary | None]) -> None:
    for number, (name, plans) in enumerate(lines(report).items()):
        points = [(plan.tokens_per_layer, found.accuracy) for plan in plans if (found := of(plan))]
        _line(axis, number, name, points, dashed=plans[0].paper is None)
    whole = _unpruned(report)
    if whole is not None and (found := of(whole)):
        axis.axhline(found.accuracy.value, color="black", linewidth=1, linestyle=":")
        axis.axhspan(found.accuracy.low, found.accuracy.high, color="black", alpha=0.07, linewidth=0)
    ticks = sorted({plan.keep for plan in report.plans if plan.keep and plan.plan != report.unpruned})
    axis.set_xscale("log", base=2)
    if ticks:
        axis.set_xticks(ticks, labels=[str(tick) for tick in ticks])
        axis.minorticks_off()
    axis.set_xlabel("visual tokens (mean over the layers)")
    axis.set_ylabel("accuracy, %")
    _percent(axis)


def _against_time(axis: Any, report: Report) -> None:
    for number, (name, plans) in enumerate(lines(report).items()):
        points = [(plan.times_ms.first_token, plan.all_tasks.accuracy) for plan in plans]
        _line(axis, number, name, points, dashed=plans[0].paper is None)
    whole = _unpruned(report)
    if whole is not None:
        place = [whole.times_ms.first_token], [whole.all_tasks.accuracy.value]
        axis.plot(*place, "k*", markersize=11, linestyle="", label=f"unpruned, {whole.visual_tokens:.0f} tokens")
    axis.set_title("mean over all tasks")
    axis.set_xlabel("time to first token, ms (median)")
    axis.set_ylabel("accuracy, %")
    _percent(axis)


def _line(axis: Any, number: int, name: str, points: Sequence[tuple[float, Share]], dashed: bool) -> None:
    """Baselines without a paper are dashed; whiskers are 95 % intervals."""
    if not points:
        return
    x = [tokens for tokens, _ in points]
    y = [share.value for _, share in points]
    # A bootstrap's interval need not hold the value itself.
    below = [max(0.0, share.value - share.low) for _, share in points]
    above = [max(0.0, share.high - share.value) for _, share in points]
    axis.errorbar(
        x, y, yerr=[below, above], label=name, color=_COLOURS[number % len(_COLOURS)],
        marker=_MARKERS[number % len(_MARKERS)], markersize=4.5, linewidth=1.3, elinewidth=0.5, alpha=0.9,
        linestyle="--" if dashed else "-",
    )  # fmt: skip


def _unpruned(report: Report) -> PlanReport | None:
    return next((plan for plan in report.plans if plan.plan == report.unpruned), None)


def _percent(axis: Any) -> None:
    axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}")
    axis.grid(alpha=0.25, linewidth=0.5)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            f"the plot takes matplotlib, which is not installed ({quoted(error)}); run pip install 'vtexport[plot]' or "
            "give --no-plot"
        ) from error
    return Figure
