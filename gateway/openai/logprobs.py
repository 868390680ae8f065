"""Log probabilities as OpenAI writes them: one way in chats, an older one in completions. Pure.

Source: OpenAI's API reference, "logprobs" of the chat completion object and of the completion object.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Sequence

from gateway.openai.pieces import Logprob, TokenLogprob

_LEAST = -9999.0
"""What stands for a probability of 0, which has no logarithm that JSON knows."""


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, object]:
    content = [{**_told(each.chosen), "top_logprobs": [_told(top) for top in each.top]} for each in tokens]
    return {"content": content, "refusal": None}


class TextLogprobs:
    """Those of one completion, which says of each token where in prompt and answer it begins: in characters."""

    def __init__(self, prompt_characters: int) -> None:
        self._offset = prompt_characters
        self._letters = codecs.getincrementaldecoder("utf-8")("replace")

    def told(self, tokens: Sequence[TokenLogprob]) -> dict[str, object]:
        """Of the tokens that come next."""
        return {
            "tokens": [_name(each.chosen.token) for each in tokens],
            "token_logprobs": [_number(each.chosen) for each in tokens],
            "top_logprobs": [{_name(top.token): _number(top) for top in each.top} if each.top else None for each in tokens],
            "text_offset": [self._passed(each.chosen.token) for each in tokens],
        }

    def _passed(self, token: bytes) -> int:
        begins = self._offset
        self._offset += len(self._letters.decode(token))
        return begins


def _told(logprob: Logprob) -> dict[str, object]:
    return {
        "token": logprob.token.decode(errors="replace"),
        "logprob": _number(logprob),
        "bytes": list(logprob.token),
    }


def _name(token: bytes) -> str:
    """As text; one that is no whole characters by its bytes, so that different tokens have different names."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def _number(logprob: Logprob) -> float:
    value = logprob.logprob
    return _LEAST if math.isnan(value) else min(max(value, _LEAST), 0.0)
