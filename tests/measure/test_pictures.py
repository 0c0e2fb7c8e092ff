"""Pictures that a measurement takes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from vtexport.errors import InputError
from vtexport.measure.pictures import pictures, synthetic


def test_the_same_seed_gives_the_same_picture() -> None:
    one, same, other = (np.asarray(synthetic(seed)) for seed in (3, 3, 4))
    assert one.shape == (480, 640, 3)
    assert (one == same).all()
    assert (one != other).mean() > 0.5


def test_without_images_there_are_synthetic_ones() -> None:
    found = pictures([], seed=5)
    assert found.synthetic
    assert len(found.images) == len(found.names) == 8
    assert found.names[0] == "synthetic 640 x 480, seed 5"


def test_a_folder_gives_its_images_and_a_broken_one_is_named(tmp_path: Path, photo: Path) -> None:
    shutil.copy(photo, tmp_path / f"b{photo.suffix}")
    shutil.copy(photo, tmp_path / f"a{photo.suffix}")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.jpg").mkdir()
    found = pictures([tmp_path, photo], seed=0)
    assert [Path(name).name for name in found.names] == [f"a{photo.suffix}", f"b{photo.suffix}", photo.name]
    assert [Path(failure.image).name for failure in found.failures] == ["broken.png"]
    assert not found.synthetic


def test_no_image_at_all_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no image"):
        pictures([tmp_path], seed=0)
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(InputError, match=r"none of 2 images can be read .*give others"):
        pictures([tmp_path], seed=0)
    with pytest.raises(InputError, match=r"a\.png"):
        pictures([tmp_path / "a.png"], seed=0)
    with pytest.raises(InputError, match="nowhere"):
        pictures([tmp_path / "nowhere.png"], seed=0)
