"""Counters and times of a server in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_COUNTERS = {
    "requests_total": "Requests by route and status.",
    "answers_total": "Answers by plan and reason of their end.",
    "cancelled_total": "Answers whose client left.",
    "prompt_tokens_total": "Tokens of prompts, visual ones included.",
    "completion_tokens_total": "New tokens.",
    "visual_tokens_total": "Visual tokens that were kept, by plan.",
    "images_total": "Images by plan, and by whether they were there already.",
    "reused_tokens_total": "Tokens of prompts that were not prefilled again.",
}
_GAUGES = {
    "waiting": "Requests that wait.",
    "running": "1 while a request is answered.",
    "queue_limit": "The most that may wait.",
}


class Metrics:
    """Figures of one server; every method may be called from any thread."""

    def __init__(self, gauges: Callable[[], dict[str, int]]):
        self._lock, self._gauges = threading.Lock(), gauges
        self._counts: dict[tuple[str, str], float] = defaultdict(float)
        self._times: dict[str, list[int]] = {}
        self._sums: dict[str, float] = defaultdict(float)

    def count(self, name: str, by: float = 1, **labels: object) -> None:
        """Adds to a counter."""
        if name not in _COUNTERS:
            raise KeyError(name)
        with self._lock:
            self._counts[name, _labels(labels)] += by

    def time(self, stage: str, seconds: float) -> None:
        """Adds a time to the histogram of a stage."""
        with self._lock:
            buckets = self._times.setdefault(stage, [0] * (len(_SECONDS) + 1))
            buckets[bisect_left(_SECONDS, seconds)] += 1
            self._sums[stage] += seconds

    def text(self) -> str:
        """Everything, for a scrape."""
        lines: list[str] = []
        with self._lock:
            for name, about in _COUNTERS.items():
                lines += _head(name, about, "counter")
                lines += [
                    f"vtexport_{name}{labels} {value:g}" if value < 1e6 else f"vtexport_{name}{labels} {value:.0f}"
                    for (each, labels), value in sorted(self._counts.items())
                    if each == name
                ]
            lines += _head("stage_seconds", "Times of the stages of answers.", "histogram")
            for stage, buckets in sorted(self._times.items()):
                total = 0
                for edge, number in zip((*map(str, _SECONDS), "+Inf"), buckets, strict=True):
                    total += number
                    lines.append(f'vtexport_stage_seconds_bucket{{stage="{stage}",le="{edge}"}} {total}')
                lines.append(f'vtexport_stage_seconds_sum{{stage="{stage}"}} {self._sums[stage]:.6f}')
                lines.append(f'vtexport_stage_seconds_count{{stage="{stage}"}} {total}')
        now = self._gauges()
        for name, about in _GAUGES.items():
            lines += [*_head(name, about, "gauge"), f"vtexport_{name} {now[name]}"]
        return "\n".join(lines) + "\n"


def _head(name: str, about: str, kind: str) -> list[str]:
    return [f"# HELP vtexport_{name} {about}", f"# TYPE vtexport_{name} {kind}"]


def _labels(labels: dict[str, object]) -> str:
    inner = ",".join(
        '{}="{}"'.format(name, str(value).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n"))
        for name, value in sorted(labels.items())
    )
    return f"{{{inner}}}" if inner else ""
