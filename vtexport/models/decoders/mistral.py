"""Mistral (Jiang et al., arXiv 2310.06825): a Llama whose layers see a window of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vtexport.models.decoders.llama import LlamaDecoder
from vtexport.models.registry import decoder


@decoder("mistral")
@dataclass(frozen=True, kw_only=True)
class MistralDecoder(LlamaDecoder):
    """No biases; a sliding window in every layer where the configuration has one."""

    takes_windows = True

    @staticmethod
    def biases(config: Any) -> tuple[bool, bool, bool]:
        """None anywhere."""
        return False, False, False
