"""Log probabilities in OpenAI's answers: one way in chats, an older one in completions. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from worker.engine import Logprob, TokenLogprob
from worker.engines.upstream.json import Malformed, items_of, number_of, object_of, text_of


def chat_tokens(logprobs: Mapping[str, object]) -> tuple[TokenLogprob, ...]:
    tokens = (object_of(each) for each in items_of(logprobs.get("content")))
    return tuple(
        TokenLogprob(_logprob(token), tuple(_logprob(object_of(each)) for each in items_of(token.get("top_logprobs"))))
        for token in tokens
    )


def _logprob(token: Mapping[str, object]) -> Logprob:
    """An upstream's token ids are its own and stay there: 0 stands for all of them."""
    text, given = text_of(token.get("token")), token.get("bytes")
    try:
        raw = text.encode(errors="replace") if given is None else bytes(int(number_of(each)) for each in items_of(given))
    except ValueError as error:
        raise Malformed("a token's bytes that are none") from error
    return Logprob(0, raw, number_of(token.get("logprob")))


def text_tokens(logprobs: Mapping[str, object]) -> tuple[TokenLogprob, ...]:
    """/completions lists tokens, their log probabilities and tables of the likeliest side by side."""
    tokens, values = items_of(logprobs.get("tokens")), items_of(logprobs.get("token_logprobs"))
    if len(tokens) != len(values):
        raise Malformed(f"{len(values)} log probabilities for {len(tokens)} tokens")
    tops = items_of(logprobs.get("top_logprobs")) or [None] * len(tokens)
    return tuple(
        TokenLogprob(Logprob(0, text_of(token).encode(errors="replace"), number_of(value)), _table(top))
        for token, value, top in zip(tokens, values, tops, strict=False)
    )


def _table(top: object) -> tuple[Logprob, ...]:
    if top is None:
        return ()
    entries = [Logprob(0, token.encode(errors="replace"), number_of(value)) for token, value in object_of(top).items()]
    return tuple(sorted(entries, key=lambda entry: -entry.logprob))
