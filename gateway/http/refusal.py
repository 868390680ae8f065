"""How a failure that no servicer told is told to whoever asked by HTTP: in the words of the API that its path belongs to."""

from __future__ import annotations

from gateway.http.server import UrlUnknown
from gateway.openai import errors as openai_errors
from gateway.openai.errors import ErrorAnswer
from gateway.rest import errors as rest_errors
from runtime.errors import PenstockError

_REST = "/v2"
_ADVICE, _V2_ADVICE = "GET /v1/models or POST /v1/chat/completions", "GET /v2 or POST /v2/models/{model}/infer"
"""The words of what the edge refuses by itself: `gateway.xds.local_replies`."""


def refusal(path: str, error: PenstockError) -> ErrorAnswer:
    """Status, body and headers."""
    if isinstance(error, UrlUnknown):
        error = UrlUnknown(f"{error.message}; try {_V2_ADVICE if _is_rest(path) else _ADVICE}.")
    if not _is_rest(path):
        return openai_errors.error_answer(error)
    if isinstance(error, openai_errors.BodyTooLarge):
        error = rest_errors.BodyTooLarge(error.message)
    body = rest_errors.error_answer(error)
    return ErrorAnswer(body.status, b"".join(body.parts), body.headers)


def _is_rest(path: str) -> bool:
    return path == _REST or path.startswith(f"{_REST}/")
