"""The schema of a measurement's report, `reports/bench.json` or `reports/soak.json` of a bundle, and its reader.

docs/measuring.md defines every figure. Milliseconds, joules and bytes; `at_s` are seconds since the measurement began.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from vtexport.bundle.small_files import UnreadableError, decode_json, read_bounded
from vtexport.errors import InputError, quoted

SCHEMA_VERSION = 1
KIND = "vtexport measurement"
FOLDER = "reports"  # inside a bundle, and not in its manifest
BENCH_NAME, SOAK_NAME = "bench.json", "soak.json"
MAX_BYTES = 2**30  # a day of two answers a second is a quarter of it
STAGES = ("prompt", "preprocess", "vision", "prune", "prefill", "decode", "text")


class Figures(msgspec.Struct, kw_only=True):
    """Figures of one quantity over samples; percentiles as numpy's, linear between order statistics."""

    samples: int
    mean: float
    std: float  # of a sample (n - 1); 0 for a single one
    min: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    jitter: float  # p99 - p50


class Interval(msgspec.Struct, kw_only=True):
    """A value with the bounds of its 95 % bootstrap interval; None where a bound is not finite."""

    value: float
    low: float | None
    high: float | None


class Header(msgspec.Struct, kw_only=True, tag="header"):
    """Facts that stand before the first sample."""

    schema_version: int
    kind: str
    mode: Literal["bench", "soak"]
    created_at: str  # UTC, ISO 8601
    command: str
    bundle: str  # the folder as it was given
    bundle_name: str
    manifest_sha256: str
    against: str | None = None  # another bundle that is measured in the same turns
    against_manifest_sha256: str | None = None
    machine: dict[str, Any]
    versions: dict[str, str]
    device: str
    threads: int | None  # for one operator; None for all cores
    precision: str
    prompt: str
    new_tokens: int  # of every answer: end tokens do not end it
    logits_processors: bool = True  # the checkpoint's
    images: list[str]  # by number, as the samples name them
    synthetic: bool  # pictures made from the seed, in memory: no file is decoded
    seed: int
    warm_up: int  # answers of each plan before the first sample
    loaded: Literal["all", "one"]  # plans in memory at a time
    answers_per_turn: int
    rate: float | None = None  # answers a second, of a soak
    asked_s: float | None = None  # for so long
    asked_samples: int | None = None  # or so many of each plan
    plans: list[PlanFacts]


class PlanFacts(msgspec.Struct, kw_only=True):
    """A plan that is measured. `name` is the plan's, with "against:" before it in the other bundle."""

    name: str
    plan: str
    method: str | None  # None for an adaptive plan
    keep: int | None
    # In each layer of the language model, their mean; a plan without steps has as many as enter it
    tokens_per_layer: float | None
    against: bool = False


class Sample(msgspec.Struct, kw_only=True, tag="sample"):
    """One answer. Milliseconds; `total_ms` and `first_token_ms` are read on their own, not added up."""

    plan: str
    turn: int
    place: int  # among the plans of the turn
    image: int  # number in `images`
    at_s: float
    prompt_tokens: int
    visual_tokens: int
    stages_ms: dict[str, float]  # every stage of `STAGES`; decode of all tokens
    decode_ms: list[float]  # of each token after the first
    first_token_ms: float
    total_ms: float
    due_s: float | None = None  # in a soak, when the image came
    late_ms: float | None = None  # in a soak, how long after its deadline the answer was whole; negative before it


class Failure(msgspec.Struct, kw_only=True, tag="failure"):
    """An image that could not be read or answered about."""

    image: str
    reason: str
    at_s: float
    plan: str | None = None


class StateAt(msgspec.Struct, kw_only=True, tag="state"):
    """The machine's state at one time, as `vtexport.measure.state` reads it."""

    when: Literal["before", "during", "after"]
    at_s: float
    state: dict[str, Any]


class Calibration(msgspec.Struct, kw_only=True, tag="calibration"):
    """Speed of the machine's processor, by NumPy in a process of its own, with the same threads."""

    when: Literal["before", "after"]
    threads: int
    gemm_gflops: float  # of single-precision matrix products
    copy_gb_per_s: float  # bytes read and bytes written


class Memory(msgspec.Struct, kw_only=True, tag="memory"):
    """Memory of a process that does nothing but open one plan and answer twice, and how long it took to begin.

    `reason` says why there are no figures.
    """

    plan: str
    loaded_rss_bytes: int | None = None  # resident, of the whole process, once the plan is open
    answered_rss_bytes: int | None = None
    peak_rss_bytes: int | None = None
    device_memory_bytes: int | None = None  # of the process, where the device tells
    open_s: float | None = None
    first_answer_ms: float | None = None
    reason: str | None = None


class EnergyWindow(msgspec.Struct, kw_only=True, tag="energy"):
    """Energy of one thing repeated; `reason` says why there is none. `what` is "idle", "answer" or a stage."""

    plan: str | None  # None while idle
    what: str
    count: int = 0  # answers, calls of the stage, or tokens decoded
    seconds: float | None = None
    samples: int | None = None
    mean_w: float | None = None
    joules: float | None = None  # of the whole window
    gap_s: float | None = None  # in which readings are missing
    errors: int = 0  # readings that failed
    joules_each: float | None = None
    joules_each_above_idle: float | None = None  # the same without what the machine takes while idle
    reason: str | None = None


