"""The hub without the hub: a cache built by hand, and what each failure of the library becomes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import make_mini_tokenizer
import pytest
from huggingface_hub import constants, errors

from vtexport.checkpoint.hub import commit_of, fetch_snapshot
from vtexport.checkpoint.resolve import open_checkpoint
from vtexport.errors import InputError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NOT_CACHED = errors.LocalEntryNotFoundError("not in the cache")


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


@pytest.fixture
def cached_repository(hub_cache: Path, tiny_checkpoint: Path) -> Path:
    """`someone/tiny` as the hub's cache holds it: snapshots are links to blobs."""
    repository = hub_cache / "models--someone--tiny"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for file in tiny_checkpoint.iterdir():
        shutil.copyfile(file, repository / "blobs" / f"blob-{file.name}")
        (snapshot / file.name).symlink_to(f"../../blobs/blob-{file.name}")
    (repository / "refs").mkdir()
    for reference in ("main", "v1"):
        (repository / "refs" / reference).write_text(COMMIT)
    return repository


@pytest.mark.parametrize("name", ["someone/tiny", "someone/tiny@v1", f"someone/tiny@{COMMIT}"])
def test_cached_snapshot_opens_offline(cached_repository: Path, name: str) -> None:
    checkpoint = open_checkpoint(name)
    assert checkpoint.source.kind == "hub"
    assert (checkpoint.source.id, checkpoint.source.revision) == ("someone/tiny", COMMIT)
    assert (checkpoint.source.weights, checkpoint.source.seed) == ("stored", None)
    assert checkpoint.folder == cached_repository / "snapshots" / COMMIT
    # graphs name these files, and ONNX tools refuse symlinks
    assert checkpoint.weight_files == ((cached_repository / "blobs" / "blob-model.safetensors").resolve(),)
    assert {entry.file for entry in checkpoint.tensors.values()} == set(checkpoint.weight_files)


def test_alias_takes_its_repository_from_the_cache(cached_repository: Path) -> None:
    cached_repository.rename(cached_repository.parent / "models--llava-hf--llava-1.5-7b-hf")
    source = open_checkpoint("llava").source
    assert (source.requested, source.kind, source.id) == ("llava", "alias", "llava-hf/llava-1.5-7b-hf")
    assert source.revision == COMMIT


