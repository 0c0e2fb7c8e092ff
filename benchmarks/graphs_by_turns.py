"""Times of a bundle's vision tower and decoder in ONNX Runtime beside those of another build of it, by turns.

    vtexport build --model mini --method none -o new             # and with another checkout: -o old
    python benchmarks/graphs_by_turns.py old new --name mini

Graphs of one name are fed with the same random inputs. A ratio is the median over the rounds of new / old, so that a
slow phase of the machine counts on both sides.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from machine import describe

RESULTS = Path(__file__).resolve().parent / "results" / "graphs_by_turns.json"
STEPS = {"prefill of 88 rows": (88, 0), "prefill of 600 rows": (600, 0), "one token after 600": (1, 600)}


def open_graph(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """A session as a user's would be, with default optimisations."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def inputs_of(session: onnxruntime.InferenceSession, rows: int, past: int) -> dict[str, np.ndarray]:
    """Random inputs of the shapes that a graph states, with `rows` new rows after `past` earlier ones."""
    random, given = np.random.default_rng(0), {}
    for value in session.get_inputs():
        shape = [each if isinstance(each, int) else {"S": rows, "P": past}[each] for each in value.shape]
        if value.type == "tensor(int64)":
            given[value.name] = np.broadcast_to(np.arange(past, past + rows), shape).astype(np.int64)
        else:
            kind = np.float16 if value.type == "tensor(float16)" else np.float32
            given[value.name] = (0.1 * random.standard_normal(shape)).astype(kind)
    return given


def by_turns(sessions: list[onnxruntime.InferenceSession], given: dict[str, np.ndarray], rounds: int) -> dict[str, Any]:
    """Seconds of both, the first tenth of the rounds left out, and the largest difference of the first output."""
    times: list[list[float]] = [[], []]
    outputs: list[np.ndarray] = [np.empty(0)] * 2
    for number in range(rounds):
        for which in (0, 1) if number % 2 else (1, 0):
            begin = time.perf_counter()
            outputs[which] = sessions[which].run(None, given)[0]
            times[which].append(time.perf_counter() - begin)
    old, new = (each[max(1, rounds // 10) :] for each in times)
    return {
        "old_ms": 1000 * statistics.median(old),
        "new_ms": 1000 * statistics.median(new),
        "ratio": statistics.median(b / a for a, b in zip(old, new, strict=True)),
        "rounds": len(old),
        "largest_difference": float(np.abs(outputs[0].astype(np.float32) - outputs[1].astype(np.float32)).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--name", required=True, help="of the model, for the results")
    parser.add_argument("--seconds", type=float, default=8, help="about, for each graph; default: %(default)s")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = []
    for new in sorted((arguments.new / "onnx").glob("*.onnx")):
        old = arguments.old / "onnx" / new.name
        if not new.name.startswith(("vision", "decoder")):
            continue
        for threads in (1, 2):
            sessions = [open_graph(path, threads) for path in (old, new)]
            for step, sizes in STEPS.items() if new.name.startswith("decoder") else [("one image", (0, 0))]:
                given = inputs_of(sessions[0], *sizes)
                begin = time.perf_counter()
                by_turns(sessions, given, 2)
                once = (time.perf_counter() - begin) / 2
                rounds = int(min(500, max(12, arguments.seconds / once)))
                found = by_turns(sessions, given, rounds)
                rows.append({"graph": new.stem, "threads": threads, "step": step} | found)
                print(json.dumps(rows[-1]), flush=True)
    results = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    results[arguments.name] = {"machine": describe(None, ("onnxruntime", "numpy")), "rows": rows}
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
