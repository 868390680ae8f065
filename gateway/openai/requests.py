"""The JSON of OpenAI's requests → what is asked. Refuses what it would otherwise have to ignore.

Pure. Source: OpenAI's API reference for POST /v1/chat/completions, /v1/completions and /v1/embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.openai.errors import RequestRefused
from gateway.openai.fields import Fields, body_of, fields_of, kind_of, text_of
from gateway.openai.types import Sampling, Style, TextAsked, Turn, VectorsAsked
from gateway.versions import split_name

MAX_INPUTS = 2048
MAX_TURNS = 16_384
MAX_STOPS = 4
MAX_TOKEN_IDS = 1_000_000
"""Of all inputs of one request; checking one after another holds up everybody else."""

MAX_MODEL_CHARACTERS = 256
_MAX_TOKENS = 2**31 - 1
_COMPLETION_TOKENS = 16
"""What /v1/completions gives where nothing is said of it."""

_SAMPLING = frozenset({"model", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "stream", "stream_options"})
_LABELS = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key"})
"""They change nothing in an answer."""

_INERT: Mapping[str, tuple[object, ...]] = {
    "n": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
}
_TAKEN = {
    Style.CHAT: _SAMPLING | _LABELS | {"messages", "max_completion_tokens", "parallel_tool_calls"},
    Style.COMPLETION: _SAMPLING | _LABELS | {"prompt"},
}
_INERT_AT: Mapping[Style, Mapping[str, tuple[object, ...]]] = {
    Style.CHAT: {
        **_INERT,
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "response_format": ({"type": "text"},),
        "logprobs": (False,),
        "top_logprobs": (0,),
        "modalities": (["text"],),
        "store": (False,),
        "service_tier": ("auto", "default"),
        "reasoning_effort": ("none",),
        "verbosity": ("medium",),
        "audio": (),
        "prediction": (),
        "web_search_options": (),
        "prompt_cache_retention": (),
        "moderation": (),
    },
    Style.COMPLETION: {**_INERT, "best_of": (1,), "echo": (False,), "logprobs": (), "suffix": ("",)},
}
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""Chat templates know no developer; it is the system's newer name."""

_TURN = frozenset({"role", "content", "name"})
_TURN_INERT: Mapping[str, tuple[object, ...]] = {
    "tool_calls": ([],),
    "annotations": ([],),
    "function_call": (),
    "audio": (),
    "refusal": ("",),
    "tool_call_id": (),
}
_EMBEDDING = frozenset({"model", "input", "encoding_format", "dimensions", "user"})


def text_asked(style: Style, data: bytes) -> TextAsked:
    """Raises RequestRefused, BodyTooLarge."""
    body = body_of(data)
    model, wanted = _model(body)
    body.only(_TAKEN[style], _INERT_AT[style])
    prompt = _turns(body) if style is Style.CHAT else _prompt(body)
    stream = body.flag("stream")
    return TextAsked(
        model=model,
        prompt=prompt,
        sampling=_sampling(body),
        max_tokens=_max_tokens(body) or (_COMPLETION_TOKENS if style is Style.COMPLETION else 0),
        stop=_stop(body),
        stream=stream,
        include_usage=_include_usage(body, stream),
        session_key=body.text("prompt_cache_key") or "",
        wanted=wanted,
    )


