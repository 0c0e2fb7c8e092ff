from __future__ import annotations

import json
import math
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vtexport.checkpoint import random_weights
from vtexport.checkpoint.aliases import ALIASES
from vtexport.checkpoint.model_config import read_model_config
from vtexport.checkpoint.random_weights import remove_partial, write_random_checkpoint
from vtexport.checkpoint.safetensors_index import SHARD_INDEX, SINGLE_FILE, read_index
from vtexport.errors import InputError

MINI = ALIASES["mini"].folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_random_checkpoint(MINI, tmp_path / name, seed)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert set(a) == set(c)
    assert [name for name in a if a[name] != c[name]] == [SINGLE_FILE]
    # every tensor differs, not just the header's note of the seed
    for name, entry in read_index(tmp_path / "a").items():
        other = read_index(tmp_path / "c")[name]
        data = a[SINGLE_FILE][entry.offset :][: entry.nbytes]
        assert data != c[SINGLE_FILE][other.offset :][: other.nbytes]
        assert any(data)


def test_names_shapes_and_modes(tmp_path: Path) -> None:
    write_random_checkpoint(MINI, tmp_path / "mini", 0)
    model = read_model_config(MINI)
    entries = read_index(tmp_path / "mini")
    assert {name: entry.shape for name, entry in entries.items()} == {
        model.family.hub_name(name): shape for name, shape in model.shapes.items()
    }
    assert {entry.dtype for entry in entries.values()} == {"F16"}
    assert stat.S_IMODE((tmp_path / "mini").stat().st_mode) == 0o755
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "mini").iterdir()} == {0o644}
    assert (tmp_path / "mini" / "config.json").read_bytes() == (MINI / "config.json").read_bytes()
    assert not (tmp_path / "mini" / "README.md").exists()


@pytest.mark.parametrize(("dtype", "stored"), [("float16", "F16"), ("bfloat16", "BF16")])
def test_dtype_of_the_configuration(tmp_path: Path, edit_json: Callable[..., None], dtype: str, stored: str) -> None:
    source = Path(shutil.copytree(MINI, tmp_path / "source"))
    edit_json(source / "config.json", dtype=dtype)
    write_random_checkpoint(source, tmp_path / "out", 0)
    assert {entry.dtype for entry in read_index(tmp_path / "out").values()} == {stored}
    data_bytes = sum(math.prod(entry.shape) for entry in read_index(tmp_path / "out").values()) * 2
    assert data_bytes < (tmp_path / "out" / SINGLE_FILE).stat().st_size < data_bytes + 50_000


def test_shards_hold_the_same_values(tmp_path: Path) -> None:
    write_random_checkpoint(MINI, tmp_path / "one", 0)
    write_random_checkpoint(MINI, tmp_path / "many", 0, shard_bytes=1_000_000)
    index = json.loads((tmp_path / "many" / SHARD_INDEX).read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert len(shards) >= 6
    one, many = read_index(tmp_path / "one"), read_index(tmp_path / "many")
    assert set(one) == set(many)
    assert index["metadata"]["total_size"] == sum(entry.nbytes for entry in one.values())
    for name, entry in one.items():
        assert many[name].file.name == index["weight_map"][name]
        assert _data(tmp_path / "one", name) == _data(tmp_path / "many", name), name
        assert (many[name].shape, many[name].dtype) == (entry.shape, entry.dtype)
    for shard in shards:
        assert sum(entry.nbytes for entry in many.values() if entry.file.name == shard) <= 1_000_000


def test_transformers_loads_shards(tmp_path: Path) -> None:
    import torch
    from transformers import LlavaForConditionalGeneration

    write_random_checkpoint(MINI, tmp_path / "many", 3, shard_bytes=4_000_000)
    model, report = LlavaForConditionalGeneration.from_pretrained(tmp_path / "many", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), name
        if "norm" in name and name.endswith("weight"):
            assert abs(parameter.mean() - 1) < 0.1
        elif name.endswith("bias"):
            assert 0 < parameter.abs().max() < 0.1
        elif parameter.ndim > 1 and "embed_tokens" not in name and "position_embedding" not in name:
            gain = 4 if "q_proj" in name else 1
            assert float(parameter.detach().std()) * math.sqrt(parameter[0].numel()) == pytest.approx(gain, rel=0.05), (
                name
            )


def _data(folder: Path, name: str) -> bytes:
    entry = read_index(folder)[name]
    return entry.file.read_bytes()[entry.offset : entry.offset + entry.nbytes]


def test_progress_reaches_the_total(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write_random_checkpoint(MINI, tmp_path / "mini", 0, progress=lambda written, total: calls.append((written, total)))
    assert calls == sorted(calls)
    assert calls[-1] == (2 * 2_909_312, 2 * 2_909_312)


def test_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(written: int, total: int) -> None:
        if written > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_random_checkpoint(MINI, tmp_path / "mini", 0, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_killed_run_leaves_nothing_that_looks_complete(tmp_path: Path) -> None:
    script = (
        "import os; from pathlib import Path; from vtexport.checkpoint.random_weights import write_random_checkpoint\n"
        f"write_random_checkpoint(Path({str(MINI)!r}), Path({str(tmp_path / 'mini')!r}), 0,\n"
        "    progress=lambda written, total: os._exit(9) if written > total / 2 else None)"
    )
    repository = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", script], cwd=repository, check=False).returncode == 9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".partial-mini-")
    remove_partial(tmp_path / "mini")
    assert list(tmp_path.iterdir()) == []


def test_configuration_alone_gets_placeholders(tmp_path: Path) -> None:
    from transformers import AutoProcessor

    source = tmp_path / "source"
    source.mkdir()
    shutil.copyfile(MINI / "config.json", source / "config.json")
    write_random_checkpoint(source, tmp_path / "out", 0)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert processor.tokenizer.convert_tokens_to_ids("<image>") == 4
    assert [file.name for file in source.iterdir()] == ["config.json"]


def test_existing_destination_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(InputError, match="exists already"):
        write_random_checkpoint(MINI, tmp_path / "out", 0)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["precious"]


def test_full_disk_is_noticed_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(random_weights.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(InputError, match=r"take 14.1 GB and .* has 0.0 GB free"):
        write_random_checkpoint(ALIASES["llava"].folder, tmp_path / "llava", 0)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_destination(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        write_random_checkpoint(MINI, tmp_path / "file" / "out", 0)


def test_memory_does_not_grow_with_the_model(tmp_path: Path, edit_json: Callable[..., None]) -> None:
    """A matrix of 200 MB takes a few MB of working memory."""
    import tracemalloc

    source = Path(shutil.copytree(MINI, tmp_path / "source"))
    text = json.loads((source / "config.json").read_text())["text_config"] | {"vocab_size": 800_000}
    edit_json(source / "config.json", text_config=text)
    read_model_config(source)  # imports what it needs
    tracemalloc.start()
    try:
        write_random_checkpoint(source, tmp_path / "large", 0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "large" / SINGLE_FILE).stat().st_size > 200_000_000
    assert peak < 40_000_000
