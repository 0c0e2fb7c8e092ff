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
from vtexport.graphs.weight import Weight
from vtexport.models.spec import VisionSpec
from vtexport.pruning.signals import SIGNALS


class ClipFeatures(torch.nn.Module):
    """A CLIP tower cut at LLaVA's feature layer.

    `forward(pixel_values [B, 3, H, W])` returns `features` [B, 1 + T, D], the output of block L with the CLS token as
    row 0, and the signals asked for (`vtexport.pruning.signals`), in their order there: `scores` [B, T], the attention
    of the CLS token in block L to every patch, summed over heads, or the mean attention that every patch receives from
    all patches there, summed likewise; `keys` [B, T, heads, D / heads], the patches' key
    projections in block L; `similarity_features` [B, T, D], the mean of the outputs of the tower's last third of
    blocks, for which the blocks after L run too. All are float32, whatever the tower is.

    The residual stream, LayerNorm and the MLP's activation are float32 too. A tower in float16 or bfloat16 keeps that
    type for the operands of its matrix products only: vision transformers grow single channels of the stream beyond
    65504, and bfloat16 would round the small ones away next to them.
    """

    def __init__(self, tower: CLIPVisionModel, spec: VisionSpec, signals: tuple[str, ...]):
        super().__init__()
        self.tower = tower
        self.spec = spec
        self.signals = signals
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
        outputs: list[torch.Tensor] = []
        late: list[torch.Tensor] = []
        with_late = "similarity_features" in self.signals
        last = self.spec.num_hidden_layers if with_late else self.spec.feature_layer
        for number, block in enumerate(self.tower.encoder.layers[:last], 1):
            normed = self._norm(block.layer_norm1, stream).to(self.dtype)
            attended, _ = block.self_attn(normed)
            if number == self.spec.feature_layer:
                outputs = self._attention_signals(block.self_attn, normed)
            stream = stream + attended
            stream = stream + block.mlp(self._norm(block.layer_norm2, stream).to(self.dtype))
            if number == self.spec.feature_layer:
                outputs.insert(0, stream)
            if with_late and number >= self.spec.similarity_layer:
                late.append(stream)
        if with_late:
            outputs.append(sum(late[1:], late[0])[:, self.spec.cls_rows :] * (1 / len(late)))
        return tuple(outputs)

    @staticmethod
    def _norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
        """LayerNorm in float32, result included."""
        weight, bias = norm.weight.float(), norm.bias.float()
        return torch.nn.functional.layer_norm(x.float(), norm.normalized_shape, weight, bias, norm.eps)

    def _attention_signals(self, attention: Any, x: torch.Tensor) -> list[torch.Tensor]:
        """`scores` and `keys`, as far as asked for, from a block's normalised input x [B, 1 + T, D]."""
        if not {"cls_attention", "received_attention", "keys"} & set(self.signals):
            return []
        batch, rows, width = x.shape
        heads, patches = attention.num_heads, self.spec.cls_rows
        key = attention.k_proj(x).view(batch, rows, heads, width // heads).float()
        found = []
        if "cls_attention" in self.signals:
            query = attention.q_proj(x[:, :1]).view(batch, 1, heads, width // heads).float().transpose(1, 2)
            logits = query @ key.transpose(1, 2).transpose(-1, -2) * attention.scale
            found.append(torch.softmax(logits, dim=-1)[:, :, 0, 1:].sum(1))
        if "received_attention" in self.signals:
            query = attention.q_proj(x[:, patches:]).view(batch, -1, heads, width // heads).float().transpose(1, 2)
            logits = query @ key.transpose(1, 2).transpose(-1, -2) * attention.scale
            found.append(torch.softmax(logits, dim=-1)[..., patches:].mean(2).sum(1))
        if "keys" in self.signals:
            found.append(key[:, patches:])
        return found


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


class TracedTower:
    """The tower with one set of signals, traced once, from which the graph of each dialect is made.

    The arguments are the model's vision configuration and its spec, the signals that the tower gives, the stored
    weights by canonical name, the folder that graph files name them from, and the weights' type.
    """

    def __init__(
        self,
        vision_config: Any,
        spec: VisionSpec,
        signals: tuple[str, ...],
        weights: Mapping[str, Weight],
        folder: Path,
        dtype: str,
    ):
        self._spec, self._weights, self._folder, self._dtype = spec, weights, folder, dtype
        with torch.device("meta"):
            vision_config._attn_implementation = "sdpa"
            tower = CLIPVisionModel(vision_config).to(getattr(torch, dtype)).eval()
            pixels = torch.zeros(1, 3, spec.image_size, spec.image_size)
        module = ClipFeatures(tower, spec, signals).eval()
        self._outputs = ["features", *(SIGNALS[name].input for name in signals)]
        with _quiet(), torch.no_grad():
            self._program = torch.export.export(module, (pixels,), strict=False)
        _decompose_once(self._program)

    def graph(self, opset: int) -> ir.Model:
        """The graph, batch 1; from opset 23 on its attention is one operator a block, before it is decomposed.

        Input `pixel_values` [1, 3, H, W]; outputs `features` [1, cls + T, D] and the signals as `ClipFeatures`
        describes them; all float32, whatever type the weights have.
        """
        with _quiet(), torch.no_grad():
            exported = torch.onnx.export(
                self._program,
                (),
                dynamo=True,
                opset_version=opset,
                input_names=["pixel_values"],
                output_names=self._outputs,
                optimize=False,  # it folds, and meta tensors have nothing to fold
                verbose=False,
            )
        assert exported is not None
        model = exported.model
        stored = _set_aside(model, self._weights, self._spec)
        with _quiet():
            onnxscript.optimizer.optimize_ir(model)
            onnxscript.rewriter.onnx_fusions.fuse(model)
        for value, weight in stored:
            assert value.name is not None
            value.const_value = external_tensor(weight, value.name, self._folder)
            model.graph.inputs.remove(value)
            model.graph.register_initializer(value)
        if self._dtype != "float32":
            softmax_in_float32(model)
        _tidy(model)
        return model


def _decompose_once(program: torch.export.ExportedProgram) -> None:
    """Lets the exporter's decomposition, which traces the whole program anew, run once for opsets that decompose alike.

    The exporter calls `run_decompositions` with a table of the operators that it has no function for at its opset. A
    program that was decomposed with fewer of them serves where none of the others is left in it.
    """
    decompose = program.run_decompositions
    done: list[tuple[set[Any], torch.export.ExportedProgram]] = []

    def run_decompositions(table: dict[Any, Any]) -> torch.export.ExportedProgram:
        wanted = set(table)
        for operators, decomposed in done:
            if operators <= wanted and not (wanted - operators) & _operators(decomposed):
                return decomposed
        done.append((wanted, decompose(table)))
        return done[-1][1]

    program.run_decompositions = run_decompositions


def _operators(program: torch.export.ExportedProgram) -> set[Any]:
    modules = [module for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)]
    return {node.target for module in modules for node in module.graph.nodes if node.op == "call_function"}


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
