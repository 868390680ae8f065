"""Bodies that come compressed."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.rest.compression import Unpacking, unpack
from gateway.rest.errors import BodyTooLarge, RequestRefused


def bare(content: bytes) -> bytes:
    machine = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return machine.compress(content) + machine.flush()


PACKERS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress, "x-gzip": gzip.compress}


@given(st.binary(max_size=500), st.sampled_from(sorted(PACKERS)))
def test_what_was_packed_comes_out(content: bytes, name: str) -> None:
    assert unpack(memoryview(PACKERS[name](content)), name, 500) == content


def test_bare_deflate_is_taken_too() -> None:
    assert unpack(memoryview(bare(b"content")), "deflate", 500) == b"content"


@pytest.mark.parametrize("name", ["gzip", "deflate"])
def test_a_bomb_is_refused_at_the_bound(name: str) -> None:
    packed = memoryview(PACKERS[name](bytes(1_000_000)))
    assert len(unpack(packed, name, 1_000_000)) == 1_000_000
    with pytest.raises(BodyTooLarge, match="more than 999999 bytes"):
        unpack(packed, name, 999_999)


@pytest.mark.parametrize("name", ["gzip", "deflate"])
def test_what_is_cut_or_followed_is_refused(name: str) -> None:
    packed = PACKERS[name](b"content" * 10)
    with pytest.raises(RequestRefused, match="ends early"):
        unpack(memoryview(packed[:-3]), name, 500)
    with pytest.raises(RequestRefused, match="2 bytes follow"):
        unpack(memoryview(packed + b"zz"), name, 500)


@given(st.binary(max_size=100), st.sampled_from(["gzip", "deflate"]))
def test_no_bytes_do_worse_than_a_refusal(body: bytes, name: str) -> None:
    with suppress(RequestRefused, BodyTooLarge):
        unpack(memoryview(body), name, 1_000)


async def test_by_the_name_that_came() -> None:
    unpacking = Unpacking(1_000_000)
    large = bytes(range(256)) * 3_000
    for name in ("", "identity", " GZip ", "deflate"):
        pack = PACKERS.get(name.strip().lower(), bytes)
        assert bytes(await unpacking.unpacked(memoryview(pack(large)), name)) == large
    with pytest.raises(RequestRefused, match="'br' is not known"):
        await unpacking.unpacked(memoryview(b"x"), "br")
