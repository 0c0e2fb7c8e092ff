"""What a pruning op may read besides the features: names, shapes and where each comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vtexport.pruning.method import Sizes

AXES = {
    "B": "batch",
    "T": "tokens",
    "D": "width",
    "H": "heads",
    "K": "head width",
    "W": "width of the language model",
    "E": "width of the joint space",
    "M": "text tokens",
}


@dataclass(frozen=True)
class Signal:
    """One more input of an op; float32 always.

    Attributes:
        name: The word in `Method.signals`, in the vision graph's file name and in `vtexport list methods`.
        input: Name of the tensor, in ops and graphs.
        axes: Its shape by the letters of `AXES`.
        source: "vision", where the vision graph gives it, "prompt", where the runtime makes it from the question, or
            "caller", where no bundle has it.
        about: One line for people.
    """

    name: str
    input: str
    axes: str
    source: str
    about: str

    def shape(self, sizes: Sizes) -> list[int | str]:
        """The tensor's shape; an axis whose length varies from run to run has a name."""
        known: dict[str, int | str] = {
            "B": sizes.batch,
            "T": sizes.tokens,
            "D": sizes.width,
            "H": sizes.heads,
            "K": sizes.head_width,
            "W": sizes.embedding_width,
            "E": sizes.embedding_width,
            "M": "M",
        }
        return [known[axis] for axis in self.axes]


SIGNALS = {
    signal.name: signal
    for signal in (
        Signal(
            "cls_attention",
            "scores",
            "BT",
            "vision",
            "attention from CLS to every patch in the feature layer's block, summed over heads",
        ),
        Signal("keys", "keys", "BTHK", "vision", "the patches' key projections in the feature layer's block, by head"),
        Signal(
            "similarity_features",
            "similarity_features",
            "BTD",
            "vision",
            "mean of the outputs of the tower's last third of blocks (CLIP-L: the nine from 15 on), patches only",
        ),
        Signal("text", "text_embeds", "BMW", "prompt", "the language model's embeddings of the question's tokens"),
        Signal(
            "joint_space",
            "image_embeds",
            "BTE",
            "caller",
            "CLIP's image embeddings of the patches in the space it shares with text",
        ),
        Signal("joint_text", "text_embeds", "BME", "caller", "CLIP's text embeddings of the question, one a segment"),
    )
}
