"""Names that LLaVA's tensors have in files, and the canonical ones behind them."""

from __future__ import annotations

import re

from vtexport.models.parts import DECODER, HEAD, TOWER
from vtexport.models.wrappers import unwrapped

# Tensor names come as the hub's files have them (`language_model.model.layers.0...`,
# `vision_tower.vision_model.encoder...`), as transformers 5 saves them (no `vision_model.`), as its modules name
# them (`model.language_model.layers.0...`), and with a `.model` too many, as some of its versions saved them: every
# name that from_pretrained takes. Behind the match the rest of the name follows.
_CANONICAL = (
    (re.compile(r"(?:model\.)?lm_head\.|language_model\.lm_head\."), "lm_head."),
    (re.compile(r"(?:model\.)?vision_tower\.(?:vision_model\.)?"), "vision_tower."),
    (re.compile(r"(?:model\.)?multi_modal_projector\."), "multi_modal_projector."),
    (re.compile(r"(?:model\.)?language_model\.(?:model\.){0,2}(?!lm_head\.)"), "language_model."),
)


class LlavaNames:
    """The methods of `vtexport.models.family.Family` about names."""

    def read_name(self, stored: str) -> tuple[str, tuple[str, ...]]:
        """A stored tensor's canonical name, and the prefixes in it that from_pretrained would not look behind."""
        bare, wrappers = unwrapped(stored)
        name, doubled = bare, False
        while True:
            for pattern, replacement in _CANONICAL:
                if match := pattern.match(name):
                    return replacement + name[match.end() :], wrappers + (("model.",) if doubled else ())
            if not name.startswith("model."):  # of another model, or a trainer's own wrapper with the model inside
                return bare, wrappers
            name, doubled = name.removeprefix("model."), True

    def canonical_name(self, stored: str) -> str:
        """The name under which vtexport knows a tensor, whatever layout the file has."""
        return self.read_name(stored)[0]

    def hub_name(self, canonical: str) -> str:
        """The name the tensor has in the files of `llava-hf/llava-1.5-7b-hf`."""
        if canonical.startswith(TOWER):
            return f"{TOWER}vision_model." + canonical.removeprefix(TOWER)
        if canonical.startswith(DECODER):
            return f"{DECODER}model." + canonical.removeprefix(DECODER)
        return DECODER + canonical if canonical == HEAD else canonical

    def is_harmless(self, canonical: str) -> bool:
        """True for buffers that older versions of transformers saved."""
        return canonical.endswith((".rotary_emb.inv_freq", ".embeddings.position_ids"))
