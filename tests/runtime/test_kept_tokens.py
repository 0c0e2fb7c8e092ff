"""The picture shows exactly the kept patches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vtexport.backends.onnxruntime.host import HostBuffer
from vtexport.errors import InputError, UsageError
from vtexport.runtime.images import Crop
from vtexport.runtime.kept_tokens import draw_kept_tokens, save_picture
from vtexport.runtime.pipeline import VisualTokens


def tokens(kept: list[int], crop: Crop, size: tuple[int, int]) -> VisualTokens:
    return VisualTokens(
        block=HostBuffer(np.zeros((1, len(kept), 1))), keep_indices=np.array(kept), positions=np.arange(len(kept)),
        position_span=len(kept), grid=(4, 4), image_size=size, crop=crop, plan="x", timings_ms={},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("size", "crop"),
    [((1200, 800), Crop(200, 0, 800, 800)), ((800, 1600), Crop(0, 400, 800, 800)), ((90, 60), Crop(15, 0, 60, 60))],
)
def test_brightness_of_every_patch(size: tuple[int, int], crop: Crop) -> None:
    kept = [0, 5, 15]
    image = Image.new("RGB", size, (200, 200, 200))
    picture = np.asarray(draw_kept_tokens(image, tokens([-1, *kept], crop, size)))
    scale = picture.shape[1] / size[0]
    for index in range(16):
        row, column = divmod(index, 4)
        x = (crop.left + crop.width * (column + 0.5) / 4) * scale
        y = (crop.top + crop.height * (row + 0.5) / 4) * scale
        bright = picture[int(y), int(x), 0]
        assert bright == (200 if index in kept else 84), index
    corner = picture[-1, -1, 0]
    assert corner == (30 if size[0] != size[1] else 200)


@pytest.mark.parametrize(
    ("size", "crop"),
    [
        ((1200, 800), Crop(0, -200, 1200, 1200)),
        ((800, 1200), Crop(-200, 0, 1200, 1200)),
        ((90, 60), Crop(-0.0, -15.0000001, 90.0000001, 90.0000001)),
        ((100, 100), Crop(-50, -50, 200, 200)),
        ((1, 900), Crop(-449, 0, 900, 900)),
    ],
)
def test_a_border_that_the_model_sees_is_drawn(size: tuple[int, int], crop: Crop) -> None:
    """Every patch is in the picture, and its middle has the colour of what the model sees there."""
    kept = [0, 3, 5, 6, 15]
    image = Image.new("RGB", size, (200, 200, 200))
    picture = np.asarray(draw_kept_tokens(image, tokens(kept, crop, size), (100, 50, 0)))
    side = round(crop.width)
    assert picture.shape[:2] == (picture.shape[0],) * 2
    assert picture.shape[0] >= 640
    scale = picture.shape[0] / side
    for index in range(16):
        row, column = divmod(index, 4)
        x, y = side * (column + 0.4) / 4, side * (row + 0.4) / 4
        inside = 0 <= x + crop.left < size[0] and 0 <= y + crop.top < size[1]
        colour = np.array((200, 200, 200) if inside else (100, 50, 0))
        np.testing.assert_allclose(
            picture[int(y * scale), int(x * scale)], colour * (1 if index in kept else 0.42), atol=1, err_msg=str(index)
        )


def test_a_picture_of_a_narrow_image_stays_small() -> None:
    size = (10, 30_000)
    picture = draw_kept_tokens(Image.new("RGB", size), tokens([0], Crop(0, 14_995, 10, 10), size))
    assert picture.width * picture.height < 2**25 * 1.01


def test_small_images_are_enlarged() -> None:
    image = Image.new("RGB", (90, 60))
    assert min(draw_kept_tokens(image, tokens([0], Crop(15, 0, 60, 60), image.size)).size) >= 600


def test_saving(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 4))
    save_picture(picture, tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").size == (4, 4)
    with pytest.raises(UsageError, match="no image ending"):
        save_picture(picture, tmp_path / "a.txt")
    with pytest.raises(InputError, match="cannot be written"):
        save_picture(picture, tmp_path / "no" / "folder" / "a.png")
