"""Control tokens that a user wrote: cut wherever they are, and nowhere else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import InvalidArgument
from worker.engines.llm.control import _PRIVATE_USE, ControlTokens

KNOWN = ("<|end|>", "<|user|>", "<s>", "</s>", "[INST]")
CONTROL = ControlTokens(KNOWN)
MARK = "\ue000"
PIECES = st.sampled_from([*KNOWN, "<", "<|", "|>", "nd|>", "<|e", ">", "s", " ", "\n", "word", "[", "INST]"])
TEXTS = st.lists(PIECES, max_size=8).map("".join)


@settings(deadline=None)
@given(TEXTS)
def test_no_piece_has_a_control_token_and_nothing_is_lost(text: str) -> None:
    pieces = CONTROL.as_text(text)
    assert "".join(pieces) == text
    assert all(pieces)
    assert not any(known in piece for piece in pieces for known in KNOWN)


@settings(deadline=None)
@given(st.text(st.characters(exclude_characters="<[")))
def test_text_without_any_is_not_cut(text: str) -> None:
    assert CONTROL.as_text(text) == ([text] if text else [])


@settings(deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=4), st.sampled_from(["", " ", "\n", "word"]))
def test_neither_alone_nor_put_together_do_texts_make_one(texts: list[str], between: str) -> None:
    """As a template does that strips what it is given and writes it one after the other."""
    marked = [CONTROL.marked(text, MARK) for text in texts]
    assert [each.replace(MARK, "") for each in marked] == texts
    for rendered in (between.join(marked), between.join(each.strip() for each in marked)):
        whole = "".join(rendered.split(MARK))
        assert not any(known in piece for piece in rendered.split(MARK) for known in KNOWN), whole


def test_the_mark_is_no_letter_of_the_texts() -> None:
    assert CONTROL.unused_mark(["a", "\ue000\ue001"]) == "\ue002"
    everything = "".join(chr(code) for codes in _PRIVATE_USE for code in codes)
    with pytest.raises(InvalidArgument, match="private use"):
        CONTROL.unused_mark([everything])


def test_a_tokenizer_without_control_tokens() -> None:
    assert ControlTokens(()).as_text("<s>") == ["<s>"]
    assert ControlTokens(("x",)).marked(" x ", MARK) == " x "
