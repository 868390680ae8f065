"""What stays of a request's words."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.request_log.redaction import MOST_KEPT_CHARACTERS, MOST_READ_BYTES, redacted, redacted_text

BEGIN = "-----" + "BEGIN"
"""Apart, so that this file does not look as if it held a key."""

TABLE = [
    ("Why is the sky blue?", "Why is the sky blue?"),
    ("mail ann.lee+x@mail.example.co.uk today", "mail [email] today"),
    ("card 4111 1111 1111 1111.", "card [number]."),
    ("card 4111-1111-1111-1111", "card [number]"),
    ("call +44 20 7946 0958", "call [number]"),
    ("in 2026 we sold 1200 of 15", "in 2026 we sold 1200 of 15"),
    ("key sk-pn-AbCdEf0123456789AbCdEf", "key [secret]"),
    ("use sk-proj-abcdefghijklmnop", "use [secret]"),
    ("ghp_abcdefghijklmnopqrstuvwxyz0123456789", "[secret]"),
    ("AKIA" + "IOSFODNN7EXAMPLE", "[secret]"),
    ("Authorization: Bearer abc.def-ghi_jkl", "Authorization: [secret]"),
    ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc-def", "[secret]"),
    ("password: hunter22, ok", "password: [secret], ok"),
    ("postgresql://ann:hunter2@db/x", "postgresql://ann:[secret]@db/x"),
    (f"{BEGIN} PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY----- after", "[secret] after"),
    (f"{BEGIN} RSA PRIVATE KEY-----\nMIIB and no end", "[secret]"),
    ("see data:image/png;base64,iVBORw0KGgo= there", "see [data] there"),
    ("x" * 100, "[blob]"),
    ("DE89370400440532013000", "[number]"),
]


@pytest.mark.parametrize(("text", "kept"), TABLE)
def test_text(text: str, kept: str) -> None:
    found = redacted_text(text)
    assert found == kept or (kept == "[number]" and found.endswith("[number]"))


DOCUMENTS = [
    ({"model": "m", "max_tokens": 16, "temperature": 0.5, "stream": True}, None),
    (
        {"api_key": "abc", "password": "x", "Authorization": "y"},
        dict.fromkeys(("api_key", "password", "Authorization"), "[secret]"),
    ),
    ({"token": {"deep": "abc"}}, {"token": "[secret]"}),
    ({"token_ids": [1, 2, 3], "max_completion_tokens": 3}, None),
    ({"input": [0.5] * 17}, {"input": "[17 numbers]"}),
    ({"data": [[1, 2, 3]] * 6}, {"data": "[18 numbers]"}),
    ({"input": [0.5] * 16}, None),
    ({"n": 4111111111111111}, {"n": "[number]"}),
    ({"ann@example.com": 1}, {"[email]": 1}),
    (
        {"messages": [{"role": "user", "content": "I am ann@example.com"}]},
        {"messages": [{"role": "user", "content": "I am [email]"}]},
    ),
    ([None, True, "x"], None),
    ("bob@example.com", "[email]"),
]


@pytest.mark.parametrize(("document", "kept"), DOCUMENTS)
def test_documents(document: object, kept: object) -> None:
    assert json.loads(redacted(json.dumps(document).encode())) == (document if kept is None else kept)


def test_no_spelling_of_a_string_hides_what_is_in_it() -> None:
    assert redacted(b'{"x":"ann\\u0040example.com"}') == '{"x":"[email]"}'


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"a=1&b=2", b"[" * 60_000, b'{"a":"\xff"}', b"NaNs"])
def test_what_is_no_json_is_not_kept(body: bytes) -> None:
    assert redacted(body) == f"[{len(body)} bytes that are no JSON]"


def test_what_is_too_long_is_not_read_and_what_is_long_is_shortened() -> None:
    body = json.dumps("a b " * MOST_READ_BYTES).encode()
    assert redacted(body) == f"[{len(body)} bytes]"
    body = json.dumps("a b " * 5_000).encode()
    assert len(redacted(body)) == MOST_KEPT_CHARACTERS
    assert redacted(body).endswith("…")


_json = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(max_size=50),
    lambda each: st.lists(each, max_size=5) | st.dictionaries(st.text(max_size=10), each, max_size=5),
    max_leaves=20,
)
_secrets = st.sampled_from(
    ["ann.lee@example.com", "4111 1111 1111 1111", "sk-pn-AbCdEf0123456789AbCdEf", "Bearer abcdefgh12345678", "q" * 80]
)


@settings(deadline=None)
@given(
    document=_json,
    secret=_secrets,
    before=st.text(alphabet=" .,;:\n\"'()é☃", max_size=10),
    after=st.text(alphabet=" ,;\n\"'()", max_size=10),
)
def test_a_secret_is_nowhere_in_what_is_kept(document: object, secret: str, before: str, after: str) -> None:
    body = json.dumps({"x": [document, {"y": before + secret + after}]}).encode()
    kept = redacted(body)
    assert secret not in kept
    assert len(kept) <= MOST_KEPT_CHARACTERS
    assert "\x00" not in kept
    kept.encode()


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_taken(body: bytes) -> None:
    assert len(redacted(body)) <= MOST_KEPT_CHARACTERS


@pytest.mark.parametrize(
    "bad", ["a" * 60_000, "1 " * 30_000, "@a." * 20_000, "-----BEGIN " * 5_000, "://a:" * 12_000, "data:" * 12_000]
)
def test_no_text_takes_long(bad: str) -> None:
    """Of 60 KiB: each would take minutes with a pattern that tries every way to part it."""
    redacted_text(bad)
