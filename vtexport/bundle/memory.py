"""Memory that a plan takes, as far as the manifest tells: weights, and the key-value cache by layer."""

from __future__ import annotations

from vtexport.bundle.manifest import Manifest, Plan
from vtexport.dtypes import DTYPES


def weight_bytes(manifest: Manifest) -> int:
    """Bytes of all weights as they are stored; every plan uses all of them."""
    return sum(each.bytes for parts in manifest.weights.values() for each in parts)


def kv_row_bytes(manifest: Manifest) -> int:
    """Bytes of one token's keys and values in one decoder layer."""
    decoder = manifest.decoder
    return 2 * decoder.num_key_value_heads * decoder.head_dim * DTYPES[manifest.precision].itemsize


def kv_bytes(manifest: Manifest, plan: Plan, text_tokens: int = 0) -> int:
    """Bytes of the key-value cache, all layers together, with one image and so many tokens of text in it."""
    return sum(kv_bytes_by_layer(manifest, plan, text_tokens))


def kv_bytes_by_layer(manifest: Manifest, plan: Plan, text_tokens: int = 0) -> list[int]:
    """Bytes of the key-value cache of each decoder layer, with one image and so many tokens of text in it."""
    row = kv_row_bytes(manifest)
    return [row * (tokens + text_tokens) for tokens in plan.tokens_by_layer()]
