"""Memory of one plan alone: a process of its own that opens it, answers twice and says what it took.

In a process that has several plans open, what each takes cannot be told apart: they share libraries and mapped weights.
`python -m vtexport.measure.memory` reads a `Job` from stdin and writes a `Memory`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import msgspec

from vtexport.bundle.reader import open_bundle
from vtexport.bundle.unfinished import written_by
from vtexport.errors import VtexportError, printable, quoted
from vtexport.measure.answer import Contender, MeasuredPlan, Settings
from vtexport.measure.pictures import synthetic
from vtexport.measure.record import Memory
from vtexport.measure.state import read_state

_WORKER = [sys.executable, "-m", "vtexport.measure.memory"]


class Job(msgspec.Struct):
    """A plan to open and an image to ask about: a path's bytes, or the seed of a synthetic one."""

    bundle: bytes
    plan: str
    name: str
    settings: Settings
    image: bytes | int


def plan_memory(contender: Contender, settings: Settings, image: bytes | int) -> Memory:
    """Memory of a process with this plan alone; with a reason instead where that process failed."""
    job = Job(os.fsencode(contender.bundle.folder), contender.plan, contender.name, settings, image)
    pipe = subprocess.PIPE
    with subprocess.Popen(_WORKER, stdin=pipe, stdout=pipe, stderr=pipe) as process, written_by(process):
        answer, said = process.communicate(msgspec.json.encode(job))
    if process.returncode != 0:
        ending = f"its process ended with {process.returncode}"
        reason = said.decode(errors="replace").strip().rpartition("\n")[2]
        return Memory(plan=contender.name, reason=f"{ending}: {quoted(reason)}" if reason else ending)
    return msgspec.json.decode(answer, type=Memory)


def measure(job: Job) -> Memory:
    """The memory of this process, which has done nothing before.

    Raises:
        VtexportError: as `Pipeline` and its answers.
    """
    begin = time.perf_counter()
    plan = MeasuredPlan(Contender(open_bundle(os.fsdecode(job.bundle)), job.plan), job.settings)
    opened, loaded = time.perf_counter(), read_state(job.settings.device)
    image = synthetic(job.image) if isinstance(job.image, int) else os.fsdecode(job.image)
    first = plan.answer(image)
    plan.answer(image)
    state = read_state(job.settings.device)
    return Memory(
        plan=job.name,
        loaded_rss_bytes=loaded.rss_bytes,
        answered_rss_bytes=state.rss_bytes,
        peak_rss_bytes=state.peak_rss_bytes,
        device_memory_bytes=state.device_memory_bytes,
        open_s=opened - begin,
        first_answer_ms=first.total_ms,
    )


def main() -> None:
    """Reads the job, measures and writes."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    try:
        found = measure(job)
    except VtexportError as error:
        found = Memory(plan=job.name, reason=printable(error))
    sys.stdout.buffer.write(msgspec.json.encode(found))


if __name__ == "__main__":
    main()
