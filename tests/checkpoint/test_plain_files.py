"""Pipes, devices and links to nothing in a checkpoint's folder: refused before anything waits for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vtexport.checkpoint.plain_files import refuse_odd_files
from vtexport.checkpoint.resolve import locate
from vtexport.errors import InputError

READ = (
    "config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer_config.json",
    "chat_template.jinja", "tokenizer.model", "additional_chat_templates/default.jinja",
)  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_pipes_devices_and_links_to_nothing(saved_folder: Path, name: str) -> None:
    refuse_odd_files(saved_folder)
    path = saved_folder / name
    path.parent.mkdir(exist_ok=True)
    for make, message in (
        (lambda: os.mkfifo(path), "is a pipe or a device"),
        (lambda: path.symlink_to("/dev/zero"), "is a pipe or a device"),
        (lambda: path.symlink_to("gone"), "links to a file that is not there"),
        (lambda: path.symlink_to(path.name), "links to a file that is not there"),
    ):
        path.unlink(missing_ok=True)
        make()
        with pytest.raises(InputError, match=f"{path.name} {message}"):
            locate(str(saved_folder))


def test_links_to_files_and_folders_are_none_of_them(saved_folder: Path) -> None:
    (saved_folder / "config.json").rename(saved_folder / "blob")
    (saved_folder / "config.json").symlink_to("blob")
    (saved_folder / "runs.json").mkdir()
    (saved_folder / "README.md").symlink_to("gone")
    refuse_odd_files(saved_folder)
