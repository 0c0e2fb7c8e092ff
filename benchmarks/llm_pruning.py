"""Cost and gain of pruning inside the language model: its ops, time to first token, KV bytes, segments, memory.

    python benchmarks/llm_pruning.py --threads 2 --folder /a/disk/with/room

Measured in stock ONNX Runtime on a CPU: the ops between decoder segments at the papers' sizes for LLaVA-1.5-7B; the
stages of an answer of every method at 192, 128 and 64 visual tokens next to the unpruned model, for `mini` and for the
same model with a language model of Llama's 1B shape (random weights, 4 GB in float32, written below the folder); a
decoder in four segments with nothing between them beside the one graph, by turns; and the resident memory of processes
that have loaded the one or the other. Results go to benchmarks/results/ with all samples; what is built is deleted.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import describe
from ops import samples_ms, session

ROOT = Path(__file__).resolve().parents[1]
PHOTO = ROOT / "docs" / "images" / "coffee.jpg"
PROMPT = "What is on the table?"
BUDGETS = [192, 128, 64]
PACKAGES = ("numpy", "onnx", "onnxruntime")
# Of the published 1B models of the Llama family; the vocabulary stays mini's.
SHAPE_1B = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
}
LOADED = """
import gc, sys
import numpy as np
from vtexport.bundle.reader import open_bundle
from vtexport.runtime.language_model import LanguageModel
bundle = open_bundle(sys.argv[1])
plan = bundle.plan(sys.argv[2])
model = LanguageModel(bundle, plan, "modern", np.dtype(np.float32), "cpu", int(sys.argv[3]))
gc.collect()
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
print(*(int(status[name].split()[0]) * 1024 for name in ("VmRSS", "RssAnon", "RssFile")))
"""


def op_rows(threads: int, runs: int) -> list[dict[str, Any]]:
    """The ops at the 64-token presets on 32 layers of width 4096 with 32 heads: 35 rows before, 20 after the image."""
    import numpy as np

    from vtexport.pruning import ModelShape, Sizes, get_method, make_options
    from vtexport.pruning.onnx_op import model_of_op

    rng, rows = np.random.default_rng(0), []
    for name in ("vitcop", "nuwa", "fastv"):
        method = get_method(name)
        schedule = method.plan(make_options(method, {}), ModelShape((24, 24), layers=32), 64)
        for step in schedule.steps:
            sizes = Sizes(1, (1, step.tokens), 4096, step.keep, heads=32, kv_heads=32, head_dim=128)
            length = 35 + step.tokens + 20
            made = {
                "hidden_states": rng.standard_normal((1, length, 4096), np.float32),
                "visual_start": np.array([35]),
                "keys": rng.standard_normal((1, length, 32, 128), np.float32),
                "query": rng.standard_normal((1, 32, 128), np.float32),
                "labels": rng.integers(0, 20, (1, step.tokens)),
            }
            op = session(model_of_op(step.op, sizes, dtype="float32"), threads)
            given = {each.name: made[each.name] for each in op.get_inputs()}
            samples = samples_ms(lambda op=op, given=given: op.run(None, given), runs)
            row = {"method": name, "op": step.op.op_type, "tokens": step.tokens, "keep": step.keep, "rows": length}
            rows.append(row | {"median_ms": statistics.median(samples), "samples_ms": samples})
            print(f"{step.op.op_type:18} {step.tokens:4} -> {step.keep:3}  {rows[-1]['median_ms']:.2f} ms", flush=True)
    return rows


def make_1b(folder: Path) -> Path:
    """mini's files with the larger language model in its configuration; no weights."""
    from vtexport.checkpoint.aliases import PACKAGED

    shutil.copytree(PACKAGED / "mini", folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= SHAPE_1B
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def build_plans(model: str, weights: str, bundle: Path, cache: Path, methods: list[str]) -> dict[str, str]:
    """A plan of every method at every budget it can give; why not, where it cannot."""
    from vtexport.build import build
    from vtexport.errors import UsageError

    refused = {}
    settings: dict[str, Any] = {"weights": weights, "cache_dir": cache}
    build(model, bundle, method="none", **settings)
    tokens = 576
    build(model, bundle, method="pyramiddrop", keep=tokens, **settings)
    for method in methods:
        possible = []
        for keep in BUDGETS:
            try:
                _check_budget(bundle, method, keep)
                possible.append(keep)
            except UsageError as error:
                refused[f"{method}-{keep}"] = str(error)
        if possible:
            build(model, bundle, method=method, keep=possible, **settings)
    return refused


def _check_budget(bundle: Path, method: str, keep: int) -> None:
    from vtexport.bundle.reader import open_bundle
    from vtexport.pruning import ModelShape, get_method, make_options

    chosen, layers = get_method(method), open_bundle(bundle).manifest.decoder.num_hidden_layers
    chosen.plan(make_options(chosen, {}), ModelShape((24, 24), layers), keep)


def answers(bundle: Path, plans: list[str], threads: int, runs: int) -> list[dict[str, Any]]:
    """Stages of each plan's answer, milliseconds; plans one after the other, since two of 1B would not fit."""
    from vtexport import Pipeline
    from vtexport.cli.inspect import kv_bytes

    rows = []
    for plan in plans:
        pipeline = Pipeline.open(bundle, plan, threads=threads)
        times = [pipeline.generate(PHOTO, PROMPT, max_new_tokens=8).timings_ms for _ in range(runs + 1)][1:]
        stages = {name: statistics.median(each[name] for each in times) for name in times[0]}
        manifest = pipeline.bundle.manifest
        described = pipeline.bundle.plan(plan)
        row = {
            "plan": plan,
            "tokens_by_layer": described.tokens_by_layer(),
            "image_kv_bytes": kv_bytes(manifest, described),
        }
        rows.append(row | {"median_ms": stages, "samples_ms": times})
        print(
            f"{plan:18} prefill {stages['prefill']:8.1f}  first token {stages['first_token']:8.1f} ms  "
            f"decode of 7 {stages['decode']:7.1f} ms  image KV {row['image_kv_bytes'] / 1e6:6.2f} MB",
            flush=True,
        )
        del pipeline
    return rows


class Nothing:
    """Stands for a step's session: passes everything on, so that the segments alone are timed."""

    @staticmethod
    def run(given: Any) -> dict[str, Any]:
        import numpy as np

        from vtexport.backends.onnxruntime.host import HostBuffer

        hidden, positions = given["hidden_states"], given["position_ids"]
        kept = HostBuffer(np.zeros((1, 0), np.int64))
        return {"hidden_states_out": hidden, "position_ids_out": positions, "keep_indices": kept}


def by_turns(bundle: Path, threads: int, runs: int) -> dict[str, Any]:
    """The whole decoder as one graph and in four segments with nothing between them, milliseconds.

    A prompt of 600 rows, then 16 new tokens one by one; the language model alone.
    """
    import numpy as np

    from vtexport.backends.registry import open_backend
    from vtexport.bundle.reader import open_bundle
    from vtexport.runtime.language_model import LanguageModel

    opened, backend = open_bundle(bundle), open_backend(threads=threads)
    width = opened.manifest.decoder.hidden_size
    rows = np.random.default_rng(0).standard_normal((1, 600, width), np.float32)
    models = {}
    for plan in ("none", "pyramiddrop-576"):
        models[plan] = LanguageModel(opened, opened.plan(plan), "modern", backend)
        models[plan]._steps = [Nothing() for _ in models[plan]._steps]  # type: ignore[misc]
    samples: dict[str, dict[str, list[float]]] = {plan: {"prefill": [], "decode": []} for plan in models}
    for number in range(runs + 1):
        for plan, model in models.items():
            talk = model.start(600, 16)

            def prefill(model: Any = model, talk: Any = talk) -> None:
                model.prefill(talk, backend.upload(rows), np.arange(600), 4, {})

            def decode(model: Any = model, talk: Any = talk) -> None:
                for place in range(16):
                    model.decode(talk, backend.upload(rows[:, :1]), 600 + place)

            for stage, run in (("prefill", prefill), ("decode", decode)):
                start = time.perf_counter()
                run()
                if number:
                    samples[plan][stage].append(1e3 * (time.perf_counter() - start))
    for stage in ("prefill", "decode"):
        one, four = (statistics.median(samples[plan][stage]) for plan in models)
        print(
            f"{stage}: one graph {one:.1f} ms, four segments {four:.1f} ms ({100 * (four / one - 1):+.1f} %)",
            flush=True,
        )
    return samples


def resident(bundle: Path, threads: int, plans: list[str]) -> dict[str, list[int]]:
    """Resident bytes (all, anonymous, file pages) of a process that has loaded a plan's decoder."""
    found = {}
    for plan in plans:
        command = [sys.executable, "-c", LOADED, str(bundle), plan, str(threads)]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found[plan] = [int(each) for each in shown.split()]
        print(
            f"{plan}: {found[plan][0] / 1e6:.0f} MB resident, {found[plan][1] / 1e6:.0f} MB of it anonymous", flush=True
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="threads of ONNX Runtime (default: 2)")
    parser.add_argument("--runs", type=int, default=20, help="timed answers of mini; 1B gets 3 (default: 20)")
    parser.add_argument("--folder", type=Path, help="where 12 GB have room; a temporary folder when left out")
    parser.add_argument("--only", choices=("ops", "mini", "1b"), help="one part alone; results are then only printed")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "llm_pruning.json")
    arguments = parser.parse_args()
    threads, only = arguments.threads, arguments.only
    report: dict[str, Any] = {"benchmark": "llm_pruning", "machine": describe(threads, PACKAGES)}
    if only in (None, "ops"):
        report["ops"] = op_rows(threads, 100)
    everything = ["prunesid", "svdprune", "visionzip", "divprune", "cdpruner", "nuwa", "vitcop", "fastv", "pyramiddrop"]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        for name, runs in (("mini", arguments.runs), ("1b", 3)):
            if only not in (None, name):
                continue
            print(f"{name}:")
            model = "mini" if name == "mini" else str(make_1b(folder / "model"))
            bundle, cache = folder / name, folder / "cache"
            # Behind the vision tower one method costs the language model what another does.
            methods = everything if name == "mini" else ["prunesid", "nuwa", "vitcop", "fastv", "pyramiddrop"]
            refused = build_plans(model, "stored" if name == "mini" else "random", bundle, cache, methods)
            shutil.rmtree(cache, ignore_errors=True)
            plans = ["none"] + [f"{m}-{k}" for m in methods for k in BUDGETS if f"{m}-{k}" not in refused]
            three = next(plan for plan in plans if plan.startswith("vitcop"))
            report[name] = {
                "refused": refused,
                "answers": answers(bundle, plans, threads, runs),
                "segments": by_turns(bundle, threads, runs),
                "resident_bytes": resident(bundle, threads, ["none", three, "pyramiddrop-576"]),
            }
            shutil.rmtree(bundle)
    if only is None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")
        print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
