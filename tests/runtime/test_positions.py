"""Position ids of prompts, against transformers' where a visual token has a row and a column."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from vtexport.bundle.manifest import PositionIds
from vtexport.bundle.views import Arrangement, FixedSize, Separator, View, Vision
from vtexport.runtime.positions import image_span, prompt_positions

SEQUENTIAL, MROPE = PositionIds(kind="sequential", axes=1), PositionIds(kind="mrope", axes=3)


def layout(rows: int, columns: int, *separators: Separator) -> tuple[Vision, Arrangement]:
    view = View(height=28 * rows, width=28 * columns, grid_height=2 * rows, grid_width=2 * columns,
                rows=rows, columns=columns)  # fmt: skip
    arrangement = Arrangement(name="one", views=[view])
    vision = Vision(
        hidden_size=8, patch_size=14, merge_size=2, cls_rows=0, arrangements=[arrangement], resize=FixedSize(),
        separators=list(separators),
    )  # fmt: skip
    return vision, arrangement


@pytest.mark.parametrize(
    "sizes", [[(3, 5)], [(5, 3)], [(4, 4)], [(1, 7)], [(2, 3), (4, 2)], [(3, 3), (1, 6), (5, 2)], []]
)
def test_mrope_is_transformers(sizes: list[tuple[int, int]]) -> None:
    texts = [*[4, 6, 1][: len(sizes)], 5]  # transformers tells images apart by the text between them
    config = SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2, tokens_per_second=2))
    model = SimpleNamespace(
        config=config, get_vision_position_ids=functools.partial(Qwen2_5_VLModel.get_vision_position_ids, None)
    )
    counts = [rows * columns for rows, columns in sizes]
    kinds: list[int] = []
    for text, count in zip(texts, [*counts, 0], strict=True):
        kinds += [0] * text + [1] * count
    grid = torch.tensor([[1, 2 * rows, 2 * columns] for rows, columns in sizes]).reshape(-1, 3)
    ids = torch.tensor([kinds])
    wanted, _ = Qwen2_5_VLModel.get_rope_index(model, torch.zeros_like(ids), ids, image_grid_thw=grid)  # type: ignore[arg-type]
    visuals = [np.stack([each.ravel() for each in np.indices((1, *size))]) for size in sizes]
    spans = [image_span(MROPE, *layout(*size), kept=None) for size in sizes]
    np.testing.assert_array_equal(prompt_positions(texts, visuals, spans, 3), wanted[:, 0].numpy())


def test_sequential_positions() -> None:
    vision, arrangement = layout(3, 5)
    assert image_span(SEQUENTIAL, vision, arrangement, kept=None) == 15
    assert image_span(SEQUENTIAL, vision, arrangement, kept=4) == 4
    kept = np.array([[2, 7, 14]])
    found = prompt_positions([2, 3], [kept], [15], 1)
    np.testing.assert_array_equal(found, [[0, 1, 4, 9, 16, 17, 18, 19]])
    np.testing.assert_array_equal(prompt_positions([0, 0], [kept], [15], 1), kept)


def test_several_images_and_none() -> None:
    """The second image's gaps begin where the first image's span and the text between end."""
    kept, few = np.array([[2, 7, 14]]), np.array([[0, 1]])
    found = prompt_positions([2, 1, 3], [kept, few], [15, 2], 1)
    np.testing.assert_array_equal(found, [[0, 1, 4, 9, 16, 17, 18, 19, 20, 21, 22]])
    found = prompt_positions([1, 0, 1], [kept, kept], [15, 15], 1)
    np.testing.assert_array_equal(found, [[0, 3, 8, 15, 18, 23, 30, 31]])
    np.testing.assert_array_equal(prompt_positions([4], [], [], 3), [list(range(4))] * 3)


def test_separators_take_positions() -> None:
    vision, arrangement = layout(3, 5, Separator(after="image", token_ids=[9, 9]))
    assert image_span(SEQUENTIAL, vision, arrangement, kept=None) == 17
