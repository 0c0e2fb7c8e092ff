"""Estimates for a bundle on a device: time of the stages by the roofline, and whether memory suffices.

The roofline (Williams et al. 2009, doi:10.1145/1498765.1498785) takes the longer of two times: that of the arithmetic
at the device's peak, and that of the bytes at the memory's. It is a lower bound that no run beats and few come near to,
for comparing plans and devices; nothing here is a measurement but what is marked `measured`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vtexport.backends.arithmetic import Stages, Work, count_stages, matrices
from vtexport.backends.graph_file import GraphFile, read_graph
from vtexport.backends.recipe import Device, Target
from vtexport.backends.record import Engines
from vtexport.backends.registry import runtimes
from vtexport.bundle.abilities import ChosenGraphs, choose_graphs
from vtexport.bundle.manifest import Plan
from vtexport.bundle.memory import kv_bytes
from vtexport.bundle.reader import Bundle
from vtexport.dtypes import DTYPES, Precision
from vtexport.errors import UsageError

# Resident memory at its peak over the weights: TensorRT-RTX 1.7.1 on a CPU took 3.35 GB for an engine of 1.03 GB
BUILD_FACTOR = 3.2
TEXT_TOKENS, NEW_TOKENS = 64, 128  # of a question with its template, and of an answer, where nothing is said


@dataclass(frozen=True)
class StageTime:
    """Roofline of one stage.

    Attributes:
        milliseconds: The lower bound; None where the device's figures are not known.
        bound: "arithmetic" or "bytes", whichever takes longer; empty where neither is known.
    """

    name: str
    work: Work
    milliseconds: float | None
    bound: str


@dataclass(frozen=True)
class Amount:
    """One line of a sum of memory.

    Attributes:
        bytes: None where it is not known, so that it is not in the sum.
        how: "measured" (of these engines), "exact", "stated" (of the device, by its source), "estimate" or
            "not known".
    """

    what: str
    bytes: float | None
    how: str


@dataclass(frozen=True)
class Memory:
    """Sum of memory while a plan runs, and the peak of building its engines apart.

    Attributes:
        whole: Of the device; None where it is not known.
        amounts: What the sum is made of.
        within: What is part of the whole and in no sum, such as the pool of the contiguous allocator.
        build: The peak of building an engine, the largest; with the system's share where the device itself builds.
            None where there are no engines.
        builds_there: True where engines are built on the device; others are built ahead of time on any machine.
        advice: Next steps where running or building does not fit.
    """

    whole: float | None
    amounts: list[Amount]
    within: list[Amount]
    build: Amount | None
    builds_there: bool
    advice: list[str]

    @property
    def total(self) -> float:
        """Sum of what is known."""
        return sum(each.bytes or 0.0 for each in self.amounts)

    @property
    def left(self) -> float | None:
        """Bytes that are left of the whole; negative where it does not fit."""
        return None if self.whole is None else self.whole - self.total

    @property
    def fits(self) -> bool | None:
        """True where the sum fits; None where the device's memory is not known."""
        return None if self.left is None else self.left >= 0

    @property
    def build_fits(self) -> bool | None:
        """True where building fits; None where the device does not build or its memory is not known."""
        if self.build is None or self.whole is None or not self.builds_there:
            return None
        return (self.build.bytes or 0.0) <= self.whole


@dataclass(frozen=True)
class PlanEstimate:
    """One plan on one device.

    Attributes:
        device: None for a target whose recipe names none.
        precision: Of the products, by which the arithmetic's peak is chosen.
        peak_tflops: That peak; None where it is not known.
    """

    plan: str
    device: Device | None
    precision: Precision
    peak_tflops: float | None
    times: list[StageTime]
    memory: Memory


