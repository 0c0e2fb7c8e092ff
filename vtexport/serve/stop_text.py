"""Stop strings in text that comes in pieces: what may be the beginning of one is held back."""

from __future__ import annotations

from collections.abc import Sequence


class StopText:
    """Text up to the first stop string, without it, as OpenAI's `stop` means it.

    Attributes:
        stopped: True once a string was found.
    """

    def __init__(self, strings: Sequence[str]):
        self._strings = strings
        self._held = ""
        self.stopped = False

    def step(self, piece: str) -> str:
        """The text that may go out after one more piece."""
        if self.stopped:
            return ""
        text = self._held + piece
        found = [at for at in (text.find(each) for each in self._strings) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, each) for each in self._strings), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """The text that was held back, at the end of the answer."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, string: str) -> int:
    """Length of the longest end of `text` that begins `string`."""
    return next((size for size in range(min(len(text), len(string) - 1), 0, -1) if text.endswith(string[:size])), 0)
