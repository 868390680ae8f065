"""The line that a node joins with: read back as it was written, and told from one that was not copied whole."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runtime.errors import InvalidArgument
from runtime.identity import Authority
from runtime.join_line import JoinLine, read_join_line

ADDRESSES = st.lists(st.sampled_from(["registry:7443", "10.0.0.1:7443", "[::1]:1"]), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.open(tmp_path_factory.mktemp("ca"))


@given(token_id=st.binary(min_size=8, max_size=8), secret=st.binary(min_size=32, max_size=32), addresses=ADDRESSES)
def test_round_trip(authority: Authority, token_id: bytes, secret: bytes, addresses: list[str]) -> None:
    line = JoinLine(token_id.hex(), secret, authority.certificate_der, tuple(addresses))
    assert read_join_line(str(line)) == line
    assert read_join_line(f"  {str(line)[:70]}\r\n{str(line)[70:]}\n") == line
    assert line.authority_pem == authority.certificate_pem
    assert str(line).startswith("pnj1.")
    assert secret.hex() not in repr(line)


@given(data=st.data())
def test_a_line_that_was_cut_or_altered_says_so(authority: Authority, data: st.DataObject) -> None:
    text = str(JoinLine("ab" * 8, b"s" * 32, authority.certificate_der, ("registry:7443",)))
    at = data.draw(st.integers(len("pnj1."), len(text) - 1))
    with pytest.raises(InvalidArgument, match="copied whole"):
        read_join_line(text[:at])
    letter = data.draw(st.sampled_from([letter for letter in "AZaz09-_" if letter != text[at]]))
    altered = text[:at] + letter + text[at + 1 :]
    try:
        same = read_join_line(altered)
    except InvalidArgument:
        return
    assert str(same) == text  # the last letter has bits that mean nothing


@given(st.text())
@example("")
@example("pnj1.")
@example("pnj1." + "A" * 20_000)
@example("pnj2.AAAA")
@example("pnk_abc")
def test_anything_else_is_one_clear_error(text: str) -> None:
    with pytest.raises(InvalidArgument, match="join token"):
        read_join_line(text)


@given(st.binary(max_size=300))
def test_a_checksum_alone_makes_no_line(body: bytes) -> None:
    import base64
    import hashlib

    raw = body + hashlib.sha256(body).digest()[:4]
    with pytest.raises(InvalidArgument, match="join token"):
        read_join_line("pnj1." + base64.urlsafe_b64encode(raw).decode())
