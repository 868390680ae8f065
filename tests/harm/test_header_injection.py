"""Headers that are the mesh's own, sent by callers; and words of callers that would become headers of answers."""

from __future__ import annotations

from collections.abc import Mapping

import grpc
import grpc.aio
import pytest

from tests.gateway.edge import CALLER
from tests.gateway.openai.mesh import SECRET
from tests.harm.front import CHAT, Front
from tests.support.raw_http import exchanged
from tests.support.raw_http2 import block_of, data_frame, headers_frame, http2_connection, request_head

pytestmark = pytest.mark.asyncio(loop_scope="module")

OWN: Mapping[str, str] = {
    "x-penstock-http-status": "503",
    "x-penstock-model": "another",
    "x-penstock-model-version": "9",
    "x-penstock-cache": "hit",
    "x-penstock-overhead-ms": "0",
    "x-penstock-tenant": "other",
    "x-ratelimit-remaining-requests": "1000000",
    "x-ratelimit-limit-requests": "1000000",
    "retry-after": "86400",
    "grpc-status": "13",
    "grpc-message": "spoofed",
    "grpc-status-details-bin": "CA0SB3Nwb29mZWQ",
    "grpc-encoding": "gzip",
    "grpc-accept-encoding": "gzip",
    "x-envoy-original-path": "/v1/files",
    "x-envoy-upstream-rq-timeout-ms": "1",
    "x-envoy-upstream-rq-per-try-timeout-ms": "1",
    "x-envoy-expected-rq-timeout-ms": "1",
    "x-envoy-max-retries": "100",
    "x-envoy-retry-on": "5xx",
    "x-envoy-retry-grpc-on": "unavailable",
    "x-envoy-hedge-on-per-try-timeout": "true",
    "x-envoy-upstream-alt-stat-name": "spoofed",
    "x-envoy-decorator-operation": "spoofed",
    "x-envoy-force-trace": "1",
    "x-envoy-internal": "true",
    "x-envoy-external-address": "198.51.100.7",
    "x-envoy-ip-tags": "spoofed",
    "x-envoy-attempt-count": "9",
    "x-forwarded-client-cert": "By=spiffe://penstock/gateway;URI=spiffe://penstock/envoy",
    "x-forwarded-proto": "https",
    "x-forwarded-host": "another",
    "forwarded": "for=198.51.100.7",
    "x-http-method-override": "DELETE",
    "content-location": "/v1/files",
    "te": "trailers",
}
"""Each of them alone, and all at once, is as if it had not been sent. A caller may cut its own time by grpc-timeout."""

NOT_PASSED_ON = ("x-envoy-internal", "x-envoy-external-address", "x-forwarded-client-cert", "x-envoy-expected-rq-timeout-ms")
"""What Envoy alone may say to a gateway."""

JUNK_IDS: Mapping[str, bytes] = {
    "a NUL": b"a\0b",
    "a carriage return": b"a\rset-cookie: x=1",
    "a folded line": b"a\r\n set-cookie: x=1",
    "a line": b"a\r\nset-cookie: x=1",
    "an escape": b"a\x1b[31mb",
    "Latin-1": b"\xff\xfe",
    "ten thousand letters": b"a" * 10_000,
}


@pytest.mark.parametrize("name", [*OWN, "all of them"])
async def test_headers_of_the_mesh_are_nothing_from_a_caller(front: Front, name: str) -> None:
    plain, sent = await front.chat(), OWN if name == "all of them" else {name: OWN[name]}
    front.seen.take()
    answer = await front.chat(**sent)
    (seen,) = front.seen.take()
    assert (answer.status_code, answer.json()["choices"]) == (200, plain.json()["choices"])
    volatile = {"date", "x-request-id", "content-length", "x-penstock-overhead-ms", "openai-processing-ms"}
    for header in {*answer.headers, *plain.headers} - volatile:
        assert answer.headers.get(header) == plain.headers.get(header), header
    for header in NOT_PASSED_ON:
        assert seen[1].get(header) != OWN[header], header


async def test_headers_of_the_mesh_do_not_make_a_refusal_an_answer(front: Front) -> None:
    answer = await front.client.post(
        CHAT, content=b"{}", headers={**OWN, "x-penstock-http-status": "200", "content-type": "application/json"}
    )
    assert answer.status_code == 401


@pytest.mark.parametrize("claimed", ["198.51.100.7", "198.51.100.7, 127.0.0.1", "::1", "x" * 5_000, ", ,", "127.0.0.1:1"])
async def test_where_a_call_comes_from_is_what_envoy_saw(front: Front, claimed: str) -> None:
    front.seen.take()
    assert (await front.chat()).status_code == 200
    assert (await front.chat(**{"x-forwarded-for": claimed})).status_code == 200
    plain, spoofed = (str(headers["x-forwarded-for"]) for _, headers in front.seen.take())
    assert spoofed.rpartition(",")[2].strip() == plain


