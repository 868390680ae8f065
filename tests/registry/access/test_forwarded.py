"""What Envoy says of a client's certificate, read strictly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.access.forwarded import forwarded_uris
from registry.access.types import CredentialsRefused

OPERATOR = "penstock://operator/" + "a" * 20
HASH = "468ed33be74eee6556d90c0149c1309e9ba61d6425303443c0748a02dd8de688"


@pytest.mark.parametrize(
    "header",
    [
        f"URI={OPERATOR}",
        f"By=penstock://envoy/x;Hash={HASH};URI={OPERATOR}",
        f'Hash={HASH};Subject="/C=US/ST=CA/L=San Francisco/OU=A;B,C/CN=\\"Test\\" Client";URI={OPERATOR};DNS=a.b;DNS=c.d',
        f'uri="{OPERATOR}"',
        f"hash=;uri={OPERATOR}",
        f"URI=penstock://worker/first,URI={OPERATOR}",
        f'Subject="CN=x,URI=penstock://worker/first",Hash={HASH};URI={OPERATOR}',
        f"URI={OPERATOR};URI=https://else.where/?a=b",
    ],
)
def test_the_last_elements_node_is_meant(header: str) -> None:
    uris = forwarded_uris(header)
    assert OPERATOR in uris
    assert not any(uri.startswith("penstock://worker") for uri in uris)


@pytest.mark.parametrize(
    "header",
    [
        "",
        ",",
        f"URI={OPERATOR},",
        f"URI={OPERATOR};",
        f",URI={OPERATOR}",
        f"URI={OPERATOR} ,Hash",
        f"URI={OPERATOR},Hash={HASH}",
        f"URI={OPERATOR};Unknown=1",
        f'Subject="unfinished;URI={OPERATOR}',
        f'Subject="CN=x\\";URI={OPERATOR}',
        f'Subject="CN=x"y;URI={OPERATOR}',
        f'Subject=CN="x";URI={OPERATOR}',
        f'Subject="CN=x;URI={OPERATOR}"',
        f"URI={OPERATOR};URI=penstock://worker/b",
        f"URI={OPERATOR};URI={OPERATOR}",
        "URI=penstock://operator",
        "URI=penstock://nobody/x",
        "URI=PENSTOCK://operator/x",
        f"URI= {OPERATOR}",
        f" URI={OPERATOR}",
    ],
)
def test_anything_else_names_nobody(header: str) -> None:
    with pytest.raises(CredentialsRefused):
        forwarded_uris(header)


@given(subject=st.text(st.characters(codec="ascii", exclude_characters="\\\n"), max_size=80), before=st.booleans())
def test_nothing_in_a_quoted_value_is_taken_for_a_name(subject: str, before: bool) -> None:
    """Whatever somebody had certified as a subject: Envoy escapes the quotes in it."""
    escaped = subject.replace('"', '\\"')
    element = f'Hash={HASH};Subject="{escaped}";URI={OPERATOR}'
    assert forwarded_uris(f"{element},{element}" if before else element) == (OPERATOR,)


@given(
    st.lists(st.sampled_from(["URI=", "By", "=", '"', ";", ",", "\\", " ", "x", "penstock://worker/b", OPERATOR]), max_size=12)
)
def test_garbage_is_refused_and_nothing_worse(parts: list[str]) -> None:
    header = "".join(parts)
    try:
        uris = forwarded_uris(header)
    except CredentialsRefused:
        return
    assert any(uri.startswith("penstock://") for uri in uris)


def test_a_long_header_is_read_in_no_time() -> None:
    with pytest.raises(CredentialsRefused):
        forwarded_uris('Subject="' + "\\a" * 15_000)
