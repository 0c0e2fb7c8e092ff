"""Float16 and bfloat16 policy of exported graphs: where float32 is used, what is scaled.

The policy, for the vision tower and the projector: residual stream, normalisation, softmax and activation functions are
float32; only the operands of matrix products are float16 or bfloat16. In float16 a product that is added to the stream
is computed from operands scaled by `WIDE_SCALE` and scaled back in float32, so it may be as large as 65504 /
WIDE_SCALE, about 4.2 million. The scale is a power of two and changes no significant digit; what it costs is that
numbers below about 4e-6 are rounded to nothing, where float16 itself would have done so below 6e-8. bfloat16 has the
range of float32 and needs no scale.
"""

from __future__ import annotations

WIDE_SCALE = 2.0**-6


def wide_scale(dtype: str) -> float:
    """The factor on operands of `dtype` so that their product does not overflow."""
    return WIDE_SCALE if dtype == "float16" else 1.0