def vectors_asked(data: bytes) -> VectorsAsked:
    """Raises RequestRefused, BodyTooLarge."""
    body = body_of(data)
    model, wanted = _model(body)
    body.only(_EMBEDDING, {})
    encoding = body.text("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise RequestRefused(f"'encoding_format' is {encoding[:40]!r}; known: float, base64", param="encoding_format")
    dimensions = body.integer("dimensions", 1, 2**31 - 1)
    texts, token_ids = _inputs(body)
    return VectorsAsked(model, texts, token_ids, encoding == "base64", dimensions, wanted)


def _model(body: Fields) -> tuple[str, str]:
    """The model, and the version or alias that was named with it."""
    name = text_of(body.required("model"), "model")
    if not 0 < len(name) <= MAX_MODEL_CHARACTERS:
        raise RequestRefused(f"'model' has {len(name)} characters; it takes 1 to {MAX_MODEL_CHARACTERS}", param="model")
    model, version = split_name(name)
    if not model or (not version and "@" in name):
        raise RequestRefused(f"'model' is {name[:80]!r}; send a model's name, or name@alias, or name@version", param="model")
    return model, version


def _turns(body: Fields) -> tuple[Turn, ...]:
    return tuple(_turn(each, f"messages[{index}]") for index, each in enumerate(body.items("messages", MAX_TURNS)))


def _turn(value: object, path: str) -> Turn:
    fields = fields_of(value, path)
    role = text_of(fields.required("role"), fields.path("role"))
    if role not in _ROLES:
        raise RequestRefused(
            f"'{path}.role' is {role[:40]!r}; known here: {', '.join(_ROLES)}", param=f"{path}.role", fault="unsupported_value"
        )
    fields.only(_TURN, _TURN_INERT)
    fields.text("name")
    return Turn(_ROLES[role], _content(fields.required("content"), fields.path("content")))


def _content(value: object, path: str) -> str:
    if isinstance(value, str):
        return text_of(value, path)
    if not isinstance(value, list):
        raise RequestRefused(
            f"'{path}' is {kind_of(value)}; expected a string or an array of text parts", param=path, fault="invalid_type"
        )
    return "\n".join(_part(each, f"{path}[{index}]") for index, each in enumerate(value))


def _part(value: object, path: str) -> str:
    part = fields_of(value, path)
    kind = text_of(part.required("type"), part.path("type"))
    if kind != "text":
        raise RequestRefused(
            f"'{path}.type' is {kind[:40]!r}; only text parts are taken here", param=f"{path}.type", fault="unsupported_value"
        )
    return text_of(part.required("text"), part.path("text"))


def _prompt(body: Fields) -> str:
    value = body.required("prompt")
    if isinstance(value, str):
        return text_of(value, "prompt")
    if not isinstance(value, list):
        raise RequestRefused(f"'prompt' is {kind_of(value)}; expected a string", param="prompt", fault="invalid_type")
    if len(value) == 1 and isinstance(value[0], str):
        return text_of(value[0], "prompt[0]")
    seen = f"{len(value)} prompts" if value and isinstance(value[0], str) else "token ids"
    raise RequestRefused(
        f"'prompt' holds {seen if value else 'nothing'}; send one string for each request",
        param="prompt",
        fault="unsupported_value",
    )


def _sampling(body: Fields) -> Sampling:
    temperature, top_p = body.number("temperature", 0, 2), body.number("top_p", 0, 1)
    if top_p == 0:  # the smallest share of the probability is the most likely token alone
        temperature, top_p = 0.0, None
    seed = body.integer("seed", -(2**63), 2**63 - 1)
    return Sampling(temperature, top_p, body.integer("top_k", 0, _MAX_TOKENS) or None, None if seed is None else seed % 2**64)


def _max_tokens(body: Fields) -> int | None:
    older, newer = body.integer("max_tokens", 1, _MAX_TOKENS), body.integer("max_completion_tokens", 1, _MAX_TOKENS)
    if older is not None and newer is not None and older != newer:
        raise RequestRefused(
            f"'max_tokens' is {older} and 'max_completion_tokens' is {newer}; send one of them", param="max_tokens"
        )
    return newer if older is None else older


def _stop(body: Fields) -> tuple[str, ...]:
    value = body.get("stop")
    if value is None or value == []:
        return ()
    stops = [value] if isinstance(value, str) else body.items("stop", MAX_STOPS)
    texts = tuple(text_of(each, "stop" if isinstance(value, str) else f"stop[{index}]") for index, each in enumerate(stops))
    if not all(texts):
        raise RequestRefused("'stop' holds an empty string, which would stop at once; leave it out", param="stop")
    return texts


def _include_usage(body: Fields, stream: bool) -> bool:
    options = body.fields("stream_options")
    if options is None:
        return False
    if not stream:
        raise RequestRefused("'stream_options' goes with 'stream': true only; leave it out", param="stream_options")
    options.only({"include_usage"}, {"include_obfuscation": (False,)})
    return options.flag("include_usage")


def _inputs(body: Fields) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    value = body.required("input")
    if isinstance(value, str):
        return (_embeddable(value, "input"),), ()
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, int) and not isinstance(first, bool):
        return (), (_tokens(value, "input"),)
    inputs = body.items("input", MAX_INPUTS)
    if isinstance(first, list):
        total = sum(len(each) for each in inputs if isinstance(each, list))
        if total > MAX_TOKEN_IDS:
            raise RequestRefused(f"'input' holds {total} token ids; at most {MAX_TOKEN_IDS} are taken", param="input")
        return (), tuple(_tokens(each, f"input[{index}]") for index, each in enumerate(inputs))
    return tuple(_embeddable(each, f"input[{index}]") for index, each in enumerate(inputs)), ()


def _embeddable(value: object, path: str) -> str:
    text = text_of(value, path)
    if not text:
        raise RequestRefused(f"{path!r} is empty; there is nothing to embed", param=path)
    return text


def _tokens(value: object, path: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not value:
        raise RequestRefused(f"{path!r} is {kind_of(value)}; expected an array of token ids", param=path, fault="invalid_type")
    if len(value) > MAX_TOKEN_IDS:
        raise RequestRefused(f"{path!r} holds {len(value)} token ids; at most {MAX_TOKEN_IDS} are taken", param=path)
    for token in value:
        if type(token) is not int or not 0 <= token < 2**63:
            raise RequestRefused(f"{path!r} holds something else than token ids; they are integers from 0", param=path)
    return tuple(value)
