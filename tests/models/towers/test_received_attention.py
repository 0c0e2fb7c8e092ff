"""The stand-in for attention from CLS: mean attention that patches receive, against transformers' attention maps."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from vtexport.assemble.link import weights_in_place
from vtexport.checkpoint.resolve import open_checkpoint
from vtexport.graphs.dialects import DIALECTS
from vtexport.graphs.files import save
from vtexport.models.registry import family_of
from vtexport.pruning.eager.encode import signals_of

LLAVA = family_of("llava", "")


def expected(model: Any, pixels: torch.Tensor) -> np.ndarray:
    """[B, T]: attention maps of the feature layer's block, CLS left out, mean over queries, sum over heads."""
    tower = model.model.vision_tower
    implementation = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    try:
        maps = tower(pixels, output_attentions=True, return_dict=True).attentions
    finally:
        tower.set_attn_implementation(implementation)
    layer = model.config.vision_feature_layer % (len(maps) + 1)
    return maps[layer - 1][:, :, 1:, 1:].mean(2).sum(1).numpy()


@torch.no_grad()
def test_graph_and_eager_form_equal_the_attention_maps(tiny_model: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, 112, 112)).astype(np.float32))
    wanted = expected(tiny_model, pixels)
    eager = signals_of(tiny_model.model, pixels, ("received_attention",))
    np.testing.assert_allclose(eager["scores"].numpy(), wanted, rtol=1e-4)

    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    checkpoint = open_checkpoint(str(folder))
    weights = weights_in_place(checkpoint.tensors, folder, lambda count: None).tensors
    spec = LLAVA.model_spec(tiny_model.config, folder).vision
    graph = spec.graph(("received_attention",), weights, folder, "float32", DIALECTS["classic"])
    save(graph, folder / "vision.onnx")
    session = onnxruntime.InferenceSession(folder / "vision.onnx", providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_outputs()] == ["features", "scores"]
    features, scores = session.run(None, {"pixel_values": pixels.numpy()})
    np.testing.assert_allclose(scores, wanted, rtol=1e-4)
    np.testing.assert_allclose(features, eager["features"].numpy(), rtol=1e-3, atol=1e-4)
