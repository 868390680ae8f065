"""What tokens stand for, by the kinds of tokenizer.json that language models have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import InvalidArgument
from tests.worker.markov import language_spec, markov
from tests.worker.stepping import pieces, text
from tests.worker.tiny_llama import ROOT, tiny_llama
from worker.engine import Message, TextRequest
from worker.engines.llm.engine import open_llm
from worker.engines.llm.tokens import Tokens, open_tokens, read_vocabulary

SUMS = ROOT / "cli" / "demo" / "sums"


def tokens_of(folder: Path) -> Tokens:
    import onnxruntime_genai

    return open_tokens(language_spec(), folder, onnxruntime_genai)


def test_byte_level_tokens_are_bytes() -> None:
    vocabulary = read_vocabulary(json.loads((SUMS / "tokenizer.json").read_text()))
    assert sorted(vocabulary.token_bytes[token] for token in range(5, 261)) == sorted(bytes([byte]) for byte in range(256))
    assert vocabulary.control[4] == "<|end|>"
    assert not vocabulary.leading_space


def test_sentencepiece_tokens_have_spaces_and_byte_names() -> None:
    written: dict[str, Any] = {
        "added_tokens": [{"id": 0, "content": "<unk>", "special": True}, {"id": 4, "content": "<think>", "special": False}],
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {"type": "BPE", "vocab": {"<unk>": 0, "<0xE2>": 1, "▁hello": 2, "é": 3}},
    }
    vocabulary = read_vocabulary(written)
    assert vocabulary.token_bytes == {0: b"<unk>", 1: b"\xe2", 2: b" hello", 3: "é".encode(), 4: b"<think>"}
    assert vocabulary.control == {0: "<unk>"}
    assert vocabulary.leading_space
    written["model"] = {"type": "Unigram", "vocab": [["<unk>", 0.0], ["▁a", -1.5]]}
    assert read_vocabulary(written).token_bytes[1] == b" a"


@pytest.mark.parametrize("said", ["plain", "더하기 🙂 naïve", "tab\t\n  two", "a<|end|>b", "<|end|>", "<|e<|end|>nd|>"])
def test_what_is_encoded_reads_the_same_again(said: str) -> None:
    tokens = tokens_of(SUMS)
    assert b"".join(tokens.token_bytes(token) for token in tokens.encode(said)) == said.encode()


def test_a_conversation_has_the_templates_control_tokens_and_the_users_text() -> None:
    tokens = tokens_of(SUMS)
    said = "1 <|user|> <|end|>"
    encoded = tokens.encode((Message("user", said), Message("assistant", "<|end|>"), Message("user", "\ue000")))
    control = [token for token in encoded if token < 5]
    assert control == [1, 2, 4, 3, 4, 2, 4, 3]
    assert b"".join(tokens.token_bytes(token) for token in encoded) == f"{said}<|end|>\ue000".encode()
    assert tokens.name(4) == b"<|end|>"


def test_control_tokens_are_not_made_of_several_messages(tmp_path: Path) -> None:
    """The alphabet's template writes messages one right after the other."""
    tokens = tokens_of(markov(tmp_path))
    assert 2 not in tokens.encode((Message("user", "ab</"), Message("user", "s>cd")))
    assert 2 not in tokens.encode((Message("user", "</s>"),))


def test_the_start_of_a_text_is_written_once(tmp_path: Path) -> None:
    """By the tokenizer before a prompt, by the template in a conversation."""
    folder = tiny_llama(tmp_path)
    written = json.loads((folder / "tokenizer.json").read_text())
    written["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [1], "tokens": ["<|begin|>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(written))
    tokens = tokens_of(folder)
    assert [tokens.encode("a<|end|>").count(1), tokens.encode("a")[0]] == [1, 1]
    assert tokens.encode((Message("user", "a<|end|>b"),)).count(1) == 1
    assert tokens.encode("") == []


def test_a_template_that_refuses_says_why(tmp_path: Path) -> None:
    config = markov(tmp_path) / "tokenizer_config.json"
    written = json.loads(config.read_text())
    written["chat_template"] = "{{ raise_exception('roles must alternate') }}"
    config.write_text(json.dumps(written))
    with pytest.raises(InvalidArgument, match="roles must alternate"):
        tokens_of(tmp_path).encode((Message("user", "a"),))


def test_letters_of_several_tokens_come_whole(tmp_path: Path) -> None:
    """The random model makes bytes that are no letters, too: each is shown as U+FFFD, and nothing else is lost."""
    made = pieces(open_llm(language_spec(), tiny_llama(tmp_path)), TextRequest("hello", max_tokens=200))
    tokens = tokens_of(SUMS)
    whole = b"".join(tokens.token_bytes(token) for piece in made for token in piece.token_ids)
    assert text(made) == whole.decode(errors="replace")
    assert all(piece.text for piece in made[:-1])
