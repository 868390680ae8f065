"""How the trail calls things."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.audit.policy import action_of, is_read, shown, subject_of


@pytest.mark.parametrize(
    ("method", "action", "read"),
    [
        ("CreateKey", "key.create", False),
        ("RevokeJoinToken", "join_token.revoke", False),
        ("MoveAlias", "alias.move", False),
        ("RollBackAlias", "alias.roll_back", False),
        ("LogOut", "logout", False),
        ("FetchFile", "file.fetch", False),
        ("Enrol", "enrol", False),
        ("ListEntries", "entries.list", True),
        ("GetVersion", "version.get", True),
        ("WhoAmI", "am_i.who", True),
        ("ResolveKey", "key.resolve", True),
    ],
)
def test_methods_become_actions(method: str, action: str, read: bool) -> None:
    assert (action_of(method), is_read(method)) == (action, read)


def test_a_request_is_about_the_most_particular_thing_it_names() -> None:
    assert subject_of({"tenant": "acme", "key_id": "k"}) == "k"
    assert subject_of({"tenant": "acme", "password": "secret"}) == "acme"
    assert subject_of({"password": "secret"}) == ""


@given(st.text(max_size=300), st.integers(0, 64))
def test_what_is_written_down_fits_and_can_be_printed(text: str, characters: int) -> None:
    written = shown(text, characters)
    assert len(written) <= characters
    assert written.isprintable()
    assert not text[:characters].isprintable() or written == text[:characters]