def test_random_weights_with_the_tokenizer_of_the_hub(cached_repository: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint("someone/tiny", weights="random", seed=5, cache_dir=tmp_path / "cache")
    assert (checkpoint.source.weights, checkpoint.source.seed, checkpoint.source.revision) == ("random", 5, COMMIT)
    assert checkpoint.folder.parent == tmp_path / "cache" / "random-weights"
    assert (checkpoint.folder / "tokenizer.json").read_text() == make_mini_tokenizer.text(())


def test_incomplete_cache(cached_repository: Path) -> None:
    (cached_repository / "blobs" / "blob-model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors links to a file that is not there"):
        open_checkpoint("someone/tiny")


@pytest.mark.parametrize("shards", [("model-00001-of-00002.safetensors",), ()])
def test_a_cache_that_lacks_weights_is_said_to(cached_repository: Path, shards: tuple[str, ...]) -> None:
    """Not with the advice to put files into the cache."""
    snapshot = cached_repository / "snapshots" / COMMIT
    (snapshot / "model.safetensors").unlink()
    for shard in shards:
        weight_map = {"a": shard, "b": "model-00002-of-00002.safetensors"}
        (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        shutil.copyfile(cached_repository / "blobs" / "blob-model.safetensors", snapshot / shard)
    with pytest.raises(InputError, match=r"^someone/tiny@.* is not \(or not completely\) in .* cache .*; unset it"):
        open_checkpoint("someone/tiny")


def test_offline_and_not_cached(hub_cache: Path) -> None:
    with pytest.raises(
        InputError, match=r"^llava-hf/llava-1.5-7b-hf is not .* HF_HUB_OFFLINE is set; .*--weights random"
    ):
        open_checkpoint("llava")
    with pytest.raises(InputError, match=r"^someone/else@v2 is not"):
        open_checkpoint("someone/else@v2")


def _raiser(error: BaseException) -> Callable[..., Any]:
    def raise_it(*args: Any, **options: Any) -> Any:
        raise error

    return raise_it


def _http(kind: type[errors.HfHubHTTPError], text: str = "answered\nwith details") -> errors.HfHubHTTPError:
    error = kind.__new__(kind)  # the constructor wants a response of whichever HTTP library is in use
    Exception.__init__(error, text)
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (_http(errors.GatedRepoError), r"a/b is gated; accept its conditions on https://huggingface.co/a/b"),
        (_http(errors.RepositoryNotFoundError), "a/b is neither a folder here nor a repository on the hub"),
        (_http(errors.RevisionNotFoundError), "a/b has no revision 'v9'"),
        (_http(errors.HfHubHTTPError, "503 Server Error"), "the hub answered: 503 Server Error; try again later"),
        (errors.HFValidationError("bad name"), r"not a valid hub id \(bad name\)"),
        (OSError("Name or service not known"), r"the hub cannot be reached \(Name or service not known\)"),
        (RuntimeError(), r"the hub cannot be reached \(RuntimeError\)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_the_hub_may_answer(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", _raiser(error))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", _raiser(NOT_CACHED))
    with pytest.raises(InputError, match=message) as caught:
        open_checkpoint("a/b@v9")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (NOT_CACHED, "the connection broke off; run the command again"),
        (OSError(28, "No space left on device"), r"cannot be fetched \(.*No space left on device\)"),
        (_http(errors.HfHubHTTPError, "500 Server Error"), "500 Server Error"),
    ],
    ids=["broken off", "disk full", "server error"],
)
def test_downloads_that_fail(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **options: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", _raiser(error))
    with pytest.raises(InputError, match=message):
        open_checkpoint("a/b")


def test_what_is_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = ["config.json", "model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json",
             "tokenizer.model", "tokenizer.json", "chat_template.jinja", "merges.txt",
             "pytorch_model.bin", "consolidated.safetensors", "onnx/model.safetensors", "README.md"]  # fmt: skip
    asked: dict[str, Any] = {}

    def download(hub_id: str, **options: Any) -> str:
        asked.update(options, hub_id=hub_id)
        return str(tmp_path)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **options: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)

    def chosen(with_weights: bool) -> list[str]:
        fetch_snapshot("a/b", "v1", with_weights=with_weights, notify=pytest.fail)
        patterns = {name: asked[name] for name in ("allow_patterns", "ignore_patterns")}
        return list(huggingface_hub.utils.filter_repo_objects(files, **patterns))

    assert chosen(True) == files[:8]
    assert chosen(False) == [files[0], *files[3:8]]
    assert (asked["hub_id"], asked["revision"], asked["local_files_only"]) == ("a/b", "v1", False)


def test_cache_is_used_with_a_note_when_the_hub_is_silent(
    cached_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", _raiser(OSError("no route to host")))
    lines: list[str] = []
    folder = fetch_snapshot("someone/tiny", None, with_weights=True, notify=lines.append)
    assert commit_of(folder) == COMMIT
    assert len(lines) == 1
    assert "the copy in the cache is used" in lines[0]


def test_a_hub_that_never_answers_is_given_up(tmp_path: Path) -> None:
    """Behind a firewall that drops packets the library alone would wait for ever."""
    script = (
        "from vtexport.checkpoint import hub\n"
        "hub._ANSWER_SECONDS = 1.0\n"
        "try: hub.fetch_snapshot('a/b', None, with_weights=True, notify=print)\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        settings = {"HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}", "HF_HOME": str(tmp_path)}
        environment = {**os.environ, **settings, "HF_HUB_OFFLINE": "0", "NO_PROXY": "*"}
        started = time.monotonic()
        result = subprocess.run(
            [sys.executable, "-c", script],
            cwd=Path(__file__).resolve().parents[2],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    assert result.stdout.startswith("InputError a/b is neither")
    assert "the hub cannot be reached" in result.stdout
    assert time.monotonic() - started < 30


def test_commit_of() -> None:
    assert commit_of(Path("/x/snapshots") / COMMIT) == COMMIT
    assert commit_of(Path("/x/llava")) is None
