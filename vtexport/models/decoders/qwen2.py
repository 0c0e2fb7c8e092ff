"""Qwen2 (Yang et al., arXiv 2407.10671): a Llama with biases on queries, keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vtexport.models.decoders.llama import LlamaDecoder
from vtexport.models.registry import decoder


@decoder("qwen2")
@dataclass(frozen=True, kw_only=True)
class Qwen2Decoder(LlamaDecoder):
    """A sliding window in the later layers where the configuration has one."""

    takes_windows = True

    @staticmethod
    def biases(config: Any) -> tuple[bool, bool, bool]:
        """Those of queries, keys and values."""
        return True, False, False
