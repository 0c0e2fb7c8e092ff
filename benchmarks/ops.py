"""Parts of the benchmarks of pruning ops: features in the likeness of CLIP's, sessions, and the Gram matrix alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

# numpy reads the thread settings when it is imported, so it is imported after the arguments are read.

WIDTH = 1024


def generated_images(batch: int, grid: tuple[int, int]) -> tuple[Any, Any]:
    """Features [batch, 1 + T, 1024] float16 and CLS scores [batch, T] float32, in the likeness of CLIP's.

    Smooth fields over the grid (background), blobs with a direction of their own (objects), a few tokens of large norm
    (CLIP's outliers) and noise; attention falls on blobs and outliers.
    """
    import numpy as np

    rng = np.random.default_rng(2024)
    tokens = grid[0] * grid[1]
    y, x = np.mgrid[: grid[0], : grid[1]] / np.reshape(grid, (2, 1, 1))
    features, scores = [], []
    for _ in range(batch):
        maps, attention = [], 0.05 * rng.random(tokens)
        for order in range(1, 25):
            phase = rng.random(2) * 2 * np.pi
            waves = rng.integers(0, 1 + order // 4, 2)
            maps.append(
                np.cos(2 * np.pi * waves[0] * x + phase[0]) * np.cos(2 * np.pi * waves[1] * y + phase[1]) / order**0.5
            )
        for _ in range(30):
            center, size = rng.random(2), 0.03 + 0.1 * rng.random()
            blob = np.exp(-((x - center[0]) ** 2 + (y - center[1]) ** 2) / (2 * size**2))
            maps.append(1.5 * blob)
            attention += rng.random() * blob.ravel()
        fields = np.stack([each.ravel() for each in maps], axis=1)
        image = 0.3 * rng.standard_normal(WIDTH) + 0.6 * fields @ rng.standard_normal((len(maps), WIDTH))
        image += 0.35 * rng.standard_normal(image.shape)
        outliers = rng.choice(tokens, 5, replace=False)
        image[outliers] = 4 * rng.standard_normal(WIDTH) + 0.2 * image[outliers]
        attention[outliers] += 2.0
        features.append(np.concatenate([image.mean(0, keepdims=True), image]))
        scores.append(attention / attention.sum() * 12)
    return np.stack(features).astype(np.float16), np.stack(scores).astype(np.float32)


def session(model: Any, threads: int, library: Any = None) -> Any:
    """A session of ONNX Runtime; with `library`, its operators replace the function bodies."""
    from vtexport.backends.onnxruntime.backend import import_onnxruntime

    ort = import_onnxruntime()
    options = ort.SessionOptions()
    if library is not None:
        options.register_custom_ops_library(str(library))
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Two sessions take turns here: without this the threads of the one stay awake beside the other's.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def gram_model(tokens: int, batch: int = 1) -> Any:
    """Only the product that gives the Gram matrix, of features that are centred already."""
    from onnx import TensorProto, helper

    describe = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Transpose", ["y"], ["columns"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["y", "columns"], ["gram"]),
    ]
    ins = [describe("y", TensorProto.FLOAT, [batch, tokens, WIDTH])]
    outs = [describe("gram", TensorProto.FLOAT, [batch, tokens, tokens])]
    graph = helper.make_graph(nodes, "gram", ins, outs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def samples_ms(run: Callable[[], Any], runs: int) -> list[float]:
    for _ in range(max(2, runs // 10)):  # the first runs allocate
        run()
    samples = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        samples.append(1e3 * (time.perf_counter() - start))
    return samples
