"""Errors as OpenAI's API has them: a status, and an object that says what is wrong with which parameter."""

from __future__ import annotations

from typing import Any

import msgspec

from tandem.errors import RequestError


class ErrorBody(msgspec.Struct, kw_only=True):
    """What went wrong. type: the kind of error. param: the field of the request that is at fault."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(msgspec.Struct, kw_only=True):
    error: ErrorBody


_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    408: "timeout_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """A request that ends with an error. retry_after: seconds, told to the client."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}

    @property
    def message(self) -> str:
        return str(self)

    @property
    def body(self) -> ErrorResponse:
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return ErrorResponse(error=ErrorBody(message=self.message, type=kind, param=self.param, code=self.code))

    def to_json(self) -> Any:
        return msgspec.to_builtins(self.body)


class ClientGone(ApiError):
    """The client has closed its connection; nobody reads this."""

    def __init__(self) -> None:
        super().__init__(499, "the client closed the connection")


def bad_request(error: RequestError | str, param: str | None = None) -> ApiError:
    """What the engine or the text stage finds wrong with a request."""
    code = "context_length_exceeded" if "context of" in str(error) else None
    return ApiError(400, str(error), param=param, code=code)
