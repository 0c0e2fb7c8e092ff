"""The vision tower as an ONNX graph: pixel_values -> features and the signals that pruning methods ask for.

The tower goes through `torch.onnx.export(dynamo=True)` on the meta device, so no weight is in memory; afterwards every
initializer is bound to its bytes in the bundle's weight files. All blocks keep fused attention: the one CLS row that a
method needs is recomputed from the input of its block, which costs one key projection instead of eager attention maps
in every block.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript.optimizer
import onnxscript.rewriter.onnx_fusions
import torch
from transformers import CLIPVisionModel

from vtexport.errors import VtexportError
from vtexport.export.graph import IR_VERSION, external_tensor
from vtexport.export.half import softmax_in_float32, wide_scale
from vtexport.export.weights import Weight
from vtexport.models.spec import VisionSpec

_TORCH_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CLS_ATTENTION = "cls_attention"


class ClipFeatures(torch.nn.Module):
    """A CLIP tower cut at LLaVA's feature layer.

    `forward(pixel_values [B, 3, H, W])` returns `features` [B, 1 + T, D], the output of block L with the CLS token as
    row 0, and where asked for `scores` [B, T] float32: the attention of the CLS token in that block to every patch,
    summed over heads (what PruneSID, ViTCoP and VisionZip rank by). All three are float32, whatever the tower is.

    The residual stream, LayerNorm and the MLP's activation are float32 too. A tower in float16 or bfloat16 keeps that
    type for the operands of its matrix products only: vision transformers grow single channels of the stream beyond
    65504, and bfloat16 would round the small ones away beside them.
    """

    def __init__(self, tower: CLIPVisionModel, feature_layer: int, signals: tuple[str, ...]):
        super().__init__()
        self.tower = tower
        self.feature_layer = feature_layer
        self.with_scores = CLS_ATTENTION in signals
        self.dtype = tower.embeddings.patch_embedding.weight.dtype
        if self.dtype != torch.float32:
            for block in tower.encoder.layers:
                for linear in (block.self_attn.out_proj, block.mlp.fc1, block.mlp.fc2):
                    linear.forward = functools.partial(_wide_linear, linear)
        if self.dtype == torch.bfloat16:
            patches = tower.embeddings.patch_embedding
            patches.forward = functools.partial(_wide_convolution, patches)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        stream = self._norm(self.tower.pre_layrnorm, self.tower.embeddings(pixel_values.to(self.dtype)))
        before = stream
        for block in self.tower.encoder.layers[: self.feature_layer]:
            before = stream
            attended, _ = block.self_attn(self._norm(block.layer_norm1, stream).to(self.dtype))
            stream = stream + attended
            stream = stream + block.mlp(self._norm(block.layer_norm2, stream).to(self.dtype))
        if not self.with_scores:
            return (stream,)
        return stream, self._cls_attention(block, before)

    @staticmethod
    def _norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
        """LayerNorm in float32, result included."""
        weight, bias = norm.weight.float(), norm.bias.float()
        return torch.nn.functional.layer_norm(x.float(), norm.normalized_shape, weight, bias, norm.eps)

    def _cls_attention(self, block: Any, hidden: torch.Tensor) -> torch.Tensor:
        attention = block.self_attn
        x = self._norm(block.layer_norm1, hidden).to(self.dtype)
        batch, rows, width = x.shape
        heads = attention.num_heads
        query = attention.q_proj(x[:, :1]).view(batch, 1, heads, width // heads).transpose(1, 2)
        key = attention.k_proj(x).view(batch, rows, heads, width // heads).transpose(1, 2)
        logits = query.float() @ key.float().transpose(-1, -2) * attention.scale
        return torch.softmax(logits, dim=-1)[:, :, 0, 1:].sum(1)


def _wide_linear(linear: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """x @ weight.T + bias in float32; a float16 product does not overflow below 65504 / WIDE_SCALE."""
    dtype = linear.weight.dtype
    scale = wide_scale(str(dtype).removeprefix("torch."))
    if scale == 1:
        return torch.nn.functional.linear(x.to(dtype), linear.weight).float() + linear.bias.float()
    product = torch.nn.functional.linear((x * scale).to(dtype), linear.weight)
    return product.float() * (1 / scale) + linear.bias.float()


def _wide_convolution(convolution: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """The patch embedding of bfloat16 operands, computed in float32: Conv takes bfloat16 only since opset 22."""
    bias = None if convolution.bias is None else convolution.bias.float()
    return torch.nn.functional.conv2d(x.float(), convolution.weight.float(), bias, convolution.stride)


def vision_graph(
    vision_config: Any,
    spec: VisionSpec,
    signals: tuple[str, ...],
    weights: Mapping[str, Weight],
    folder: Path,
    dtype: str,
    opset: int,
) -> ir.Model:
    """The tower's graph, batch 1; from opset 23 on its attention is one operator a block, before it is decomposed.

    Input `pixel_values` [1, 3, H, W]; outputs `features` [1, cls + T, D] and, with the signal "cls_attention",
    `scores` [1, T]; all float32, whatever `dtype` says of the weights.
    """
    with torch.device("meta"):
        vision_config._attn_implementation = "sdpa"
        tower = CLIPVisionModel(vision_config).to(_TORCH_DTYPES[dtype]).eval()
        pixels = torch.zeros(1, 3, spec.image_size, spec.image_size)
    module = ClipFeatures(tower, spec.feature_layer, signals).eval()
    outputs = ["features", "scores"] if module.with_scores else ["features"]
    with _quiet(), torch.no_grad():
        program = torch.export.export(module, (pixels,), strict=False)
        exported = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=opset,
            input_names=["pixel_values"],
            output_names=outputs,
            optimize=False,  # it folds, and meta tensors have nothing to fold
            verbose=False,
        )
    assert exported is not None
    model = exported.model
    stored = _set_aside(model, weights, spec)
    with _quiet():
        onnxscript.optimizer.optimize_ir(model)
        onnxscript.rewriter.onnx_fusions.fuse(model)
    for value, weight in stored:
        assert value.name is not None
        value.const_value = external_tensor(weight, value.name, folder)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    if dtype != "float32":
        softmax_in_float32(model)
    _tidy(model)
    return model


def _set_aside(model: ir.Model, weights: Mapping[str, Weight], spec: VisionSpec) -> list[tuple[ir.Value, Weight]]:
    """Makes the tower's parameters inputs for now, and returns them with the stored weights they stand for.

    To the optimiser inputs are unknown: it cannot fold a weight into the graph file, transposed, and does not read any.
    """
    stored = []
    for name, value in list(model.graph.initializers.items()):
        canonical = "vision_tower." + name.removeprefix("tower.")
        if canonical in weights:
            model.graph.initializers.pop(name)
            value.const_value = None
            model.graph.inputs.append(value)
            stored.append((value, weights[canonical]))
        elif name.endswith("embeddings.position_ids"):
            # a buffer that checkpoints do not hold: the row numbers of the position embedding
            rows = np.arange(spec.cls_rows + spec.tokens, dtype=np.int64)[None]
            value.const_value = ir.tensor(rows, name=name)
        elif name.startswith("tower."):
            raise VtexportError(
                f"the vision tower's tensor {name} has no counterpart in the checkpoint; please report this"
            )
    return stored


def _tidy(model: ir.Model) -> None:
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version, model.doc_string = "vtexport", None, None
    model.graph.name = "vision"
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():  # stack traces hold paths of the machine that exported
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports its own stages on stdout and by warnings; stdout is for results."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
