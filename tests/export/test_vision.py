"""One trace of the tower for both dialects gives the graphs that a trace for each gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch

from vtexport.assemble.weights import stored_weight
from vtexport.checkpoint.resolve import open_checkpoint
from vtexport.export.dialects import DIALECTS
from vtexport.export.vision import TracedTower
from vtexport.graphs.weight import Weight
from vtexport.models import llava

pytestmark = pytest.mark.long


def tower(config: Any, checkpoint: Path, dtype: str) -> TracedTower:
    entries = open_checkpoint(str(checkpoint)).tensors
    weights: dict[str, Weight] = {name: stored_weight("w", entry, entry.offset) for name, entry in entries.items()}
    spec = llava.model_spec(config, checkpoint).vision
    return TracedTower(config.vision_config, spec, ("cls_attention",), weights, checkpoint, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_shared_trace_gives_the_same_bytes(
    tiny_model: Any, tiny_checkpoint: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = []
    export = torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda *args, **options: traces.append(1) or export(*args, **options))
    shared = tower(tiny_model.config, tiny_checkpoint, dtype)
    graphs = {name: ir.to_proto(shared.graph(dialect.opset)) for name, dialect in DIALECTS.items()}
    assert len(traces) == 1
    for name, dialect in DIALECTS.items():
        alone = ir.to_proto(tower(tiny_model.config, tiny_checkpoint, dtype).graph(dialect.opset))
        assert graphs[name].SerializeToString(deterministic=True) == alone.SerializeToString(deterministic=True)
