"""How OpenAI's requests say a token is chosen, where an answer ends, and how many answers there are. Pure.

Source: OpenAI's API reference for POST /v1/chat/completions and /v1/completions.
"""

from __future__ import annotations

from gateway.openai.errors import RequestRefused
from gateway.openai.fields import Fields, text_of
from gateway.openai.types import Sampling, Style

MAX_STOPS = 4
MAX_N = 16
MAX_TOP_LOGPROBS = 20
MAX_BIASES = 1024
MAX_TOKENS = 2**31 - 1


def sampling_of(body: Fields) -> Sampling:
    """Raises RequestRefused. A penalty of 0 asks for nothing."""
    temperature, top_p = body.number("temperature", 0, 2), body.number("top_p", 0, 1)
    if top_p == 0:  # the smallest share of the probability is the most likely token alone
        temperature, top_p = 0.0, None
    seed = body.integer("seed", -(2**63), 2**63 - 1)
    return Sampling(
        temperature,
        top_p,
        body.integer("top_k", 0, MAX_TOKENS) or None,
        None if seed is None else seed % 2**64,
        body.number("frequency_penalty", -2, 2) or None,
        body.number("presence_penalty", -2, 2) or None,
    )


def max_tokens_of(body: Fields) -> int | None:
    older, newer = body.integer("max_tokens", 1, MAX_TOKENS), body.integer("max_completion_tokens", 1, MAX_TOKENS)
    if older is not None and newer is not None and older != newer:
        raise RequestRefused(
            f"'max_tokens' is {older} and 'max_completion_tokens' is {newer}; send one of them", param="max_tokens"
        )
    return newer if older is None else older


def stop_of(body: Fields) -> tuple[str, ...]:
    value = body.get("stop")
    if value is None or value == []:
        return ()
    stops = [value] if isinstance(value, str) else body.items("stop", MAX_STOPS)
    texts = tuple(text_of(each, "stop" if isinstance(value, str) else f"stop[{index}]") for index, each in enumerate(stops))
    if not all(texts):
        raise RequestRefused("'stop' holds an empty string, which would stop at once; leave it out", param="stop")
    return texts


def n_of(body: Fields) -> int:
    """Answers to each prompt. None is thrown away, so `best_of` is nothing else than `n`."""
    n = body.integer("n", 1, MAX_N) or 1
    best_of = body.get("best_of")
    if best_of is not None and (isinstance(best_of, bool) or best_of != n):
        raise RequestRefused(
            f"'best_of' is taken as {n} only, which is 'n': every answer made is given; leave it out",
            param="best_of",
            fault="unsupported_parameter",
        )
    return n


def top_logprobs_of(style: Style, body: Fields) -> int | None:
    """Of how many likeliest tokens at each place; None: none are asked for."""
    if style is Style.COMPLETION:
        return body.integer("logprobs", 0, MAX_TOP_LOGPROBS)
    top, asked = body.integer("top_logprobs", 0, MAX_TOP_LOGPROBS), body.flag("logprobs")
    if top and not asked:
        raise RequestRefused("'top_logprobs' goes with 'logprobs': true only; send both, or neither", param="top_logprobs")
    return (top or 0) if asked else None


def logit_bias_of(body: Fields) -> tuple[tuple[int, float], ...]:
    biases = body.fields("logit_bias")
    if biases is None:
        return ()
    if len(biases.names) > MAX_BIASES:
        raise RequestRefused(
            f"'logit_bias' names {len(biases.names)} tokens; at most {MAX_BIASES} are taken", param="logit_bias"
        )
    return tuple(sorted((_token(name), biases.number(name, -100, 100) or 0.0) for name in biases.names))


def _token(name: str) -> int:
    if not (name.isascii() and name.isdecimal() and len(name) <= 10 and int(name) < 2**32):
        raise RequestRefused(
            f"'logit_bias' names {name[:40]!r}, which is no token's id; ids are whole numbers from 0",
            param="logit_bias",
        )
    return int(name)
