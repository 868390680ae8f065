"""The JSON of OpenAI's requests → what is asked. Refuses what it would otherwise have to ignore.

Pure. Source: OpenAI's API reference for POST /v1/chat/completions, /v1/completions and /v1/embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gateway.openai.capabilities import needs_of
from gateway.openai.conversation import prompts_of, turns_of
from gateway.openai.errors import RequestRefused
from gateway.openai.fields import Fields, body_of, kind_of, text_of
from gateway.openai.sampling import logit_bias_of, max_tokens_of, n_of, sampling_of, stop_of, top_logprobs_of
from gateway.openai.tool_use import tool_use_of
from gateway.openai.types import Prompt, Style, TextAsked, ToolUse, VectorsAsked
from gateway.versions import split_name

MAX_INPUTS = 2048
MAX_CHOICES = 128
"""Generations of one request."""
MAX_TOKEN_IDS = 1_000_000
"""Of all inputs of one request; checking one after another holds up everybody else."""

MAX_MODEL_CHARACTERS = 256
_COMPLETION_TOKENS = 16
"""What /v1/completions gives where nothing is said of it."""

_SAMPLING = frozenset({"model", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "stream", "stream_options"})
_LABELS = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key"})
"""They change nothing in an answer."""

_CHOOSING = frozenset({"n", "frequency_penalty", "presence_penalty", "logit_bias", "logprobs"})
_TAKEN = {
    Style.CHAT: _SAMPLING
    | _LABELS
    | _CHOOSING
    | {"messages", "max_completion_tokens", "top_logprobs"}
    | {"tools", "tool_choice", "parallel_tool_calls", "response_format"},
    Style.COMPLETION: _SAMPLING | _LABELS | _CHOOSING | {"prompt", "best_of"},
}
_INERT_AT: Mapping[Style, Mapping[str, tuple[object, ...]]] = {
    Style.CHAT: {
        "functions": ([],),
        "function_call": ("none", "auto"),
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
    Style.COMPLETION: {"echo": (False,), "suffix": ("",)},
}
_EMBEDDING = frozenset({"model", "input", "encoding_format", "dimensions", "user"})


def text_asked(style: Style, data: bytes) -> TextAsked:
    """Raises RequestRefused, BodyTooLarge."""
    body = body_of(data)
    model, wanted = _model(body)
    body.only(_TAKEN[style], _INERT_AT[style])
    prompts: tuple[Prompt, ...] = (turns_of(body),) if style is Style.CHAT else prompts_of(body)
    stream = body.flag("stream")
    asked = TextAsked(
        model=model,
        prompts=prompts,
        sampling=sampling_of(body),
        max_tokens=max_tokens_of(body) or (_COMPLETION_TOKENS if style is Style.COMPLETION else 0),
        stop=stop_of(body),
        stream=stream,
        include_usage=_include_usage(body, stream),
        session_key=body.text("prompt_cache_key") or "",
        wanted=wanted,
        n=n_of(body),
        top_logprobs=top_logprobs_of(style, body),
        logit_bias=logit_bias_of(body),
        tool_use=tool_use_of(body) if style is Style.CHAT else ToolUse(),
    )
    if asked.choices > MAX_CHOICES:
        raise RequestRefused(
            f"{len(prompts)} prompts with 'n' {asked.n} are {asked.choices} answers; at most {MAX_CHOICES} are given to one"
            " request",
            param="n",
            fault="out_of_range",
        )
    return replace(asked, needs=needs_of(asked))


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
