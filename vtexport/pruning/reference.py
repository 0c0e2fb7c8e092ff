"""A method's reference on arrays: the selection that every other form of its op has to reproduce."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vtexport.errors import InputError
from vtexport.pruning.op import Op
from vtexport.pruning.options import Options
from vtexport.pruning.registry import get_method, make_options
from vtexport.pruning.schedule import PlacedOp
from vtexport.pruning.signals import SIGNALS
from vtexport.pruning.types import Array, ModelShape, Selection, Sizes, as_grid


def select(
    method: str,
    features: Array,
    scores: Array | None = None,
    *,
    keep: int | None,
    grid: tuple[int, int] | None = None,
    keys: Array | None = None,
    similarity_features: Array | None = None,
    text_embeds: Array | None = None,
    image_embeds: Array | None = None,
    companions: Mapping[str, Array] | None = None,
    **parameters: Any,
) -> Selection:
    """Run a method's reference before the language model, which computes in float64.

    `vtexport list methods` says which of the signals a method reads; it refuses the others. All are floating point and
    of the features' kind, NumPy or PyTorch.

    Args:
        method: Name of the method.
        features: [B, c + T, D]; c = 1 and row 0 is CLS if the method takes CLS.
        scores: [B, T] CLS attention summed over heads, or what stands in for it; used as float32.
        keep: The budget N.
        grid: Rows and columns of patches; a square when left out.
        keys: [B, T, H, K] key projections of the patches by head.
        similarity_features: [B, T, D] mean outputs of the tower's last blocks.
        text_embeds: [B, M, W] embeddings of the question.
        image_embeds: [B, T, W] the patches in the space that they share with the text.
        companions: [B, c + T, *] tensors by name whose rows run beside those of the features, such as the feature maps
            that a decoder adds later (deepstack); gathered by the same indices. Behind a merged row stands that of the
            patch it is named after.
        parameters: The method's options.

    Raises:
        UsageError: Unknown method or option, a budget outside the method's range, or a method that has no op before the
            language model.
        InputError: Wrong shapes or types, missing or unneeded signals, NaN or infinite values.
    """
    from vtexport.pruning.arrays import checked_inputs

    chosen = get_method(method)
    options = make_options(chosen, parameters)
    given = {
        "scores": scores,
        "keys": keys,
        "similarity_features": similarity_features,
        "text_embeds": text_embeds,
        "image_embeds": image_embeds,
    }
    signals = {name: array for name, array in given.items() if array is not None}
    checked_inputs(features, signals)
    placed, grid = placed_op(method, options, int(features.shape[1]), grid, keep)
    op = placed.op
    _check_signals(method, op, signals)
    last: dict[str, int] = {}
    if "keys" in signals:
        last["heads"], last["head_dim"] = (int(size) for size in signals["keys"].shape[2:])
    if "text_embeds" in signals:
        last["embedding_width"] = int(signals["text_embeds"].shape[-1])
    sizes = Sizes(int(features.shape[0]), grid, int(features.shape[2]), placed.keep, **last)
    inputs = {"features": features, **signals}
    _check_shapes(op, inputs, sizes)
    selection = op.select(inputs, sizes)
    if not companions:
        return selection
    return dataclasses.replace(selection, companions=_gathered(op, selection, features, companions))


def placed_op(
    method: str, options: Options, rows: int, grid: tuple[int, int] | None, keep: int | None
) -> tuple[PlacedOp, tuple[int, int]]:
    """A method's op before the language model on features of `rows` rows, CLS included where it reads that; and the
    grid of the patches.

    Raises:
        UsageError: As `Method.first_op`; or the method needs a grid and none can be told.
        InputError: No patch is left.
    """
    chosen = get_method(method)
    tokens = rows - int(chosen.takes_cls(options))
    if tokens < 1:
        raise InputError(f"features has {rows} rows, which leaves no patch after the CLS row")
    grid = as_grid(method, tokens, grid, needs_grid=chosen.op is not None and chosen.op.needs_grid)
    return chosen.first_op(options, ModelShape(grid, layers=1), keep), grid


def _check_signals(method: str, op: Op, signals: Mapping[str, Array]) -> None:
    wanted = {SIGNALS[name].input: SIGNALS[name] for name in op.signals()}
    for name in signals:
        if name not in wanted:
            raise InputError(f"{method} takes no {name} with these parameters")
    for name, signal in wanted.items():
        if name not in signals:
            raise InputError(f"{method} needs {name} with these parameters: {signal.about}")


def _check_shapes(op: Op, inputs: Mapping[str, Array], sizes: Sizes) -> None:
    for tensor in op.inputs()[1:]:
        found = inputs[tensor.name].shape
        expected = [
            own if isinstance(size, str) else size for size, own in zip(sizes.shape(tensor.axes), found, strict=True)
        ]
        if list(found) != expected:
            raise InputError(
                f"{tensor.name} has shape {tuple(found)} but features {tuple(inputs['features'].shape)} needs "
                f"{tuple(expected)}"
            )


def _gathered(op: Op, selection: Selection, features: Array, companions: Mapping[str, Array]) -> dict[str, Array]:
    from array_api_compat import array_namespace

    from vtexport.pruning.arrays import gather_rows

    kept = {}
    for name, companion in companions.items():
        if tuple(companion.shape[:2]) != tuple(features.shape[:2]):
            raise InputError(
                f"companion {name} has shape {tuple(companion.shape)}; its rows run beside those of the features, "
                f"{tuple(features.shape)}"
            )
        kept[name] = gather_rows(array_namespace(companion), companion, selection.keep_indices + int(op.takes_cls))
    return kept
