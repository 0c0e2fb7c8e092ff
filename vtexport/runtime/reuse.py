"""Frames and prompts that a pipeline keeps, so that what is asked again is not computed again.

Two things are kept. A *frame*, by the content of its upright pixels: an image that comes again, from another file or a
camera that stands still, is not encoded again. And the keys and values of the last *prompts*: of a further question or
turn only what differs from the longest common beginning is prefilled.

Both are exact. Attention is causal, so the keys and values of a row depend on what stands before it alone, and a
beginning counts as common only where token ids, visual tokens and position ids are the same. A plan that picks visual
tokens by the question has others for another question, which then begin anew at the image. A plan that prunes inside
the language model picks them by the end of the prompt, so that of its prompts with an image nothing is kept but the
frame.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from vtexport.backends.base import Buffer
from vtexport.errors import UsageError
from vtexport.runtime.answers import VisualTokens
from vtexport.runtime.images import LoadedImage
from vtexport.runtime.language_model import Sequence

_NO_TOKEN = -1  # in the place of an id, where a row is a visual token


class ImageRows(NamedTuple):
    """Rows of one image in a prompt: from `start` to before `end`, with the buffer that they came from."""

    start: int
    end: int
    block: Buffer


@dataclass(frozen=True)
class PromptRows:
    """Rows of a prompt, as far as keys and values depend on them.

    Attributes:
        ids: [L] int64 of the text, -1 in the places of visual tokens.
        positions: [axes, L] int64 position ids.
        images: Of its images in order.
    """

    ids: np.ndarray
    positions: np.ndarray
    images: tuple[ImageRows, ...]

    @classmethod
    def of(cls, texts: list[np.ndarray], blocks: list[Buffer], positions: np.ndarray) -> PromptRows:
        """Rows of N + 1 texts [P] int64 around N blocks [1, n, W] of visual tokens."""
        parts: list[np.ndarray] = [texts[0]]
        images: list[ImageRows] = []
        start = len(texts[0])
        for block, text in zip(blocks, texts[1:], strict=True):
            end = start + block.shape[1]
            images.append(ImageRows(start, end, block))
            parts += [np.full(end - start, _NO_TOKEN, np.int64), text]
            start = end + len(text)
        return cls(np.concatenate(parts), positions, tuple(images))

    def __len__(self) -> int:
        return len(self.ids)

    def then(self, tokens: list[int], position: int) -> PromptRows:
        """The same with an answer's tokens behind, of which the first has the position id `position`."""
        axes = len(self.positions)
        after = np.broadcast_to(np.arange(position, position + len(tokens)), (axes, len(tokens)))
        ids = np.concatenate([self.ids, np.asarray(tokens, np.int64)])
        return PromptRows(ids, np.concatenate([self.positions, after], axis=1), self.images)

    def common(self, kept: PromptRows) -> int:
        """Number of rows at the beginning that `kept` has as well, of an image all or none, and never all rows.

        One row at least is left to run, for its logits.
        """
        most = min(len(self) - 1, len(kept))
        same = self.ids[:most] == kept.ids[:most]
        same &= (self.positions[:, :most] == kept.positions[:, :most]).all(axis=0)
        count = most if same.all() else int(np.argmin(same))
        there = {rows.start: rows for rows in kept.images}
        for rows in self.images:
            if rows.start >= count:
                break
            other = there.get(rows.start)
            # An image of as many rows is another one unless its rows are the very ones
            if other is None or other.block is not rows.block or other.end != rows.end or rows.end > count:
                return rows.start
        return count


@dataclass(frozen=True)
class _Kept:
    sequence: Sequence
    rows: PromptRows


class Reuse:
    """Bounded memory of one pipeline for frames and prompts; give it to `Pipeline.open(reuse=)`.

    Args:
        frames: the most frames whose visual tokens are kept; the one that was not used for longest goes. A frame is
            its N x W numbers, such as 1 MB for 64 tokens of 4096 in float32.
        prompts: the most prompts whose keys and values are kept, each as large as those of one running answer.

    Attributes:
        frames_found: Frames that were not encoded again.
        tokens_found: Tokens of prompts that were not prefilled again.

    Raises:
        UsageError: a number is negative.
    """

    def __init__(self, frames: int = 16, prompts: int = 1):
        for name, value in (("frames", frames), ("prompts", prompts)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise UsageError(f"{name} is {value!r}; give a whole number from 0")
        self._most_frames, self._most_prompts = frames, prompts
        self._frames: OrderedDict[bytes, VisualTokens] = OrderedDict()
        self._prompts: list[_Kept] = []  # the last one used last
        self._owner: object = None
        self.frames_found = 0
        self.tokens_found = 0

    def own(self, owner: object) -> None:
        """Takes this memory for one pipeline; another's keys and values would be of another model.

        Raises:
            UsageError: it has one already.
        """
        if self._owner is not None:
            raise UsageError("this Reuse belongs to another pipeline; make one for each")
        self._owner = owner

    def frame(self, key: bytes) -> VisualTokens | None:
        """The visual tokens kept under a key of `frame_key`."""
        if (found := self._frames.get(key)) is None:
            return None
        self._frames.move_to_end(key)
        self.frames_found += 1
        return found

    def keep_frame(self, key: bytes, visual: VisualTokens) -> None:
        """Keeps the visual tokens of a frame."""
        if self._most_frames:
            self._frames[key] = replace(visual, reused=True)
            while len(self._frames) > self._most_frames:
                self._frames.popitem(last=False)

    def take(self, rows: PromptRows) -> tuple[Sequence, int] | None:
        """Keys and values to go on with, and how many of these rows they hold already; they are no longer kept.

        None where more prompts may be kept and each would lose most of its rows: a template's first words are common
        to all prompts.
        """
        if not self._prompts:
            return None
        counts = [rows.common(kept.rows) for kept in self._prompts]
        at = counts.index(most := max(counts))  # of several that are as good the one not used for longest
        if len(self._prompts) < self._most_prompts and 2 * most < len(self._prompts[at].rows):
            return None
        self.tokens_found += most
        return self._prompts.pop(at).sequence, most  # its memory serves again, whatever it holds

    def give(self, sequence: Sequence, rows: PromptRows) -> None:
        """Keeps keys and values of a prompt and its answer so far."""
        if self._most_prompts:
            self._prompts.append(_Kept(sequence, rows))
            del self._prompts[: -self._most_prompts]

    def clear(self) -> None:
        """Forgets everything."""
        self._frames.clear()
        self._prompts.clear()


def frame_key(loaded: LoadedImage, question: str | None) -> bytes:
    """Digest of an upright image's content: size, pixels, and what is told of its file; and of the question.

    `question` is the one that its visual tokens are picked by, if they are.
    """
    image = loaded.image
    digest = hashlib.sha256(repr((image.size, image.mode, loaded.warnings, question)).encode(errors="backslashreplace"))
    digest.update(np.ascontiguousarray(np.asarray(image)).data)
    return digest.digest()
