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


@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (5, 3), (4, 4), (1, 7)])
def test_mrope_is_transformers(rows: int, columns: int) -> None:
    before, after, count = 4, 6, rows * columns
    config = SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2, tokens_per_second=2))
    model = SimpleNamespace(
        config=config, get_vision_position_ids=functools.partial(Qwen2_5_VLModel.get_vision_position_ids, None)
    )
    kinds = torch.tensor([[0] * before + [1] * count + [0] * after])
    grid = torch.tensor([[1, 2 * rows, 2 * columns]])
    wanted, _ = Qwen2_5_VLModel.get_rope_index(model, torch.zeros_like(kinds), kinds, image_grid_thw=grid)  # type: ignore[arg-type]
    visual = np.stack([each.ravel() for each in np.indices((1, rows, columns))])
    span = image_span(MROPE, *layout(rows, columns), kept=None)
    np.testing.assert_array_equal(prompt_positions(before, visual, span, after), wanted[:, 0].numpy())


def test_sequential_positions() -> None:
    vision, arrangement = layout(3, 5)
    assert image_span(SEQUENTIAL, vision, arrangement, kept=None) == 15
    assert image_span(SEQUENTIAL, vision, arrangement, kept=4) == 4
    kept = np.array([[2, 7, 14]])
    np.testing.assert_array_equal(prompt_positions(2, kept, 15, 3), [[0, 1, 4, 9, 16, 17, 18, 19]])
    np.testing.assert_array_equal(prompt_positions(0, kept, 15, 0), kept)


def test_separators_take_positions() -> None:
    vision, arrangement = layout(3, 5, Separator(after="image", token_ids=[9, 9]))
    assert image_span(SEQUENTIAL, vision, arrangement, kept=None) == 17
