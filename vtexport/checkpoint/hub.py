"""Checkpoints from the Hugging Face hub, by way of huggingface_hub and its cache.

HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE act as everywhere else.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from vtexport.checkpoint.safetensors_index import has_weight_files
from vtexport.errors import InputError, MissingDependencyError, quoted

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

_SUPPORT_FILES = ("*.json", "*.jinja", "*.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
# not `*.safetensors`: some repositories hold the same weights a second time as consolidated.safetensors
_WEIGHT_FILES = ("model.safetensors", "model-*.safetensors")
_SUBFOLDERS = "*/*"  # onnx/, original/ and the like
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ANSWER_SECONDS = 10.0
_WITHOUT_THE_HUB = (
    "copy the model's files to this machine and give their folder, or use `--weights random` with an alias"
)


def fetch_snapshot(hub_id: str, revision: str | None, *, with_weights: bool, notify: Callable[[str], None]) -> Path:
    """Folder of the repository's files in the hub's cache, downloaded where they are not there yet.

    What the cache holds is used, with a line to `notify`, when the hub does not answer within seconds.

    Raises:
        InputError: the repository or revision does not exist, may not be read, or cannot be reached and is not cached.
        MissingDependencyError: huggingface_hub is not installed.
    """
    try:
        import huggingface_hub
        from huggingface_hub import constants
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError as error:
        raise MissingDependencyError(
            f"{hub_id} is on the Hugging Face hub and the package huggingface_hub is not installed; "
            "run: pip install 'vtexport[export]'"
        ) from error

    at = f"{hub_id}@{revision}" if revision else hub_id
    offline = bool(constants.HF_HUB_OFFLINE)
    no_answer = None if offline else _why_no_answer(hub_id, revision, at)
    only_cached = offline or no_answer is not None
    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                hub_id,
                revision=revision,
                allow_patterns=[*_SUPPORT_FILES, *(_WEIGHT_FILES if with_weights else ())],
                ignore_patterns=[_SUBFOLDERS],
                local_files_only=only_cached,
            )
        )
    except LocalEntryNotFoundError as error:
        if no_answer is not None:
            raise InputError(no_answer) from error
        raise InputError(_not_cached(at, offline)) from error
    except Exception as error:
        # Proxies, TLS, full disks, interrupted transfers: the transport's own errors have no common base class that
        # stays the same over huggingface_hub's versions.
        raise InputError(
            f"{at} cannot be fetched ({quoted(error, at)}); "
            "check connection, proxy and disk, then run the command again: what has arrived is kept"
        ) from error
    if only_cached and with_weights and not has_weight_files(folder):
        raise InputError(no_answer or _not_cached(at, offline))
    if no_answer is not None:
        notify(f"the hub gave no access to {at}, so the copy in the cache is used: {folder}")
    return folder


def _not_cached(at: str, offline: bool) -> str:
    why, remedy = (
        ("HF_HUB_OFFLINE is set", "unset it") if offline else ("the connection broke off", "run the command again")
    )
    return f"{at} is not (or not completely) in the Hugging Face cache and {why}; {remedy}, {_WITHOUT_THE_HUB}"


def commit_of(snapshot: Path) -> str | None:
    """The commit that a snapshot folder of the hub's cache holds."""
    return snapshot.name if _COMMIT.fullmatch(snapshot.name) else None


def _why_no_answer(hub_id: str, revision: str | None, at: str) -> str | None:
    """None if the hub knows the repository and lets us read it, else the sentence for the user.

    snapshot_download() asks the same, but without a time limit: behind a firewall that drops packets it would hang.
    """
    import huggingface_hub
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        huggingface_hub.HfApi().model_info(hub_id, revision=revision, timeout=_ANSWER_SECONDS)
    except GatedRepoError:
        return (
            f"{hub_id} is gated; accept its conditions on https://huggingface.co/{hub_id}, "
            "then log in with `hf auth login` or set HF_TOKEN"
        )
    except RevisionNotFoundError as error:
        raise InputError(
            f"{hub_id} has no revision {revision!r}; name a branch, tag or commit of it after the @"
        ) from error
    except RepositoryNotFoundError:
        return (
            f"{hub_id} is neither a folder here nor a repository on the hub that you may read; check the spelling, "
            "and for a private one log in with `hf auth login` or set HF_TOKEN"
        )
    except HFValidationError as error:
        raise InputError(f"{at} is not a valid hub id ({quoted(error, at)}); write it as owner/name") from error
    except HfHubHTTPError as error:
        return f"{at} cannot be fetched, the hub answered: {quoted(error, at)}; try again later"
    except Exception as error:  # the HTTP library's connection errors; which library it is changes between versions
        return (
            f"{at} is neither here nor (completely) in the hub's cache, and the hub cannot be reached "
            f"({quoted(error, at, limit=85)}); check the connection, {_WITHOUT_THE_HUB}"
        )
    return None
