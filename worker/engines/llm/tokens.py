"""A model's tokenizer and its chat template: requests become tokens, tokens become bytes.

What a user wrote never becomes a control token, be it in a prompt or in a conversation: only the model's own template writes
those. The tokenizer itself is ONNX Runtime GenAI's, opened without the model's weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import InvalidArgument
from worker.engine import Message, ModelRefused
from worker.engines.described import first_line
from worker.engines.llm.control import ControlTokens
from worker.types import ModelSpec

FILE = "tokenizer.json"
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_WORD_START = "▁"  # how SentencePiece writes a space


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What each token stands for."""

    token_bytes: Mapping[int, bytes]
    control: Mapping[int, str]
    """Tokens that are no text."""
    leading_space: bool
    """The first word of a text begins with a space that is not part of it."""

    @property
    def longest(self) -> int:
        """Bytes of the longest token."""
        return max(map(len, self.token_bytes.values()), default=1)


class Tokens:
    """One model's tokenizer. `encode` is for one thread at a time; the rest is read only."""

    def __init__(self, spec: ModelSpec, tokenizer: Any, vocabulary: Vocabulary) -> None:
        self._spec = spec
        self._tokenizer: Any = tokenizer
        self._vocabulary = vocabulary
        self._control = ControlTokens(vocabulary.control.values())
        self._before = self._text_start()
        self._longest = vocabulary.longest

    @property
    def leading_space(self) -> bool:
        return self._vocabulary.leading_space

    def encode(self, prompt: str | Sequence[Message]) -> list[int]:
        """A prompt as it is, or a conversation through the model's template. Raises InvalidArgument."""
        if isinstance(prompt, str):
            return [*self._before, *self._encoded(self._control.as_text(prompt))] if prompt else []
        cut = self._control.unused_mark(message.content for message in prompt)
        return self._encoded(self._rendered(prompt, cut).split(cut))

    def least(self, prompt: str | Sequence[Message]) -> int:
        """Fewer tokens than this the prompt cannot have; told without reading it."""
        texts = (prompt,) if isinstance(prompt, str) else (message.content for message in prompt)
        return sum(map(len, texts)) // self._longest

    def token_bytes(self, token: int) -> bytes:
        """What a token adds to a text; nothing for a control token."""
        return b"" if token in self._vocabulary.control else self._vocabulary.token_bytes.get(token, b"")

    def name(self, token: int) -> bytes:
        """What a token is called, be it text or control."""
        return self._vocabulary.token_bytes.get(token, b"")

    def _encoded(self, pieces: Sequence[str]) -> list[int]:
        try:
            return [int(token) for piece in pieces if piece for token in self._tokenizer.encode(piece)]
        except RuntimeError as error:  # GenAI's word for a text that its vocabulary does not cover
            raise InvalidArgument(
                f"the tokenizer of model {self._spec.model!r} cannot take this text; leave out characters that it does not know"
            ) from error

    def _rendered(self, messages: Sequence[Message], cut: str) -> str:
        if not messages:
            raise InvalidArgument("the conversation has no messages; send at least one")
        for message in messages:
            if message.role not in _ROLES:
                raise InvalidArgument(f"a message has role {message.role!r}; known: {', '.join(sorted(_ROLES))}")
        turns = [{"role": each.role, "content": self._control.marked(each.content, cut)} for each in messages]
        try:
            return str(self._tokenizer.apply_chat_template(json.dumps(turns), add_generation_prompt=True))
        except Exception as error:
            raise InvalidArgument(
                f"model {self._spec.model!r} has no chat template that takes this conversation ({first_line(error)});"
                " change the messages, or send a prompt instead"
            ) from error

    def _text_start(self) -> list[int]:
        """The tokens that this model wants before every text; a template writes them itself."""
        plain = [int(token) for token in self._tokenizer.encode("a")]
        self._tokenizer.update_options(add_special_tokens="true")
        try:
            whole = [int(token) for token in self._tokenizer.encode("a")]
        finally:
            self._tokenizer.update_options(add_special_tokens="false")
        start = next((at for at in range(len(whole)) if whole[at : at + len(plain)] == plain), 0)
        return whole[:start]


def open_tokens(spec: ModelSpec, folder: Path, genai: Any) -> Tokens:
    """Raises ModelRefused."""
    try:
        written = json.loads((folder / FILE).read_bytes())
        vocabulary = read_vocabulary(written)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelRefused(f"model {spec.model!r} has no readable {FILE} beside its configuration") from error
    try:
        tokenizer = genai.Tokenizer(str(folder))
        tokenizer.update_options(add_special_tokens="false")
        return Tokens(spec, tokenizer, vocabulary)
    except Exception as error:
        raise ModelRefused(f"ONNX Runtime GenAI cannot read model {spec.model!r}'s tokenizer: {first_line(error)}") from error


def read_vocabulary(written: Mapping[str, Any]) -> Vocabulary:
    """From the content of a tokenizer.json. Raises KeyError, TypeError, ValueError, AttributeError for what is none."""
    kept: Any = written["model"]["vocab"]
    named = kept.items() if isinstance(kept, dict) else ((entry[0], index) for index, entry in enumerate(kept))
    decoders = list(_decoders(written.get("decoder")))
    kinds = {str(decoder["type"]) for decoder in decoders}
    of = _from_byte_letters if "ByteLevel" in kinds else _from_words
    token_bytes = {int(token): of(name) for name, token in named}
    control: dict[int, str] = {}
    for added in written.get("added_tokens") or ():
        token_bytes[int(added["id"])] = str(added["content"]).encode()
        if added.get("special"):
            control[int(added["id"])] = str(added["content"])
    strips = any(decoder["type"] == "Strip" and decoder.get("start") for decoder in decoders) or "Metaspace" in kinds
    return Vocabulary(token_bytes, control, leading_space=strips)


def _decoders(written: Any) -> Iterator[Mapping[str, Any]]:
    if written is None:
        return
    if written["type"] == "Sequence":
        for each in written["decoders"]:
            yield from _decoders(each)
    else:
        yield written


def _byte_letters() -> dict[str, int]:
    """How byte-level tokenizers write bytes as letters: printable ones as themselves, the others from U+0100 on.

    Source: GPT-2's tokenizer, whose table all of them share.
    """
    themselves = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in themselves]
    return {chr(byte): byte for byte in themselves} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTE_OF = _byte_letters()


def _from_byte_letters(name: str) -> bytes:
    try:
        return bytes([_BYTE_OF[letter] for letter in name])
    except KeyError:  # an entry that no text becomes, such as a control token's
        return name.encode()


def _from_words(name: str) -> bytes:
    if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        return bytes.fromhex(name[3:5])
    return name.replace(_WORD_START, " ").encode()
