"""The inputs of a replay: pixels and token ids of this device beside those that PyTorch was given."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable

import numpy as np

from vtexport.bundle.manifest import Image
from vtexport.bundle.proof import FoundProof
from vtexport.errors import VtexportError, quoted
from vtexport.runtime.images import normalised
from vtexport.runtime.prompt import PromptReader
from vtexport.runtime.vision import ImageLike, Preprocessed
from vtexport.validate.compare import MOST_LEVELS
from vtexport.validate.report import Check, Verdict


def compare_pixels(
    found: FoundProof, settings: Image, preprocess: Callable[[ImageLike], Preprocessed]
) -> tuple[list[Check], list[Preprocessed]]:
    """A check an image, and the images for the replay with PyTorch's pixels, whatever this device makes of them.

    Args:
        found: the proof.
        settings: of the bundle's image processor.
        preprocess: the stage of that name.

    Raises:
        BundleError: the proof is damaged.
        InputError: this device cannot read its images.
    """
    arrays = found.arrays("inputs.npz")
    checks, images = [], []
    for number, image in enumerate(found.proof.images):
        made, levels = preprocess(found.folder / image.file), arrays[f"levels.{number}"]
        expected = normalised(levels, settings)
        verdict: Verdict
        if _digest(made.pixel_values) == image.pixels_sha256:
            verdict, measured, note, expected = "pass", 0.0, "", made.pixel_values
        elif made.pixel_values.shape != expected.shape:
            verdict, measured, note = "fail", None, f"shape {list(made.pixel_values.shape)}, not {list(expected.shape)}"
        else:
            measured = _levels_apart(made.pixel_values, levels, settings)
            verdict = "differs" if measured <= MOST_LEVELS else "fail"
            note = "this Pillow resizes otherwise, or the manifest's image settings changed"
        checks.append(
            Check(
                stage="input",
                what="pixels",
                case=f"image {number + 1}",
                verdict=verdict,
                measured=measured,
                bound=0.0,
                note=note,
            )
        )
        images.append(dataclasses.replace(made, pixel_values=expected))
    return checks, images


def compare_prompts(found: FoundProof, reader: PromptReader) -> list[Check]:
    """A check a prompt: the ids around the image and those of the question alone, which have to be the same."""
    arrays = found.arrays("inputs.npz")
    checks = []
    for number, text in enumerate(found.proof.prompts):
        note = ""
        try:
            read = reader.read(text)
            parts = {"before": read.before, "after": read.after, "question": reader.question(text).ids}
        except VtexportError as error:
            note = f"the bundle's tokenizer or template does not take it ({quoted(error)})"
        else:
            for name, ids in parts.items():
                expected = arrays[f"prompt.{number}.{name}"]
                if not np.array_equal(ids, expected):
                    where = "of the question alone" if name == "question" else f"{name} the image"
                    note = f"ids {where}: {_difference(ids, expected)}"
                    break
        verdict: Verdict = "fail" if note else "pass"
        checks.append(Check(stage="input", what="token ids", case=f"prompt {number + 1}", verdict=verdict, note=note))
    return checks


def _digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _levels_apart(pixels: np.ndarray, levels: np.ndarray, settings: Image) -> float:
    """The largest distance in levels of 8 bits."""
    mean, std = (np.asarray(each, np.float64)[:, None, None] for each in (settings.mean, settings.std))
    own = (pixels[0].astype(np.float64) * std + mean) / settings.rescale
    return float(np.abs(own - levels.transpose(2, 0, 1)).max())


def _difference(found: np.ndarray, expected: np.ndarray) -> str:
    pairs = enumerate(zip(found.tolist(), expected.tolist(), strict=False))
    at = next((number for number, pair in pairs if pair[0] != pair[1]), min(len(found), len(expected)))
    return f"{found[at : at + 3].tolist()} at place {at}, PyTorch was given {expected[at : at + 3].tolist()}"
