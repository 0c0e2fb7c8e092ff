"""Outputs of single graphs of a pipeline as arrays."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vtexport.backends.base import Session
from vtexport.backends.onnxruntime.host import HostBuffer
from vtexport.runtime.images import Crop
from vtexport.runtime.pipeline import Pipeline
from vtexport.runtime.vision import Preprocessed


def run_session(session: Session, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays in, arrays out, for a session of ONNX Runtime."""
    outputs = session.run({name: HostBuffer(array) for name, array in feeds.items()})
    return {name: buffer.numpy() for name, buffer in outputs.items()}


def vision_outputs(pipeline: Pipeline, pixel_values: np.ndarray) -> dict[str, np.ndarray]:
    """Features and signals of [1, 3, H, W]."""
    image = Preprocessed(pixel_values, image_size=(1, 1), crop=Crop(0, 0, 1, 1), warnings=[])
    return {name: buffer.numpy() for name, buffer in pipeline.stages.vision(image).outputs.items()}