class Estimator:
    """Estimates for the plans of a bundle on a target, for one question and answer length.

    Raises:
        UsageError: a length is not positive, or the target does not run the bundle's precision.
    """

    def __init__(
        self,
        bundle: Bundle,
        target: Target,
        engines: Engines | None = None,
        text_tokens: int = TEXT_TOKENS,
        new_tokens: int = NEW_TOKENS,
    ):
        """`engines` is the record of those that were built for the target, where there are some."""
        for name, value in (("text-tokens", text_tokens), ("new-tokens", new_tokens)):
            if value < 1:
                raise UsageError(f"--{name} is {value}; give a whole number from 1")
        precision = DTYPES[bundle.manifest.precision].precision
        assert precision is not None
        if precision not in target.precisions:
            raise UsageError(
                f"{bundle.folder} is in {precision} and target {target.name} takes {' or '.join(target.precisions)}; "
                f"build the bundle with --precision {target.precisions[0]}, or give another target"
            )
        self._bundle, self._target, self._engines = bundle, target, engines
        self._precision: Precision = precision
        self.text_tokens, self.new_tokens = text_tokens, new_tokens
        self._graphs: dict[str, GraphFile] = {}

    def stages(self, plan: Plan) -> Stages:
        """Work of a plan's stages.

        Raises:
            UsageError: the prompt and the answer are longer than the model's positions.
            BundleError: a graph cannot be read.
        """
        manifest = self._bundle.manifest
        most, wanted = manifest.decoder.max_position_embeddings, plan.visual_tokens + self.text_tokens + self.new_tokens
        if wanted > most:
            raise UsageError(
                f"{plan.name} has {plan.visual_tokens} visual tokens, which with {self.text_tokens} of text and "
                f"{self.new_tokens} new ones are more than the model's {most} positions; give shorter ones"
            )
        return count_stages(manifest, plan, self._chosen(plan), self._read, self.text_tokens, self.new_tokens)

    def estimate(self, plan: Plan, device: Device | None) -> PlanEstimate:
        """Time and memory of a plan on a device of the target; raises as `stages` does."""
        peak = device.tflops.get(self._precision) if device is not None else None
        bandwidth = device.bandwidth_gb_s if device is not None else None
        times = [roofline(name, work, peak, bandwidth) for name, work in self.stages(plan).items()]
        memory = self._memory(plan, device)
        return PlanEstimate(plan.name, device, self._precision, peak, times, memory)

    def _chosen(self, plan: Plan) -> ChosenGraphs:
        return choose_graphs(self._bundle.manifest, plan, self._target.abilities)

    def _read(self, name: str) -> GraphFile:
        if name not in self._graphs:
            self._graphs[name] = read_graph(self._bundle.path(self._bundle.manifest.graphs[name].file))
        return self._graphs[name]

    def _memory(self, plan: Plan, device: Device | None) -> Memory:
        manifest = self._bundle.manifest
        names = self._chosen(plan).names
        weights = [self._read(name).weight_bytes for name in names]
        built = self._engines.engines if self._engines is not None else {}
        runtime = runtimes()[self._target.runtime]
        builds_there = runtime.has_engines and runtime.compile is None
        largest = max(range(len(names)), key=lambda place: weights[place])
        if all(name in built for name in names):
            engines = Amount("engines", float(sum(built[name].bytes for name in names)), "measured")
            peak = Amount("the largest engine", float(max(built[name].peak_memory_bytes for name in names)), "measured")
        else:
            engines = Amount(f"weights of {len(names)} graphs", float(sum(weights)), "exact")
            peak = Amount(f"the engine of {names[largest]}", BUILD_FACTOR * weights[largest], "estimate")
        if builds_there:
            peak = replace(peak, bytes=(peak.bytes or 0.0) + sum(each.bytes or 0.0 for each in _system(device)))
        amounts = [
            *_system(device),
            engines,
            Amount("KV cache", float(kv_bytes(manifest, plan, self.text_tokens + self.new_tokens)), "exact"),
            Amount("activations", self._activations(plan), "estimate"),
            Amount("workspace, CUDA and the runtime", None, "not known"),
        ]
        whole = device.memory_bytes if device is not None else None
        within = []
        if device is not None and device.cma_mib is not None:
            within.append(Amount("pool of the contiguous allocator", device.cma_mib * 2**20, "stated"))
        memory = Memory(whole, amounts, within, peak if runtime.has_engines else None, builds_there, [])
        return replace(memory, advice=_advice(memory, device, self._target) if device is not None else [])

    def _activations(self, plan: Plan) -> float:
        """Bytes of the values between layers at their largest, by a rule of thumb.

        A stage holds its rows in four widths of its stream and two of its widest product, in float32 in the vision
        tower and in the bundle's type in the language model.
        """
        manifest, chosen = self._bundle.manifest, self._chosen(plan)
        sizes = manifest.vision
        rows = sum(each.grid_height * each.grid_width * each.frames + sizes.cls_rows for each in sizes.largest.views)
        vision = rows * 4 * (4 * sizes.hidden_size + 2 * self._widest(chosen.vision))
        itemsize = DTYPES[manifest.precision].itemsize
        new = plan.visual_tokens + self.text_tokens
        widest = max(self._widest(name) for name in chosen.decoder)
        return float(max(vision, new * itemsize * (4 * manifest.decoder.hidden_size + 2 * widest)))

    def _widest(self, name: str) -> int:
        vocab_size = self._bundle.manifest.decoder.vocab_size
        return max((each.columns for each in matrices(self._read(name)) if each.columns != vocab_size), default=0)


