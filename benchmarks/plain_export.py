"""Cost of plain `torch.onnx.export(dynamo=True)` and save of the Hugging Face LLaVA, for growing numbers of layers.

    python benchmarks/plain_export.py --checkpoint FOLDER --folder /a/disk/with/room

The checkpoint is LLaVA-1.5-7B's size (build_7b.py writes one); of its decoder the first N layers are loaded, so the
model has LLaVA's structure and true widths. Each size runs in a process of its own, which is stopped when its resident
memory passes a limit; the sizes go on until one fails. The exported graph is a prefill: input_ids [1, 600] with 576
image tokens, attention_mask and pixel_values to logits; no cache, no pruning, one opset. As it is, transformers' LLaVA
cannot be exported ("No ONNX function found for aten._is_all_true", from its check of the number of image tokens), so
that check is switched off (TRANSFORMERS_DISABLE_TORCH_CHECK).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from machine import describe

ROOT = Path(__file__).resolve().parents[1]
LAYERS = (1, 4, 8, 12, 16, 20, 24, 32)
PEAK = re.compile(r"Maximum resident set size \(kbytes\): (\d+)")


def export(checkpoint: Path, layers: int, target: Path) -> None:
    """As a user writes it; seconds of each step on stdout, as JSON."""
    import torch
    from transformers import AutoConfig, LlavaForConditionalGeneration

    marks = [time.perf_counter()]
    config = AutoConfig.from_pretrained(checkpoint)
    config.text_config.num_hidden_layers = layers
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint, config=config, dtype="auto").eval()
    marks.append(time.perf_counter())
    size = config.vision_config.image_size
    input_ids = torch.full((1, 600), 5)
    input_ids[:, 8:584] = config.image_token_id
    inputs = {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "pixel_values": torch.zeros(1, 3, size, size, dtype=model.dtype),
        "use_cache": False,
    }
    with torch.no_grad():
        program = torch.onnx.export(model, (), kwargs=inputs, dynamo=True, verbose=False)
    marks.append(time.perf_counter())
    assert program is not None
    program.save(target / "model.onnx")
    marks.append(time.perf_counter())
    steps = [later - earlier for earlier, later in itertools.pairwise(marks)]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    report = {"parameters": parameters, "dtype": str(model.dtype).removeprefix("torch.")}
    print("\n" + json.dumps(report | dict(zip(("load_s", "export_s", "save_s"), steps, strict=True))))


def resident(pid: int) -> int:
    """Bytes of the process and its children."""
    total = 0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rsplit(") ", 1)[1].split()
            if int(path.name) == pid or int(fields[1]) == pid:
                total += int((path / "statm").read_text().split()[1]) * 4096
        except (OSError, IndexError):
            continue
    return total


def kill_children(pid: int) -> None:
    """Ends what `pid` has started; `time` then ends by itself."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)


def measure(checkpoint: Path, layers: int, folder: Path, limit: int, seconds: float) -> dict[str, Any]:
    """One size in a process of its own."""
    target = folder / f"plain-{layers}"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    worker = [sys.executable, __file__, "--checkpoint", checkpoint, "--folder", target, "--worker", layers]
    command = ["/usr/bin/time", "-v", *map(str, worker)]
    begin, highest, stopped = time.perf_counter(), 0, None
    with (target / "out").open("w") as out, (target / "err").open("w") as err:
        environment = os.environ | {"TRANSFORMERS_DISABLE_TORCH_CHECK": "1"}
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment)
        while process.poll() is None:
            time.sleep(0.1)
            highest = max(highest, resident(process.pid))
            if highest > limit or time.perf_counter() - begin > seconds:
                stopped = f"stopped at {highest / 1e9:.1f} GB of memory after {time.perf_counter() - begin:.0f} s"
                kill_children(process.pid)
                process.wait()
    wall = time.perf_counter() - begin
    text = (target / "err").read_text()
    found: dict[str, Any] = {"layers": layers, "wall_s": wall, "works": process.returncode == 0 and stopped is None}
    if found["works"]:
        found |= json.loads((target / "out").read_text().strip().splitlines()[-1])
        match = PEAK.search(text)
        assert match is not None
        found["peak_memory_bytes"] = 1024 * int(match[1])
        found["disk_bytes"] = sum(path.stat().st_size for path in target.iterdir())
    else:
        lines = [line for line in text.splitlines() if line and not line.startswith(("\t", "Command "))]
        found["why_not"] = stopped or (lines or ["it said nothing"])[-1]
        found["peak_memory_bytes"] = highest
    shutil.rmtree(target)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="where the exported models are written and deleted")
    parser.add_argument("--layers", type=int, nargs="+", default=LAYERS)
    parser.add_argument("--limit", type=float, default=16, help="GB of resident memory (default: 16)")
    parser.add_argument("--seconds", type=float, default=1800, help="for each size (default: 1800)")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--note", help="recorded with the results, for example what else ran on the machine")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "plain_export.json")
    arguments = parser.parse_args()
    if arguments.worker:
        export(arguments.checkpoint, arguments.worker, arguments.folder)
        return
    packages = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript")
    report: dict[str, Any] = {"benchmark": "plain_export", "machine": describe(None, packages)}
    report |= {"note": arguments.note, "memory_limit_bytes": int(arguments.limit * 1e9), "results": []}
    for layers in arguments.layers:
        found = measure(arguments.checkpoint, layers, arguments.folder, int(arguments.limit * 1e9), arguments.seconds)
        report["results"].append(found)
        print(json.dumps(found), flush=True)
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")
        if not found["works"]:
            break


if __name__ == "__main__":
    main()
