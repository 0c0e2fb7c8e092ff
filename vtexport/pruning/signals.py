"""Signals: what a pruning op may read besides the rows it prunes. Names, shapes and where each comes from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Signal:
    """One more input of an op.

    Attributes:
        name: The word in `Op.signals`, in the vision graph's file name and in `vtexport list methods`.
        input: Name of the tensor, in ops and graphs.
        axes: Its shape by the letters of `vtexport.pruning.types.AXES`.
        source: "vision", where the vision graph gives it, "prompt", where the runtime makes it from the question,
            "caller", where no bundle has it, "decoder", where it comes from a layer of the language model, or "op",
            where the op behind the vision tower gives it to the steps inside the language model.
        about: One line for people.
        dtype: "float32", "int64" or "features", the type of the rows that the op prunes.
        substitute: The signal that takes its place where the vision tower has no CLS token.
    """

    name: str
    input: str
    axes: str
    source: str
    about: str
    dtype: str = "float32"
    substitute: str | None = None


SIGNALS = {
    signal.name: signal
    for signal in (
        Signal(
            "cls_attention",
            "scores",
            "BT",
            "vision",
            "attention from CLS to every patch in the feature layer's block, summed over heads",
            substitute="received_attention",
        ),
        Signal(
            "received_attention",
            "scores",
            "BT",
            "vision",
            "mean attention that every patch receives from all patches in the feature layer's block, summed over heads",
        ),
        Signal("keys", "keys", "BTHK", "vision", "the patches' key projections in the feature layer's block, by head"),
        Signal(
            "similarity_features",
            "similarity_features",
            "BTD",
            "vision",
            "mean of the outputs of the tower's last third of blocks (CLIP-L: the nine from 15 on), patches only",
        ),
        Signal("text", "text_embeds", "BME", "prompt", "the language model's embeddings of the question's tokens"),
        Signal(
            "joint_space",
            "image_embeds",
            "BTE",
            "caller",
            "CLIP's image embeddings of the patches in the space it shares with text",
        ),
        Signal("joint_text", "text_embeds", "BME", "caller", "CLIP's text embeddings of the question, one a segment"),
        Signal(
            "layer_keys",
            "keys",
            "1SGK",
            "decoder",
            "keys of one layer of the language model, with their rotary positions",
            dtype="features",
        ),
        Signal("layer_query", "query", "1HK", "decoder", "the last row's query in the same layer", dtype="features"),
        Signal(
            "labels",
            "labels",
            "1T",
            "op",
            "the cluster of every visual token, -1 for none",
            dtype="int64",
        ),
    )
}


def given_by(name: str, *, has_cls: bool) -> str:
    """The signal that stands in for the signal `name` on a vision tower with or without a CLS token."""
    substitute = SIGNALS[name].substitute
    return name if has_cls or substitute is None else substitute
