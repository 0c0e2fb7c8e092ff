"""Visual-token pruning: ops in two agreeing forms, array reference and ONNX function, and methods that place them.

Nothing here imports torch, onnx or array-api-compat before a function needs it, so that methods can be listed anywhere.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from vtexport.errors import MissingDependencyError
from vtexport.pruning.method import Method
from vtexport.pruning.one_node import diagnostic_model, op_model
from vtexport.pruning.op import Op
from vtexport.pruning.options import Option, Options
from vtexport.pruning.reference import select
from vtexport.pruning.registry import get_method, list_methods, list_ops, make_options
from vtexport.pruning.schedule import PlacedOp, Schedule
from vtexport.pruning.types import ModelShape, Selection, Sizes

if TYPE_CHECKING:
    from vtexport.pruning.eager.apply import Applied

__all__ = [
    "Method",
    "ModelShape",
    "Op",
    "Option",
    "Options",
    "PlacedOp",
    "Schedule",
    "Selection",
    "Sizes",
    "apply",
    "diagnostic_model",
    "get_method",
    "list_methods",
    "list_ops",
    "make_options",
    "op_model",
    "select",
]


def apply(model: Any, *, method: str, keep: int | None = None, **parameters: Any) -> Applied:
    """Prunes a Hugging Face LLaVA in eager mode, in place; see `vtexport.pruning.eager.apply`.

    Raises:
        MissingDependencyError: torch is not installed.
    """
    if find_spec("torch") is None:
        raise MissingDependencyError("PyTorch is not installed; run pip install 'vtexport[export,pytorch]'")
    from vtexport.pruning.eager import apply

    return apply.apply(model, method=method, keep=keep, **parameters)
