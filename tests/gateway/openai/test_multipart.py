"""Forms as HTTP clients write them, and as they do not."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.openai.errors import RequestRefused
from gateway.openai.multipart import MAX_PARTS, Part, parts_of

TYPE = "multipart/form-data; boundary=xx"


def form(*parts: tuple[str, bytes], end: bytes = b"--xx--\r\n") -> bytes:
    return b"".join(b"--xx\r\n" + head.encode() + b"\r\n\r\n" + data + b"\r\n" for head, data in parts) + end


def named(name: str, data: bytes = b"") -> tuple[str, bytes]:
    return f'Content-Disposition: form-data; name="{name}"', data


def data_of(part: Part) -> bytes:
    return b"".join(part.views)


async def test_a_form_as_an_http_client_writes_it() -> None:
    files = {"file": ("lines é.jsonl", b"{}\n{}\n", "application/jsonl")}
    request = httpx.Request("POST", "http://x", data={"purpose": "batch"}, files=files)
    parts = await parts_of(request.headers["content-type"], request.read())
    assert parts["purpose"].text(10) == "batch"
    assert (parts["file"].filename, data_of(parts["file"])) == ("lines é.jsonl", b"{}\n{}\n")


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([b"\r\n--x", b"\r\n--xx", b"\r", b"\n", b"-", b"a" * 70_000, b"\r\n--xxy"]), max_size=12))
def test_every_byte_of_a_file_arrives_wherever_the_body_is_cut(pieces: list[bytes]) -> None:
    boundary = b"0123456789abcdef"
    content = b"".join(pieces)
    body = b'--%b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n%b\r\n--%b--\r\n' % (
        boundary,
        content.replace(b"xx", boundary[:-1]),
        boundary,
    )
    parts = asyncio.run(parts_of(f"multipart/form-data; boundary={boundary.decode()}", body))
    assert data_of(parts["file"]) == content.replace(b"xx", boundary[:-1])


@pytest.mark.parametrize(
    ("content_type", "body", "told"),
    [
        ("application/json", b"{}", "content type"),
        ("", b"", "content type"),
        ("multipart/form-data", form(), "boundary"),
        (f"multipart/form-data; boundary={'x' * 500}", form(), "no multipart/form-data"),
        (TYPE, b"", "ends before"),
        (TYPE, b"--xx\r\nContent-Disposition: form-data; name=", "ends before"),
        (TYPE, form(named("file", b"abc"), end=b""), "ends before"),
        (TYPE, b"nothing of the kind", "no multipart/form-data"),
        (TYPE, form(("Content-Type: text/plain", b"a")), "no name"),
        (TYPE, form(("Content-Disposition: form-data", b"a")), "no name"),
        (TYPE, form(named("a"), named("a")), "twice"),
        (TYPE, form(*(named(f"p{number}") for number in range(MAX_PARTS + 1))), "more than"),
        (TYPE, form((named("a")[0] + "\r\nContent-Transfer-Encoding: base64", b"YQ==")), "encoded as"),
        (TYPE, form((named("a")[0] + "\r\nX: " + "y" * 5000, b"")), "no multipart/form-data"),
        (TYPE, form((named("a")[0] + "".join(f"\r\nX{n}: y" for n in range(20)), b"")), "no multipart/form-data"),
    ],
)
async def test_what_is_no_form_is_told(content_type: str, body: bytes, told: str) -> None:
    with pytest.raises(RequestRefused, match=told):
        await parts_of(content_type, body)


async def test_a_field_has_a_bound_and_is_text() -> None:
    parts = await parts_of(TYPE, form(named("long", b"x" * 11), named("binary", b"\xff\xfe")))
    with pytest.raises(RequestRefused, match="11 bytes"):
        parts["long"].text(10)
    with pytest.raises(RequestRefused, match="UTF-8"):
        parts["binary"].text(10)