class PowerFacts(msgspec.Struct, kw_only=True, tag="power"):
    """Source that power is read from; `reason` says why there is none."""

    source: str | None = None
    rail: str | None = None
    rails: list[str] = []
    period_s: float | None = None
    reason: str | None = None


class Note(msgspec.Struct, kw_only=True, tag="note"):
    """A sentence about the measurement that its reader should know."""

    text: str


Line: TypeAlias = Sample | Failure | StateAt | Calibration | Memory | EnergyWindow | PowerFacts | Note


class PlanFigures(msgspec.Struct, kw_only=True):
    """Figures of one plan over its samples."""

    name: str
    visual_tokens: float  # that enter the language model, mean
    prompt_tokens: float
    first_token_ms: Figures
    total_ms: Figures
    stages_ms: dict[str, Figures]
    decode_token_ms: Figures | None  # of every single token after the first; None with one new token
    tokens_per_s: float | None  # 1000 / the median of decode_token_ms
    # Shares of the total that no stage's clock covers: median and largest over the samples
    unattributed: float
    unattributed_max: float
    # Shares of the vision tower, which pruning behind it cannot win back: of the medians
    vision_of_first_token: float
    vision_of_total: float


class Ratio(msgspec.Struct, kw_only=True):
    """Median time of a plan over that of another in the same turns: of all, and of each half of the turns."""

    plan: str
    over: str
    quantity: Literal["first_token_ms", "total_ms"]
    ratio: Interval
    first_half: float
    second_half: float
    apart: float  # |first / second - 1|


class BreakEven(msgspec.Struct, kw_only=True):
    """Visual tokens below which pruning pays on this machine; see `vtexport.measure.break_even`."""

    unpruned: str
    plans: list[str]
    tokens: Interval | None  # None where the time does not fall with the tokens
    ms_per_token: float  # slope: what one visual token less saves
    prune_cost_ms: float
    largest_residual_ms: float  # of a plan's median from the line
    sentence: str


class Soak(msgspec.Struct, kw_only=True):
    """A run at a fixed rate."""

    rate: float  # asked
    achieved_rate: float
    seconds: float
    due: int  # images that came
    answered: int
    missed: int  # answered after the deadline, which is when the next image comes
    dropped: int  # came while an older one was answered and a newer one was there when that was done
    errors: int
    first_quarter_ms: float | None  # median of the whole answer
    last_quarter_ms: float | None
    drift: float | None  # last / first - 1
    rss_first_bytes: int | None  # median over the first and the last quarter of readings
    rss_last_bytes: int | None
    rss_growth_bytes_per_hour: float | None  # least squares


class Gate(msgspec.Struct, kw_only=True):
    """Limits that a measurement was held to, and the sentences on those that do not hold or could not be judged."""

    limits: dict[str, float]  # by the option's name, and the percentile that those of time are for
    against: str | None = None  # a report or a bundle that no plan may be slower than
    tolerance: float | None = None  # the share by which it may
    failed: list[str]
    unknown: list[str]


class Report(msgspec.Struct, kw_only=True):
    """A whole measurement: its header, the figures, and everything that was read for them."""

    header: Header
    finished_at: str
    interrupted: str | None  # by what; None where it ran to its end
    plans: list[PlanFigures]
    ratios: list[Ratio]
    # Whether the ratios of both halves agree and no others had the cores; None where there is no ratio
    quiet: bool | None
    break_even: BreakEven | None = None
    soak: Soak | None = None
    gate: Gate | None = None  # where limits were given
    warnings: list[str]
    samples: list[Sample]
    failures: list[Failure]
    states: list[StateAt]
    calibrations: list[Calibration]
    memory: list[Memory]
    power: PowerFacts | None
    energy: list[EnergyWindow]
    notes: list[str]

    def figures(self, name: str) -> PlanFigures | None:
        """Those of the plan of that name, or None."""
        return next((plan for plan in self.plans if plan.name == name), None)


def encode(report: Report) -> bytes:
    """UTF-8 JSON with sorted keys."""
    return msgspec.json.format(msgspec.json.encode(report, order="sorted"), indent=1) + b"\n"


def read_report(path: str | Path) -> Report:
    """The report in a file, or in the folder `reports` of a bundle.

    Raises:
        InputError: there is none, or it is damaged, of another kind or of another version.
    """
    path = Path(path)
    file = path / FOLDER / BENCH_NAME if path.is_dir() else path
    again = "measure again with `vtexport bench`"
    try:
        data = read_bounded(file, MAX_BYTES)
    except UnreadableError as error:
        raise InputError(f"{file} cannot be read ({quoted(error, file)}); {again}") from error
    try:
        version = decode_json(data, _Envelope).header
    except UnreadableError as error:
        raise InputError(f"{file} is not a report of `vtexport bench` ({quoted(error, file)}); {again}") from error
    if version.kind != KIND:
        raise InputError(f"{file} is not a report of `vtexport bench` (its kind is {quoted(version.kind)!r}); {again}")
    if version.schema_version != SCHEMA_VERSION:
        raise InputError(f"{file} has schema_version {version.schema_version}, not {SCHEMA_VERSION}; {again}")
    try:
        return decode_json(data, Report)
    except UnreadableError as error:
        raise InputError(f"{file} is damaged ({quoted(error, file)}); {again}") from error


class _Version(msgspec.Struct):
    schema_version: int
    kind: str


class _Envelope(msgspec.Struct):
    header: _Version
