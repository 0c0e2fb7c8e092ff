"""docs/adding-a-family.md, followed to the letter in a copy of the repository."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from followed_page import ROOT, commands, copy_with_files, shell
from safetensors.torch import load_file, save_file
from tiny_llava import PHOTO

from vtexport.runtime.pipeline import Pipeline

PAGE = ROOT / "docs" / "adding-a-family.md"
PREFIXES = {
    "model.vision_tower.": "eyes.", "model.multi_modal_projector.": "bridge.", "model.language_model.": "text.",
    "lm_head.": "text_head.",
}  # fmt: skip


def labs_checkpoint(tiny_checkpoint: Path, folder: Path) -> Path:
    """The same model under the lab's names."""
    shutil.copytree(tiny_checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "lab_llava"}))
    stored = load_file(folder / "model.safetensors")
    renamed = {}
    for name, value in stored.items():
        canonical = name if name.startswith(("model.", "lm_head.")) else _in_modules(name)
        old, new = next(pair for pair in PREFIXES.items() if canonical.startswith(pair[0]))
        renamed[new + canonical.removeprefix(old)] = value
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    return folder


def _in_modules(name: str) -> str:
    """transformers' name within its modules of one in its files."""
    from vtexport.models.registry import family_of

    canonical = family_of("llava", "").canonical_name(name)
    return canonical if canonical.startswith("lm_head.") else f"model.{canonical}"


def test_a_family(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    copy = copy_with_files(PAGE, tmp_path / "vtexport")
    labs_checkpoint(tiny_checkpoint, copy / "lab")
    listed, built = (shell(copy, command) for command in commands(PAGE))
    assert set(listed.stdout.split()) == {"lab_llava", "llava", "vipllava"}, listed.stderr
    assert built.returncode == 0, built.stderr
    asked = PHOTO, "What is on the table?"
    answers = [
        Pipeline.open(folder, plan).generate(*asked, max_new_tokens=8)
        for folder, plan in ((copy / "lab-bundle", None), (tiny_bundle, "prunesid-16"))
    ]
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].keep_indices == answers[1].keep_indices
    ruff = Path(sys.executable).parent / "ruff"
    checked = subprocess.run(
        [ruff, "check", "--config", ROOT / "pyproject.toml", copy / "vtexport" / "models"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout
