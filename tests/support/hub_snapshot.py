"""A bundle as huggingface_hub keeps a downloaded repository: a snapshot of links into a folder of blobs."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

HUB_ID = "somebody/llava-64"
REVISION = "5b6e29d3a8f0c1d2e3f4a5b6c7d8e9f0a1b2c3d4"


def cache_bundle(bundle: Path, cache: Path, hub_id: str = HUB_ID, below: str = "") -> Path:
    """Puts the bundle into the repository `hub_id` of `cache`, `below` a folder of it; returns the bundle's folder."""
    root = cache / f"models--{hub_id.replace('/', '--')}"
    snapshot = root / "snapshots" / REVISION
    for folder in (root / "blobs", root / "refs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text(REVISION)
    for file in sorted(path for path in bundle.rglob("*") if path.is_file()):
        data = file.read_bytes()
        large = file.suffix in {".safetensors", ".onnx"}  # by SHA-256, others by git's own hash
        name = (hashlib.sha256(data) if large else hashlib.sha1(b"blob %d\0" % len(data) + data)).hexdigest()
        (root / "blobs" / name).write_bytes(data)
        link = snapshot / below / file.relative_to(bundle)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(root / "blobs" / name, link.parent))
    return snapshot / below


def everything(folder: Path) -> dict[str, tuple[int, int, int, str]]:
    """Mode, size, time of change and target of all that lies below `folder`."""
    return {
        str(path.relative_to(folder)): (
            (status := path.lstat()).st_mode,
            status.st_size,
            status.st_mtime_ns,
            os.readlink(path) if path.is_symlink() else "",  # noqa: PTH115 (as it stands there)
        )
        for path in sorted(folder.rglob("*"))
    }
