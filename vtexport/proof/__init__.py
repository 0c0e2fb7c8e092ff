"""Proofs: what PyTorch answers with a bundle's checkpoint, recorded in the bundle for `vtexport validate` to replay.

Importing this imports no PyTorch; making a proof does.
"""

from __future__ import annotations

from vtexport.proof.prove import prove

__all__ = ["prove"]
