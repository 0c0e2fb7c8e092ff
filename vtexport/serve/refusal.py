"""Refusals of a request: one sentence with its status, in the form of OpenAI's errors."""

from __future__ import annotations

from typing import Any

from vtexport.errors import InputError, UsageError, VtexportError

_TYPES = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class RequestError(VtexportError):
    """A request that is not answered.

    Args:
        status: HTTP status.
        message: one sentence: what is wrong, with the value, and what to do next.
        param: the field that it is about.
        retry_after: seconds after which it may come again.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, retry_after: int | None = None):
        super().__init__(message)
        self.status, self.param, self.retry_after = status, param, retry_after

    def body(self) -> dict[str, Any]:
        """The error as a client reads it."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": None}}

    def headers(self) -> dict[str, str]:
        """Headers that go with it."""
        found = {}
        if self.retry_after is not None:
            found["retry-after"] = str(self.retry_after)
        if self.status == 401:
            found["www-authenticate"] = "Bearer"
        return found


def wrong(message: str, param: str | None = None) -> RequestError:
    """A refusal of a request that no server could answer."""
    return RequestError(400, message, param=param)


def as_refusal(error: BaseException) -> RequestError:
    """The refusal that an error of the pipeline is to a client; a defect or a damaged bundle says nothing of itself."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, (InputError, UsageError)):
        return wrong(str(error))
    return RequestError(500, "the server could not answer this request; its log says why")
