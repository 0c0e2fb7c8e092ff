from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vtexport.checkpoint import resolve
from vtexport.checkpoint.aliases import ALIASES
from vtexport.checkpoint.resolve import default_cache_dir, locate, open_checkpoint
from vtexport.errors import InputError, UsageError


def stored_values(folder: Path) -> dict[str, Any]:
    """Every tensor by canonical name, read through the opened checkpoint's entries."""
    checkpoint = open_checkpoint(str(folder))
    return {
        name: entry.file.read_bytes()[entry.offset : entry.offset + entry.nbytes]
        for name, entry in checkpoint.tensors.items()
    }


# Folders, in every layout


def test_folder_as_transformers_saves_it(tiny_checkpoint: Path, tiny_model: Any) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint))
    source = checkpoint.source
    assert (source.requested, source.kind, source.id) == (str(tiny_checkpoint), "folder", tiny_checkpoint.name)
    assert (source.revision, source.weights, source.seed) == (None, "stored", None)
    assert checkpoint.weight_files == ((tiny_checkpoint / "model.safetensors").resolve(),)
    assert checkpoint.config.model_type == "llava"
    values = stored_values(tiny_checkpoint)
    for name, parameter in tiny_model.named_parameters():
        canonical = checkpoint.family.canonical_name(name)
        assert checkpoint.tensors[canonical].shape == tuple(parameter.shape)
        assert values[canonical] == parameter.detach().numpy().tobytes()


