"""Printing of estimates for a bundle on a target: `vtexport inspect --target`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vtexport.backends.estimate import Amount, Estimator, Memory, PlanEstimate
from vtexport.backends.recipe import Device
from vtexport.backends.record import FoundEngines
from vtexport.backends.targets import find_devices
from vtexport.bundle.reader import Bundle
from vtexport.cli.console import say, size, table


def estimate(
    bundle: Bundle, name: str, plan: str | None, engines: FoundEngines, text_tokens: int, new_tokens: int
) -> tuple[Estimator, list[PlanEstimate]]:
    """Estimates for one plan or all on every device of a target, or on the one of TARGET/DEVICE.

    Raises:
        UsageError: there is no such plan, target or device, or it does not run the bundle.
    """
    target, devices = find_devices(name)
    plans = bundle.manifest.plans if plan is None else bundle.plans_of(plan)
    record = next((each for each in engines.usable.values() if each.target == target.name), None)
    estimator = Estimator(bundle, target, record, text_tokens, new_tokens)
    described: list[Device | None] = [*devices] or [None]
    return estimator, [estimator.estimate(each, device) for device in described for each in plans]


def as_json(estimator: Estimator, estimates: list[PlanEstimate]) -> dict[str, Any]:
    """The estimates as objects; milliseconds are lower bounds, bytes marked with how they are known."""
    return {
        "text_tokens": estimator.text_tokens,
        "new_tokens": estimator.new_tokens,
        "estimates": [
            {
                "plan": each.plan,
                "device": each.device.name if each.device is not None else None,
                "precision": each.precision,
                "peak_tflops": each.peak_tflops,
                "bandwidth_gb_s": each.device.bandwidth_gb_s if each.device is not None else None,
                "stages": {
                    time.name: {
                        "flops": time.work.flops,
                        "bytes": time.work.bytes,
                        "least_ms": time.milliseconds,
                        "bound": time.bound or None,
                    }
                    for time in each.times
                },
                "memory": _memory_as_json(each.memory),
            }
            for each in estimates
        ],
    }


def _memory_as_json(memory: Memory) -> dict[str, Any]:
    return {
        "whole_bytes": memory.whole,
        "amounts": [_amount_as_json(each) for each in memory.amounts],
        "within": [_amount_as_json(each) for each in memory.within],
        "total_bytes": memory.total,
        "left_bytes": memory.left,
        "fits": memory.fits,
        "build": None if memory.build is None else _amount_as_json(memory.build),
        "builds_there": memory.builds_there,
        "build_fits": memory.build_fits,
        "advice": memory.advice,
    }


def _amount_as_json(amount: Amount) -> dict[str, Any]:
    return {"what": amount.what, "bytes": amount.bytes, "how": amount.how}


def say_estimates(estimator: Estimator, estimates: list[PlanEstimate]) -> None:
    """A block for each plan on each device."""
    say(f"with {estimator.text_tokens} tokens of text and {estimator.new_tokens} new ones; estimates, not measured")
    for each in estimates:
        say()
        say(f"{each.plan} on {each.device.title if each.device is not None else 'a device that no recipe describes'}")
        _say_times(each)
        _say_memory(each.memory)


def _say_times(each: PlanEstimate) -> None:
    bandwidth = each.device.bandwidth_gb_s if each.device is not None else None
    peak = f"{each.peak_tflops:g} TFLOPS" if each.peak_tflops is not None else "a peak that is not known"
    memory = f"{bandwidth:g} GB/s" if bandwidth is not None else "a bandwidth that is not known"
    say(f"  lower bounds of time, at {peak} of {each.precision} and {memory}:")
    rows = [
        (
            f"{time.name}, per token" if time.name == "decode" else time.name,
            f"{time.work.flops / 1e9:,.2f}",
            size(time.work.bytes),
            "-" if time.milliseconds is None else f"{time.milliseconds:,.3f}",
            time.bound or "-",
        )
        for time in each.times
    ]
    _say_table(rows, ("stage", "GFLOP", "bytes", "least ms", "bound by"))


def _say_memory(memory: Memory) -> None:
    whole = "memory that is not known" if memory.whole is None else size(memory.whole)
    say(f"  memory of {whole}:")
    known = [(each.what, "-" if each.bytes is None else size(each.bytes), each.how) for each in memory.amounts]
    _say_table([*known, ("sum of what is known", size(memory.total), "")], ("what", "bytes", "how it is known"))
    for each in memory.within:
        say(f"  {each.what}: {size(each.bytes or 0)} of that memory, in no sum")
    if memory.left is not None:
        if memory.fits:
            say(f"  fits, {size(memory.left)} left for the workspace, CUDA, the runtime and everything else")
        else:
            say(f"  does not fit: {size(-memory.left)} are lacking, and more for what is not known")
    if memory.build is not None:
        fits = {True: "there: it fits", False: "there: it does not fit", None: "where it is built"}[memory.build_fits]
        say(f"  building {memory.build.what} takes about {size(memory.build.bytes or 0)} {fits}")
    for step in memory.advice:
        say(f"    {step}")


def _say_table(rows: Sequence[tuple[str, ...]], header: tuple[str, ...]) -> None:
    for line in table(rows, header).splitlines():
        say(f"    {line}")
