"""Inverse frequencies of rotary positions, as transformers computes them for its Llama-type decoders.

Su et al., "RoFormer", arXiv 2104.09864; YaRN: Peng et al., arXiv 2309.00071, section 3.2; Llama 3.1's scaling is
Meta's. Powers are taken in float64 and rounded once, so a value may differ from PyTorch's by its last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Parameters = Mapping[str, Any]


def rotary(parameters: Parameters, head_dim: int, max_position_embeddings: int) -> tuple[np.ndarray, float]:
    """Inverse frequencies [head_dim / 2] float32, and the factor on cos and sin.

    Args:
        parameters: the configuration's `rope_parameters`, of a type in `KINDS`.
        head_dim: width of a head.
        max_position_embeddings: of the model, where the parameters leave the scaling factor out.
    """
    scale = KINDS[parameters.get("rope_type", "default")]
    dim = int(head_dim * parameters.get("partial_rotary_factor", 1.0)) if scale is not _default else head_dim
    frequencies, factor = scale(float(parameters["rope_theta"]), dim, parameters, max_position_embeddings)
    return frequencies.astype(np.float32), factor


def _plain(base: float, dim: int) -> np.ndarray:
    return 1.0 / base ** (np.arange(0, dim, 2) / dim)


def _default(base: float, dim: int, parameters: Parameters, positions: int) -> tuple[np.ndarray, float]:
    return _plain(base, dim), 1.0


def _linear(base: float, dim: int, parameters: Parameters, positions: int) -> tuple[np.ndarray, float]:
    return _plain(base, dim) / parameters["factor"], 1.0


def _llama3(base: float, dim: int, parameters: Parameters, positions: int) -> tuple[np.ndarray, float]:
    """Short wavelengths as they are, long ones divided by the factor, those between blended."""
    frequencies, factor = _plain(base, dim), parameters["factor"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    turns = parameters["original_max_position_embeddings"] * frequencies / (2 * math.pi)  # in the trained context
    scaled = np.where(turns < low, frequencies / factor, frequencies)
    smooth = (turns - low) / (high - low)
    between = (turns >= low) & (turns <= high)
    return np.where(between, (1 - smooth) * scaled / factor + smooth * scaled, scaled), 1.0


def _yarn(base: float, dim: int, parameters: Parameters, positions: int) -> tuple[np.ndarray, float]:
    trained, factor = parameters["original_max_position_embeddings"], parameters["factor"]
    factor = positions / trained if factor is None else factor

    def dimension(rotations: float) -> float:
        return dim * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = dimension(parameters.get("beta_fast") or 32)
    high = dimension(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high = high + 0.001 if low == high else high
    ramp = np.clip((np.arange(dim // 2) - low) / (high - low), 0, 1)
    plain = _plain(base, dim)
    return plain / factor * ramp + plain * (1 - ramp), _yarn_attention(parameters, factor)


def _yarn_attention(parameters: Parameters, factor: float) -> float:
    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    given = parameters.get("attention_factor")
    if given is not None:
        return float(given)
    mscale, mscale_all_dim = parameters.get("mscale"), parameters.get("mscale_all_dim")
    return scale(mscale) / scale(mscale_all_dim) if mscale and mscale_all_dim else scale(1)


# "dynamic" and "longrope" change the frequencies with the length of the sequence: no fixed table can serve them
KINDS: dict[str, Callable[[float, int, Parameters, int], tuple[np.ndarray, float]]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
