"""Vision-language models with visual tokens pruned to an exact budget, as ONNX bundles that run on the device."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from vtexport.version import __version__ as __version__

if TYPE_CHECKING:
    from vtexport.runtime.pipeline import Pipeline as Pipeline

# ONNX Runtime from 1.31 on writes a device id and queued events below the user's cache folder, beginning with its
# import. This comes before any module of ours imports it and passes to every process started from here. Whoever has set
# the variable, to whatever value, has decided already.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    """`vtexport.Pipeline`, imported when it is first asked for: listing and help need none of its packages."""
    if name == "Pipeline":
        from vtexport.runtime.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module 'vtexport' has no attribute {name!r}")