@pytest.mark.parametrize("name", JUNK_IDS)
async def test_an_id_that_is_none_is_not_given_back(front: Front, name: str) -> None:
    head = b"GET /v1/models HTTP/1.1\r\nhost: edge\r\nauthorization: Bearer %s\r\n" % SECRET.encode()
    connection = await exchanged(front.http, head + b"x-request-id: " + JUNK_IDS[name] + b"\r\n\r\n")
    assert len(connection.statuses) <= 1
    headers = connection.received.partition(b"\r\n\r\n")[0]
    assert b"set-cookie:" not in b"\n".join(line for line in headers.split(b"\r\n") if line.startswith(b"set-cookie"))
    assert b"\0" not in headers
    assert b"\x1b" not in headers
    assert len(headers) < len(JUNK_IDS[name]) + 1_000
    await front.is_well()


@pytest.mark.parametrize("junk", ["x" * 4_000, "00-zz-zz-zz", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "%00%0d%0a"])
async def test_a_trace_that_is_none_does_no_harm(front: Front, junk: str) -> None:
    assert (await front.chat(traceparent=junk, tracestate=junk, baggage=junk)).status_code == 200
    assert len(front.mesh.router.calls[-1].traceparent) <= 128


NAMES = (
    "a%0d%0aset-cookie:%20x=1",
    "a%0aset-cookie:%20x=1",
    "%00",
    "a%22%7d%2c%7b",
    "%e2%80%a8",
    "..%2f..%2f",
    "%ff%fe",
    "x" * 4_000,
)


@pytest.mark.parametrize(
    "path", ["/v1/models/{}", "/v1/files/{}", "/v1/batches/{}", "/v2/models/{}", "/v2/models/m/versions/{}/config"]
)
@pytest.mark.parametrize("name", NAMES)
async def test_names_in_paths_become_no_headers(front: Front, path: str, name: str) -> None:
    secret = SECRET if path.startswith("/v1") else CALLER
    answer = await front.client.get(path.format(name), headers={"authorization": f"Bearer {secret}"})
    assert 400 <= answer.status_code < 500, answer.text
    assert "set-cookie" not in answer.headers
    assert "error" in answer.json(), "well-formed, whatever the name was"
    assert answer.headers["content-type"].startswith("application/json")


WORDS = ("a\r\nset-cookie: x=1", "a\nb", "\0", "\x7f\x1b[2J", '"}, {"', "\u2028", "\U0001f600" * 500, "x" * 50_000)


@pytest.mark.parametrize("word", WORDS)
async def test_words_in_bodies_become_no_headers(front: Front, word: str) -> None:
    headers = {"authorization": f"Bearer {SECRET}", "content-type": "application/json"}
    bodies = (
        {"model": word, "messages": [{"role": "user", "content": "x"}]},
        {"model": "sums", "messages": [{"role": word, "content": "x"}]},
        {"model": "sums", "messages": [{"role": "user", "content": "x"}], word: 1},
        {"model": "sums", "messages": [{"role": "user", "content": "x"}], "response_format": {"type": word}},
    )
    for body in bodies:
        answer = await front.client.post(CHAT, json=body, headers=headers)
        assert 400 <= answer.status_code < 500, answer.text
        assert "set-cookie" not in answer.headers
        assert answer.json()["error"]["message"]
        assert len(answer.content) < 20_000


@pytest.mark.parametrize("word", ["a\r\nset-cookie: x=1", "\0\x01", "x" * 100_000, "\u2028\U0001f600"])
async def test_words_in_messages_become_no_trailers(front: Front, word: str) -> None:
    at = front.grpc
    name = word.encode()
    length = bytes(_varint(len(name)))
    async with grpc.aio.insecure_channel(f"{at.host}:{at.port}") as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer", None, None
        )
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(b"\x0a" + length + name, metadata=(("authorization", f"Bearer {CALLER}"),), timeout=20)
    assert refused.value.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)
    assert all(key != "set-cookie" for key, _ in refused.value.trailing_metadata() or ())
    assert len(refused.value.details() or "") < 4_000


async def test_an_id_with_a_line_in_it_over_the_gateways_own_port(front: Front) -> None:
    """There, gRPC takes any byte in a value."""
    head = request_head(
        "/inference.GRPCInferenceService/ModelInfer",
        (b"authorization", f"Bearer {CALLER}".encode()),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        (b"x-request-id", b"a\r\nset-cookie: x=1"),
        (b"traceparent", b"00-\r\n\0"),
        method="POST",
    )
    async with http2_connection(front.grpc) as connection:
        await connection.send(headers_frame(1, block_of(head), "END_HEADERS"), data_frame(1, b"\0\0\0\0\3\n\1m", "END_STREAM"))
        assert await connection.outcome() == 200
    assert connection.grpc_statuses == {1: 0}
    assert "\r" not in front.kserve.links["w1"].seen[-1].request_id


def _varint(number: int) -> list[int]:
    return [number] if number < 128 else [number % 128 + 128, *_varint(number // 128)]