def hub_layout(source: Path, destination: Path, *, shards: int) -> Path:
    """The same tensors under the names of the hub's files."""
    from safetensors.numpy import load_file, save_file

    family = open_checkpoint(str(source)).family
    shutil.copytree(source, destination, ignore=shutil.ignore_patterns("*.safetensors*"))
    tensors = {
        family.hub_name(family.canonical_name(name)): value
        for name, value in load_file(source / "model.safetensors").items()
    }
    assert "language_model.model.embed_tokens.weight" in tensors
    if shards == 1:
        save_file(tensors, destination / "model.safetensors")
        return destination
    weight_map = {}
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(list(tensors.items())[number::shards])
        save_file(part, destination / name)
        weight_map |= dict.fromkeys(part, name)
    (destination / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return destination


@pytest.mark.parametrize("shards", [1, 3])
def test_hub_layout_binds_to_the_same_tensors(tiny_checkpoint: Path, tmp_path: Path, shards: int) -> None:
    rewritten = hub_layout(tiny_checkpoint, tmp_path / "hub-layout", shards=shards)
    assert stored_values(rewritten) == stored_values(tiny_checkpoint)
    assert len(open_checkpoint(str(rewritten)).weight_files) == shards


def test_shards_that_transformers_writes(tiny_model: Any, tiny_checkpoint: Path, saved_folder: Path) -> None:
    (saved_folder / "model.safetensors").unlink()
    tiny_model.save_pretrained(saved_folder, max_shard_size="200KB")
    assert (saved_folder / "model.safetensors.index.json").is_file()
    assert stored_values(saved_folder) == stored_values(tiny_checkpoint)


def test_alias_counts_before_folder(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle of a model stands under its name by default: building again must find the model, not the bundle."""
    shutil.copytree(tiny_checkpoint, tmp_path / "mini")
    monkeypatch.chdir(tmp_path)
    assert open_checkpoint("mini", cache_dir=tmp_path / "cache").source.kind == "alias"
    assert open_checkpoint("./mini").source.kind == "folder"


def test_home_folder_is_expanded(saved_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(saved_folder.parent))
    assert open_checkpoint("~/tiny").folder == saved_folder


# What is wrong with a folder


def test_missing_tokenizer(saved_folder: Path) -> None:
    (saved_folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"has no tokenizer \(none of tokenizer\.json, tokenizer\.model"):
        open_checkpoint(str(saved_folder))
    (saved_folder / "tokenizer.model").touch()
    assert open_checkpoint(str(saved_folder)).tensors


def test_quantised_checkpoint(saved_folder: Path, tmp_path: Path, edit_json: Callable[..., None]) -> None:
    """Stored tensors decide; that a configuration names a method is told."""
    edit_json(saved_folder / "config.json", quantization_config={"quant_method": "awq"})
    for weights in ("stored", "random"):
        notes: list[str] = []
        checkpoint = open_checkpoint(str(saved_folder), weights=weights, cache_dir=tmp_path, notify=notes.append)
        assert checkpoint.tensors
        assert len(notes) == 1
        assert "names the quantisation awq, but the weights are stored in full precision" in notes[0]


@pytest.mark.parametrize("word", [None, "auto", "float8_e4m3fn", "float64", "bf16", {"": "float16"}, 16])
def test_no_word_for_a_dtype_keeps_stored_weights_from_being_read(
    saved_folder: Path, tiny_checkpoint: Path, edit_json: Callable[..., None], word: Any
) -> None:
    path = saved_folder / "config.json"
    for key in ("dtype", "torch_dtype"):
        content = json.loads(path.read_text())
        edit_json(path, **{key: word}, text_config=content["text_config"] | {key: word})
        assert stored_values(saved_folder) == stored_values(tiny_checkpoint)


def test_a_dtype_that_random_weights_do_not_have_is_told(
    saved_folder: Path, tmp_path: Path, edit_json: Callable[..., None]
) -> None:
    edit_json(saved_folder / "config.json", dtype="float64")
    notes: list[str] = []
    open_checkpoint(str(saved_folder), weights="random", cache_dir=tmp_path, notify=notes.append)
    assert notes == [f"{saved_folder / 'config.json'} has dtype 'float64'; random weights are written in float32"]


def test_unknown_family(saved_folder: Path, edit_json: Callable[..., None]) -> None:
    edit_json(saved_folder / "config.json", model_type="blip")
    with pytest.raises(InputError, match=r"family BLIP \(model_type 'blip'\), which vtexport cannot export yet"):
        open_checkpoint(str(saved_folder))


def test_configuration_of_another_size(saved_folder: Path, edit_json: Callable[..., None]) -> None:
    path = saved_folder / "config.json"
    text = json.loads(path.read_text())["text_config"]
    edit_json(path, text_config=text | {"num_hidden_layers": text["num_hidden_layers"] + 1})
    with pytest.raises(InputError, match=r"lacks 9 tensors \(language_model\.layers\.3\."):
        open_checkpoint(str(saved_folder))
    edit_json(path, text_config=text | {"num_hidden_layers": text["num_hidden_layers"] - 1})
    with pytest.raises(InputError, match=r"holds 9 tensors \(.* has no place for"):
        open_checkpoint(str(saved_folder))
    edit_json(path, text_config=text | {"vocab_size": text["vocab_size"] + 8})
    with pytest.raises(InputError, match=r"holds 2 tensors of another shape"):
        open_checkpoint(str(saved_folder))


def test_truncated_weights(saved_folder: Path) -> None:
    file = saved_folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"the download is incomplete, fetch the file again"):
        open_checkpoint(str(saved_folder))


def test_configuration_alone(saved_folder: Path) -> None:
    (saved_folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"holds no weights .*--weights random"):
        open_checkpoint(str(saved_folder))


# What names nothing


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lava", "no model 'lava'; did you mean 'llava'?"),
        ("resnet50", r"no model 'resnet50'; give a folder, an alias \(llava, llava-13b, mini\)"),
        ("./nowhere", r"no folder \./nowhere.*check the path"),
        ("", r"the model is empty; give a folder"),
        (
            "https://huggingface.co/someone/llava-7b/tree/main",
            r"a web address; give the hub id in it, someone/llava-7b$",
        ),
        ("/no/such/folder", "no folder /no/such/folder"),
        ("a/b/c", "no folder a/b/c"),
        ("owner/name@", "no folder owner/name@"),
    ],
)
def test_names_that_mean_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UsageError, InputError), match=message):
        open_checkpoint(name)


def test_a_file_is_not_a_folder(saved_folder: Path) -> None:
    with pytest.raises(UsageError, match="is a file; give the folder"):
        open_checkpoint(str(saved_folder / "model.safetensors"))


def test_argument_values() -> None:
    with pytest.raises(UsageError, match="weights is 'none'; it takes stored or random"):
        open_checkpoint("mini", weights="none")
    with pytest.raises(UsageError, match="seed is -1"):
        open_checkpoint("mini", seed=-1)


# Random weights


def test_asking_for_random_weights_needs_no_note(tmp_path: Path) -> None:
    for name in ("mini", str(ALIASES["mini"].folder)):
        checkpoint = open_checkpoint(name, weights="random", cache_dir=tmp_path, notify=pytest.fail)
        assert checkpoint.source.weights == "random"
    assert checkpoint.source.kind == "folder"


def test_mini_has_weights_of_its_own(own_cache: Path) -> None:
    checkpoint = open_checkpoint("mini", notify=pytest.fail)
    assert (checkpoint.source.kind, checkpoint.source.id) == ("alias", "mini")
    assert (checkpoint.source.weights, checkpoint.source.seed) == ("stored", None)
    assert checkpoint.folder == ALIASES["mini"].folder
    assert not own_cache.exists()
    random = open_checkpoint("mini", weights="random", seed=1, notify=pytest.fail)
    assert (random.source.weights, random.source.seed) == ("random", 1)
    assert random.folder.parent == own_cache / "random-weights"


def test_cache_is_reused_and_keyed(tmp_path: Path, edit_json: Callable[..., None]) -> None:
    first = open_checkpoint("mini", weights="random", cache_dir=tmp_path)
    stamp = first.weight_files[0].stat().st_mtime_ns
    again = open_checkpoint("mini", weights="random", cache_dir=tmp_path)
    assert (again.folder, again.weight_files[0].stat().st_mtime_ns) == (first.folder, stamp)
    assert open_checkpoint("mini", weights="random", seed=1, cache_dir=tmp_path).folder != first.folder
    changed = Path(shutil.copytree(ALIASES["mini"].folder, tmp_path / "mini"))
    edit_json(changed / "config.json", dtype="bfloat16")
    assert open_checkpoint(str(changed), weights="random", cache_dir=tmp_path).folder != first.folder


def test_configuration_alone_with_random_weights(tmp_path: Path) -> None:
    folder = tmp_path / "only config"
    folder.mkdir()
    shutil.copyfile(ALIASES["mini"].folder / "config.json", folder / "config.json")
    checkpoint = open_checkpoint(str(folder), weights="random", seed=2, cache_dir=tmp_path / "cache")
    assert checkpoint.folder.name.startswith("only--config-seed2-")
    assert (checkpoint.folder / "tokenizer.json").is_file()
    assert [file.name for file in folder.iterdir()] == ["config.json"]


def test_damaged_cache_says_what_to_delete(tmp_path: Path) -> None:
    checkpoint = open_checkpoint("mini", weights="random", cache_dir=tmp_path)
    checkpoint.weight_files[0].write_bytes(b"")
    with pytest.raises(InputError, match=f"delete {checkpoint.folder} and run again"):
        open_checkpoint("mini", weights="random", cache_dir=tmp_path)


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    folder = open_checkpoint("mini", weights="random", cache_dir=tmp_path).folder
    left = folder.rename(folder.parent / f".partial-{folder.name}-x1y2")
    assert open_checkpoint("mini", weights="random", cache_dir=tmp_path).folder == folder
    assert not left.exists()


def test_unwritable_cache(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot be written .*set VTEXPORT_CACHE"):
        open_checkpoint("mini", weights="random", cache_dir=tmp_path / "file")


def test_processes_at_once_write_once(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; from vtexport.checkpoint.resolve import open_checkpoint\n"
        f"print(open_checkpoint('mini', weights='random', cache_dir=Path({str(tmp_path)!r})).weight_files[0])"
    )
    repository = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", script]
    running = [subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = {process.communicate(timeout=60)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(outputs) == 1
    left = [file.name for file in (tmp_path / "random-weights").iterdir() if not file.name.endswith(".lock")]
    assert len(left) == 1


def test_waiting_for_another_process_is_said(tmp_path: Path) -> None:
    folder = open_checkpoint("mini", weights="random", cache_dir=tmp_path).folder
    shutil.rmtree(folder)
    script = (
        "import time; from filelock import FileLock\n"
        f"with FileLock({str(folder.parent / f'.{folder.name}.lock')!r}): print('held', flush=True); time.sleep(0.5)"
    )
    lines: list[str] = []
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        open_checkpoint("mini", weights="random", cache_dir=tmp_path, notify=lines.append)
    assert lines == [f"waiting for another process that is writing {folder}"]


def test_large_models_report_progress() -> None:
    lines: list[str] = []
    report = resolve._progress_lines(Path("out"), lines.append)
    for written in range(0, 2_000_000_001, 10_000_000):
        report(written, 2_000_000_000)
    assert len(lines) == 11
    assert lines[-1] == "writing random weights to out: 2.0 of 2.0 GB"
    report(5, 10)
    assert len(lines) == 11


def test_default_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert default_cache_dir() == tmp_path / "default-cache"
    monkeypatch.delenv("VTEXPORT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "vtexport"


def test_a_bundle_is_no_checkpoint(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match=r"is a bundle; give the checkpoint that it was made of"):
        locate(str(tiny_bundle))
