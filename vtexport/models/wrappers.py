"""Names that training code leaves around a model's tensors: the modules that wrapped the model when it was saved.

None of them is part of the model, and transformers' from_pretrained finds no tensor behind them.
"""

from __future__ import annotations

import re

# In front of every name, one after the other.
_IN_FRONT = {
    "module.": "DistributedDataParallel or DeepSpeed",
    "base_model.model.": "peft",
}
# In front too, or anywhere between two parts, where single layers were wrapped.
_ANYWHERE = {
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FSDP",
    "_checkpoint_wrapped_module.": "activation checkpointing",
    "_forward_module.": "Lightning",
}
_INFIX = re.compile(rf"(?<![^.])(?:{'|'.join(map(re.escape, _ANYWHERE))})")
WRAPPERS = _IN_FRONT | _ANYWHERE


def unwrapped(name: str) -> tuple[str, tuple[str, ...]]:
    """A tensor's name without wrappers, and those that were taken off (keys of `WRAPPERS`)."""
    found = dict.fromkeys(_INFIX.findall(name))
    name = _INFIX.sub("", name)
    while front := next((wrapper for wrapper in _IN_FRONT if name.startswith(wrapper)), None):
        name = name.removeprefix(front)
        found[front] = None
    return name, tuple(found)
