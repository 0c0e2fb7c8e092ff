"""Layouts of images as data: those of other families' processors can be stated, with transformers' numbers."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from PIL import Image
from transformers import LlavaNextImageProcessor, LlavaNextProcessor, Qwen2VLImageProcessor

from vtexport.bundle.views import Arrangement, FixedSize, NativeSize, Separator, Tiles, View, Vision

CROP, PATCH = 336, 14
SIDE = CROP // PATCH


def vision(arrangements: list[Arrangement], resize: FixedSize | Tiles | NativeSize, *separators: Separator) -> Vision:
    return Vision(
        hidden_size=32, patch_size=PATCH, cls_rows=1, arrangements=arrangements, resize=resize,
        separators=list(separators),
    )  # fmt: skip


def square(tile: tuple[int, int] | None = None) -> View:
    return View(height=CROP, width=CROP, grid_height=SIDE, grid_width=SIDE, rows=SIDE, columns=SIDE, tile=tile)


def tiles(rows: int, columns: int) -> Arrangement:
    """The whole image first, then its tiles: LLaVA-NeXT's order."""
    places = [(row, column) for row in range(rows) for column in range(columns)]
    return Arrangement(name=f"{rows}x{columns}", views=[square(), *map(square, places)])


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (1, 2), (3, 1)])
def test_llava_next_counts(rows: int, columns: int) -> None:
    """An image that fills its tiles, so that nothing is unpadded."""
    pinpoints = [[CROP * row, CROP * column] for row, column in ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1))]
    processor = LlavaNextProcessor.__new__(LlavaNextProcessor)
    processor.image_processor = LlavaNextImageProcessor(image_grid_pinpoints=pinpoints)
    processor.patch_size, processor.num_additional_image_tokens = PATCH, 0
    wanted = processor._get_number_of_features(CROP * rows, CROP * columns, CROP, CROP)
    arrangement = tiles(rows, columns)
    layout = vision([arrangement], Tiles(choose="best_resolution", fit="pad", unpad=True), Separator(after="row"))
    assert arrangement.tokens + layout.separator_rows(arrangement) == wanted


def test_qwen_native_sizes() -> None:
    """Rows and columns of merged patches, from the processor's own grid."""
    processor = Qwen2VLImageProcessor(patch_size=14, merge_size=2, min_pixels=28 * 28, max_pixels=28 * 28 * 1280)
    image = Image.fromarray(np.zeros((300, 410, 3), np.uint8))
    grid = processor(images=[image], return_tensors="np")["image_grid_thw"][0]
    frames, height, width = (int(each) for each in grid)
    view = View(
        height=14 * height, width=14 * width, grid_height=height, grid_width=width, rows=height // 2,
        columns=width // 2, frames=frames,
    )  # fmt: skip
    layout = vision(
        [Arrangement(name=f"{view.height}x{view.width}", views=[view])],
        NativeSize(multiple=28, least_pixels=28 * 28, most_pixels=28 * 28 * 1280),
    )
    assert layout.largest.tokens == frames * height * width // 4
    assert view.height % 28 == view.width % 28 == 0


def test_separators() -> None:
    arrangement = tiles(2, 3)
    between = vision([arrangement], FixedSize(), Separator(after="view", token_ids=[7, 8]), Separator(after="image"))
    assert between.separator_rows(arrangement) == 2 * 7 + 1
    assert vision([arrangement], FixedSize()).separator_rows(arrangement) == 0


def test_the_largest_arrangement() -> None:
    layout = vision([tiles(1, 2), tiles(2, 2), tiles(1, 1)], Tiles(choose="nearest_ratio", fit="stretch"))
    assert layout.largest.name == "2x2"


@pytest.mark.parametrize(
    "rule",
    [
        FixedSize(),
        Tiles(choose="longest_edge", fit="stretch", longest_edge=1536),
        NativeSize(multiple=28, least_pixels=784, most_pixels=10**6),
    ],
)
def test_rules_are_told_apart(rule: FixedSize | Tiles | NativeSize) -> None:
    layout = vision([tiles(1, 1)], rule, Separator(after="row"))
    assert msgspec.json.decode(msgspec.json.encode(layout), type=Vision) == layout