def roofline(name: str, work: Work, peak_tflops: float | None, bandwidth_gb_s: float | None) -> StageTime:
    """Lower bound of a stage's time: the longer of FLOPs over the arithmetic's peak and bytes over the memory's."""
    bounds = {}
    if peak_tflops is not None:
        bounds["arithmetic"] = work.flops / (peak_tflops * 1e12) * 1e3
    if bandwidth_gb_s is not None:
        bounds["bytes"] = work.bytes / (bandwidth_gb_s * 1e9) * 1e3
    if not bounds:
        return StageTime(name, work, None, "")
    bound = max(bounds, key=lambda each: bounds[each])
    return StageTime(name, work, bounds[bound], bound)


def _system(device: Device | None) -> list[Amount]:
    """The system's share of a memory that CPU and GPU share."""
    if device is None or not device.shared_memory:
        return []
    if device.system_mib is None:
        return [Amount("system", None, "not known")]
    return [Amount("system", device.system_mib * 2**20, "stated")]


def _advice(memory: Memory, device: Device, target: Target) -> list[str]:
    """Next steps where a plan does not run on a device, or runs there and is not built there; none else."""
    if memory.fits is False:
        larger = _with_memory(target, memory.total)
        elsewhere = f"run it on {larger[0].title}, " if larger else ""
        return [f"{elsewhere}{'or ' if larger else ''}take a smaller model, or weights of fewer bits"]
    if memory.build is None or memory.build_fits is not False:
        return []
    alike = [
        other
        for other in _with_memory(target, memory.build.bytes or 0.0)
        if other.compute_capability == device.compute_capability
    ]
    if alike:
        first = f"build on {alike[0].title}, whose GPU has the same compute capability {device.compute_capability}"
    else:
        first = "take a smaller model, or weights of fewer bits: no device of the target holds the build"
    steps = [first]
    if device.shared_memory:
        steps.append("end other programs and add swap for them; what the GPU uses is pinned and does not go there")
    return [*steps, "keep one budget in the bundle: each is a profile of the decoder's engine"]


def _with_memory(target: Target, needed: float) -> list[Device]:
    """Devices of a target with so much memory, the smallest first."""
    holding = [each for each in target.devices if (each.memory_bytes or 0.0) >= needed]
    return sorted(holding, key=lambda each: each.memory_bytes or 0.0)
