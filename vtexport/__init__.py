"""Vision-language models with visual tokens pruned to an exact budget, as ONNX bundles that run on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vtexport.runtime.pipeline import Pipeline as Pipeline

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`vtexport.Pipeline`, imported when it is first asked for: listing and help need none of its packages."""
    if name == "Pipeline":
        from vtexport.runtime.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module 'vtexport' has no attribute {name!r}")
