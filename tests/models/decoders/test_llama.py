"""The directly written decoder against the PyTorch decoder: prefill, decode, chunks, segments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnxruntime import InferenceSession

from vtexport.bundle.reader import open_bundle
from vtexport.graphs.dialects import DIALECTS
from vtexport.graphs.weight import Weight
from vtexport.models.parts import Decoder
from vtexport.models.registry import family_of

LLAVA = family_of("llava", "")

LENGTH = 20


@pytest.fixture(scope="module")
def spec(tiny_model: Any, tiny_checkpoint: Path) -> Decoder:
    return LLAVA.model_spec(tiny_model.config, tiny_checkpoint).decoder


@pytest.fixture(scope="module", params=DIALECTS)
def segments(
    request: pytest.FixtureRequest, tiny_checkpoint: Path, spec: Decoder, tmp_path_factory: pytest.TempPathFactory
) -> dict[Any, Any]:
    """Sessions of the whole decoder and of a cut after layer 0, on the same weights, in each dialect."""
    dialect = DIALECTS[request.param]
    from vtexport.assemble.weights import copy_weights
    from vtexport.checkpoint.resolve import open_checkpoint

    folder = tmp_path_factory.mktemp("decoder")
    (folder / "weights").mkdir()
    weights: dict[str, Weight] = copy_weights(
        open_checkpoint(str(tiny_checkpoint)).tensors, folder / "weights", "float32"
    ).tensors
    sessions = {}
    for first, layers in ((0, 3), (0, 1), (1, 2)):
        path = folder / f"{first}-{layers}.onnx"
        ir.save(spec.segment(weights, folder, "float32", first, layers, dialect), path)
        onnx.checker.check_model(str(path), full_check=True)
        sessions[first, layers] = InferenceSession(str(path))
    return sessions


def run(session: Any, feeds: dict[str, np.ndarray], past: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs by name; `past` is extended by the new keys and values."""
    wanted = {value.name for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    given = {name: value for name, value in {**feeds, **past}.items() if name in wanted}
    outputs = dict(zip(names, session.run(names, given), strict=True))
    for name in [name for name in outputs if name.startswith("new_")]:
        key = "past_" + name.removeprefix("new_")
        past[key] = np.concatenate([past[key], outputs.pop(name)], axis=1)
    return outputs


def empty_past(spec: Decoder) -> dict[str, np.ndarray]:
    shape = (1, 0, spec.num_key_value_heads, spec.head_dim)
    return {f"past_key_values.{i}.{kind}": np.zeros(shape, np.float32) for i in range(3) for kind in ("key", "value")}


@pytest.fixture(scope="module")
def embeds(spec: Decoder) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, LENGTH, spec.hidden_size)).astype(np.float32)


def expected(model: Any, embeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        out = model(inputs_embeds=torch.from_numpy(embeds), position_ids=torch.from_numpy(positions)[None])
    return out.logits[0].numpy()


@pytest.mark.parametrize("chunks", [[20], [1] * 20, [7, 13], [19, 1], [5, 1, 1, 8, 5]], ids=str)
@pytest.mark.parametrize("cut", [False, True], ids=["one segment", "two segments"])
def test_any_way_of_feeding_gives_the_same_logits(
    segments: Any, spec: Decoder, tiny_model: Any, embeds: np.ndarray, chunks: list[int], cut: bool
) -> None:
    logits = expected(tiny_model, embeds, np.arange(LENGTH))
    past, start = empty_past(spec), 0
    for size in chunks:
        end = start + size
        feeds = {"inputs_embeds": embeds[:, start:end], "position_ids": np.arange(start, end)[None]}
        if cut:
            hidden = run(segments[0, 1], feeds, past)["hidden_states_out"]
            outputs = run(segments[1, 2], {"hidden_states": hidden, "position_ids": feeds["position_ids"]}, past)
        else:
            outputs = run(segments[0, 3], feeds, past)
        assert outputs["logits"].shape == (1, 1, spec.vocab_size)
        np.testing.assert_allclose(outputs["logits"][0, 0], logits[end - 1], atol=2e-5 * np.abs(logits).max())
        start = end


def test_positions_with_gaps(segments: Any, spec: Decoder, tiny_model: Any, embeds: np.ndarray) -> None:
    """Kept tokens may carry their original positions; what they may see goes by order, not by position."""
    positions = np.cumsum(np.random.default_rng(1).integers(1, 8, LENGTH))
    logits = expected(tiny_model, embeds, positions)
    outputs = run(segments[0, 3], {"inputs_embeds": embeds, "position_ids": positions[None]}, empty_past(spec))
    np.testing.assert_allclose(outputs["logits"][0, 0], logits[-1], atol=2e-5 * np.abs(logits).max())


@pytest.mark.parametrize("dialect", DIALECTS)
def test_no_weight_is_in_the_graph_file(tiny_bundle: Path, dialect: str) -> None:
    """Matrices stay in the checkpoint's layout in one file: no copy, and no Transpose of a weight."""
    bundle = open_bundle(tiny_bundle)
    model = onnx.load(bundle.path(bundle.manifest.graphs[f"decoder_0.{dialect}"].file), load_external_data=False)
    external = [i for i in model.graph.initializer if i.data_location == onnx.TensorProto.EXTERNAL]
    inline = {i.name for i in model.graph.initializer} - {i.name for i in external}
    assert len(external) == 3 * 9 + 2
    assert {name for name in inline if not name.startswith("constant_")} == {"inv_freq", "zero", "one"}
    weights = {i.name for i in external}
    assert not [node for node in model.graph.node if node.op_type == "Transpose" and node.input[0] in weights]
    kinds = {node.op_type for node in model.graph.node}
    newer = {"Attention", "RMSNormalization", "RotaryEmbedding"}
    assert newer & kinds == (newer if dialect == "modern" else set())
    locations = {entry.value for i in external for entry in i.external_data if entry.key == "location"}
    assert locations == {"weights/model.safetensors"}
