"""Triton's generate extension: a text and its parameters to a GenerateRequest, the pieces of the answer to JSON.

Parameters stand beside `text_input`, or in `parameters`; their names are those of Triton's text backends, and the worker's own
(`worker/kserve/text.py`). What no engine here does is refused unless its value asks for nothing. Source: Triton's
protocol/extension_generate.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from penstock.worker.v1 import worker_pb2

from gateway.exchange import Exchange
from gateway.rest.errors import AnswerUnusable, RequestRefused
from gateway.rest.fields import Fields, checked_text, inner, kind_of, object_of, text, written, wrong

_COUNTS = {"max_tokens": 2**32, "top_k": 2**32, "seed": 2**64, "logprobs": 2**32}
_FRACTIONS = ("temperature", "top_p", "frequency_penalty", "presence_penalty", "repetition_penalty")
_STOPS = ("stop", "stop_words")
_FLAGS = ("chat_template", "stream")
_INERT: Mapping[str, tuple[object, ...]] = {"bad_words": ("", []), "exclude_input_in_output": (True,)}
"""Of other backends, with the values that ask for what is done anyway."""

_MAX_STOPS = 16
_FINISHES = {
    worker_pb2.FINISH_REASON_STOP: "stop",
    worker_pb2.FINISH_REASON_LENGTH: "length",
    worker_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
    worker_pb2.FINISH_REASON_CONTENT_FILTER: "content_filter",
}


@dataclass(frozen=True, slots=True)
class TextAsked:
    """A request for text, checked."""

    text: str
    parameters: Mapping[str, object]
    stops: tuple[str, ...] = ()
    request_id: str = ""
    stream: bool = False


@dataclass(frozen=True, slots=True)
class TextPiece:
    """What one answer of the worker added. The last one has a finish."""

    text: str
    logprobs: tuple[object, ...] = ()
    finish: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


def text_asked(body: memoryview) -> TextAsked:
    """Raises RequestRefused, BodyTooLarge."""
    asked = object_of(body)
    if "text_input" not in asked:
        raise RequestRefused("'text_input' is missing; send the text to go on from or to answer")
    beside = {name: value for name, value in asked.items() if name not in ("text_input", "id", "parameters")}
    given = {**beside, **inner(asked, "parameters")}
    stops: list[str] = []
    parameters: dict[str, object] = {}
    for name, value in given.items():
        if value is None:
            continue
        if name in _STOPS:
            stops += _stops(name, value)
        elif name in _INERT:
            if value not in _INERT[name]:
                raise RequestRefused(f"{name!r} is not done here with that value; leave it out")
        else:
            parameters[name] = _parameter(name, value)
    if len(stops) > _MAX_STOPS:
        raise RequestRefused(f"{len(stops)} stop words; at most {_MAX_STOPS} are taken")
    stream = bool(parameters.pop("stream", False))
    return TextAsked(text(asked, "text_input"), parameters, tuple(stops), text(asked, "id"), stream)


def generate_request(model: str, asked: TextAsked, *, chat: bool) -> bytes:
    """A serialised GenerateRequest. `chat`: the model has a template for conversations, put around the text unless told not."""
    given = asked.parameters
    sampling = worker_pb2.Sampling(**{name: given[name] for name in (*_FRACTIONS, "top_k", "seed") if name in given})  # type: ignore[arg-type]
    message = worker_pb2.GenerateRequest(model=model, sampling=sampling, stop=asked.stops)
    max_tokens, logprobs = given.get("max_tokens"), given.get("logprobs")
    if isinstance(max_tokens, int):
        message.max_tokens = max_tokens
    if isinstance(logprobs, int):
        message.top_logprobs = logprobs
    if chat and given.get("chat_template", True):
        message.chat.messages.add(role="user", content=asked.text)
    else:
        message.prompt = asked.text
    return message.SerializeToString()


def piece_of(payload: bytes) -> TextPiece:
    """Raises AnswerUnusable."""
    try:
        message = worker_pb2.GenerateResponse.FromString(payload)
    except DecodeError as error:
        raise AnswerUnusable(f"the {len(payload)} bytes that a worker sent are no GenerateResponse") from error
    logprobs = tuple(_place(each) for each in message.logprobs)
    if not message.finish_reason:
        return TextPiece(message.text, logprobs)
    usage = message.usage
    finish = _FINISHES.get(message.finish_reason, "stop")
    return TextPiece(message.text, logprobs, finish, usage.prompt_tokens, usage.completion_tokens)


def told(exchange: Exchange, asked: TextAsked, piece: TextPiece) -> bytes:
    """One answer, or one piece of it, as a JSON object."""
    found: dict[str, object] = {"id": asked.request_id} if asked.request_id else {}
    found |= {"model_name": exchange.model, "model_version": exchange.version, "text_output": piece.text}
    if piece.logprobs:
        found["logprobs"] = piece.logprobs
    if piece.finish:
        found["finish_reason"] = piece.finish
        found["prompt_tokens"], found["completion_tokens"] = piece.prompt_tokens, piece.completion_tokens
    return written(found).encode()


def _parameter(name: str, value: object) -> object:
    if name in _FLAGS:
        return value if isinstance(value, bool) else wrong(name, value, "a boolean")
    if name in _FRACTIONS:
        if not isinstance(value, int | float) or isinstance(value, bool) or not -1e30 < value < 1e30:
            wrong(name, value, "a number")
        return float(value)
    if name in _COUNTS:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _COUNTS[name]:
            raise RequestRefused(f"{name!r} is {kind_of(value)}; expected an integer from 0 to {_COUNTS[name] - 1}")
        return value
    known = ", ".join(sorted((*_COUNTS, *_FRACTIONS, *_STOPS, *_FLAGS)))
    raise RequestRefused(f"parameter {name[:80]!r} means nothing to a generation; there are: {known}")


def _stops(name: str, value: object) -> list[str]:
    found: list[str] = []
    for each in value if isinstance(value, list) else [value]:
        if not isinstance(each, str):
            wrong(name, each, "a string, or an array of strings")
        if each:
            found.append(checked_text(each, name))
    return found


def _place(logprob: worker_pb2.TokenLogprob) -> object:
    return {**_named(logprob.chosen), "top_logprobs": [_named(each) for each in logprob.top]}


def _named(logprob: worker_pb2.Logprob) -> Fields:
    return {"token": logprob.token.decode(errors="replace"), "logprob": logprob.logprob, "bytes": list(logprob.token)}
