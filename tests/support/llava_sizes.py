"""LLaVA-1.5 7B as far as sizes go: its real graphs, and none of its 14 GB of weights."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from vtexport.assemble.describe import describe_plan
from vtexport.bundle import manifest as schema
from vtexport.bundle.reader import open_bundle
from vtexport.checkpoint.aliases import ALIASES
from vtexport.checkpoint.model_config import read_model_config
from vtexport.export.graphs import GraphExporter
from vtexport.export.plan import make_plans, shape_of
from vtexport.graphs.weight import Weight
from vtexport.pruning import get_method, make_options


def write_llava_graphs(bundle: Path, folder: Path, plans: Sequence[tuple[str, int | None]]) -> None:
    """Writes a bundle in float16 that can be opened and inspected and not run.

    Args:
        bundle: one of a small model with as many patches, which lends what is not of the model's sizes.
        folder: to be written.
        plans: methods with their budgets.
    """
    model = read_model_config(ALIASES["llava"].folder)
    weights, offset = {}, 0
    for name, shape in model.shapes.items():
        if "encoder.layers.23." in name:  # behind the feature layer
            continue
        weights[name] = Weight("w.bin", offset, 2 * math.prod(shape), tuple(shape), "float16")
        offset += weights[name].nbytes
    shutil.copytree(bundle, folder)
    exporter = GraphExporter(model.spec, weights, folder / "onnx", "float16", folder)
    shape, described = shape_of(model.spec), []
    for method, keep in plans:
        budgets = None if keep is None else [keep]
        (plan,) = make_plans(get_method(method), budgets, make_options(get_method(method), {}), shape)
        described.append(describe_plan(plan, exporter.plan(plan), "", ""))
    lent, text = open_bundle(bundle).manifest, model.config.text_config
    decoder = schema.Decoder(
        num_hidden_layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        num_attention_heads=text.num_attention_heads,
        num_key_value_heads=text.num_key_value_heads,
        head_dim=text.hidden_size // text.num_attention_heads,
        vocab_size=text.vocab_size,
        max_position_embeddings=text.max_position_embeddings,
    )
    files = lent.files | {
        graph.file: schema.File(bytes=(folder / graph.file).stat().st_size, sha256="0" * 64)
        for graph in exporter.graphs.values()
    }
    # The file of the embedding has a length and takes no place on the disk.
    embedding = schema.StoredTensor(
        file="onnx/w.bin", offset=0, shape=[text.vocab_size, text.hidden_size], dtype="float16"
    )
    with (folder / embedding.file).open("wb") as file:
        file.truncate(2 * math.prod(embedding.shape))
    files[embedding.file] = schema.File(bytes=2 * math.prod(embedding.shape), sha256="0" * 64)
    manifest = msgspec.structs.replace(
        lent,
        text=msgspec.structs.replace(lent.text, embedding=embedding),
        name="LLaVA-1.5 7B",
        precision="float16",
        vision=msgspec.structs.replace(lent.vision, hidden_size=model.config.vision_config.hidden_size),
        decoder=decoder,
        graphs=exporter.graphs,
        plans=described,
        files=files,
        adaptive_plans=[],
    )
    (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))
