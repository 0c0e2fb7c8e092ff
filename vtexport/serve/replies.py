"""Answers in the form of OpenAI's chat completions: one object, or chunks of a stream."""

from __future__ import annotations

import secrets
import time
from typing import Any

import msgspec

from vtexport.runtime.answers import Answer

DONE = b"data: [DONE]\n\n"
_REASONS = {"eos": "stop", "stop_string": "stop", "length": "length"}


class Reply:
    """The objects of one answer, with one id and time.

    Args:
        model: name of the model as it was asked for.
    """

    def __init__(self, model: str):
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    def whole(self, answer: Answer, text: str) -> dict[str, Any]:
        """The answer in one object; `text` ends before a stop string."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _REASONS[answer.finish_reason]}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": usage(answer), **own(answer)}

    def first(self) -> bytes:
        """The chunk that begins a stream."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> bytes:
        """A chunk with a piece of the text."""
        return self._chunk({"content": text})

    def last(self, answer: Answer, include_usage: bool) -> bytes:
        """The chunks that end a stream."""
        end = self._chunk({}, _REASONS[answer.finish_reason], own(answer))
        if include_usage:
            end += event({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage(answer)})
        return end + DONE

    def _chunk(self, delta: dict[str, Any], reason: str | None = None, more: dict[str, Any] | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return event({**self._head, "object": "chat.completion.chunk", "choices": [choice], **(more or {})})


def event(value: Any) -> bytes:
    """A server-sent event with a JSON value."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def usage(answer: Answer) -> dict[str, Any]:
    """Tokens of an answer: OpenAI's fields, and `visual_tokens`, which are among those of the prompt."""
    new = len(answer.token_ids)
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": new,
        "total_tokens": answer.prompt_tokens + new,
        "prompt_tokens_details": {"cached_tokens": answer.reused_tokens},
        "visual_tokens": answer.visual_tokens,
    }


def own(answer: Answer) -> dict[str, Any]:
    """Further facts under a name of their own: plan, times of the stages, warnings."""
    return {
        "vtexport": {
            "plan": answer.plan,
            "timings_ms": {name: round(value, 3) for name, value in answer.timings_ms.items()},
            "images": [
                {"plan": each.plan, "visual_tokens": each.visual_tokens, "reused": each.reused}
                for each in answer.images
            ],
            "warnings": answer.warnings,
        }
    }
