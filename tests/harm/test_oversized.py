"""More than is taken: told so at the edge, and nobody holds it meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest

from tests.gateway.edge import CALLER
from tests.gateway.openai.mesh import SECRET
from tests.harm.front import BODY_BYTES, CHAT, Front
from tests.support.raw_http import raw_connection
from tests.support.raw_http2 import block_of, data_frame, headers_frame, http2_connection, request_head

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 2**20
SENT_BYTES = 16 * MIB
AT_ONCE = 20
GROWTH_MIB = 120
"""Twenty times sixteen would be 320. Envoy keeps at most a body and a window for each."""

_KEY = f"authorization: Bearer {SECRET}\r\n".encode()
_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: edge\r\ncontent-type: application/json\r\n" + _KEY
_LENGTH = _HEAD + b"content-length: %d\r\n\r\n" % SENT_BYTES
_CHUNKED = _HEAD + b"transfer-encoding: chunked\r\n\r\n"
_PART = b"x" * 65_536
_PARTS = SENT_BYTES // len(_PART)


async def too_much(front: Front, head: bytes, part: bytes) -> list[int]:
    """Statuses of one who sends all of it, or until it is hung up on."""
    async with raw_connection(front.http) as connection:
        sending = asyncio.create_task(connection.send(head, *([part] * _PARTS)))
        statuses = await connection.answered()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        return statuses


@pytest.mark.parametrize(
    ("head", "part"),
    [(_LENGTH, _PART), (_CHUNKED, b"%x\r\n%s\r\n" % (len(_PART), _PART))],
    ids=["a length that is told", "chunks without end"],
)
async def test_a_body_beyond_the_limit_is_refused_and_not_kept(front: Front, head: bytes, part: bytes) -> None:
    asked = len(front.mesh.router.asked)
    async with front.holding_no_more_than(GROWTH_MIB):
        answers = await asyncio.gather(*(too_much(front, head, part) for _ in range(AT_ONCE)))
    assert [413] in answers
    assert all(statuses in ([413], []) for statuses in answers), "413, or a reset that overtook it"
    assert len(front.mesh.router.asked) == asked
    await front.is_well()


async def test_the_sentence_says_how_much_is_taken(front: Front) -> None:
    answer = await front.client.post(CHAT, content=b"x" * (2 * BODY_BYTES), headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert "1 MiB" in answer.json()["error"]["message"]


async def test_a_body_beyond_the_limit_over_http2(front: Front) -> None:
    head = request_head(CHAT, (b"content-type", b"application/json"), method="POST")

    frame = data_frame(1, b"x" * 16_000)

    async def too_much_in_frames() -> int | None:
        async with http2_connection(front.http) as connection:
            frames = [frame] * (SENT_BYTES // 16_000)
            sending = asyncio.create_task(connection.send(headers_frame(1, block_of(head), "END_HEADERS"), *frames))
            status = await connection.outcome()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            return status

    async with front.holding_no_more_than(GROWTH_MIB):
        answers = await asyncio.gather(*(too_much_in_frames() for _ in range(AT_ONCE)))
    assert set(answers) <= {413, None}
    await front.is_well()


@pytest.mark.parametrize("door", ["http", "grpc"])
async def test_a_message_beyond_the_limit_over_grpc(front: Front, door: str) -> None:
    at = getattr(front, door)
    metadata = (("authorization", f"Bearer {CALLER}"),)
    unlimited = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(f"{at.host}:{at.port}", options=unlimited) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer", None, None
        )
        async with front.holding_no_more_than(GROWTH_MIB + SENT_BYTES // MIB):  # of which the caller here has all, once
            for _ in range(5):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call(bytes(SENT_BYTES), metadata=metadata, timeout=60)
                assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert front.kserve.links["w1"].calls == 0 or all(len(each.request_id) < 200 for each in front.kserve.links["w1"].seen)
    await front.is_well()


async def long_head(parts: int) -> AsyncIterator[bytes]:
    yield b"GET /v1/models HTTP/1.1\r\nhost: edge\r\n" + _KEY
    for number in range(parts):
        yield b"x-%d: %s\r\n" % (number, b"y" * 500)


@pytest.mark.parametrize("headers", [{"x-pad": "x" * 20_000}, {f"x-{number}": "1" for number in range(150)}])
async def test_headers_beyond_the_limit_are_431(front: Front, headers: dict[str, str]) -> None:
    front.seen.take()
    answer = await front.client.get("/v1/models", headers={"authorization": f"Bearer {SECRET}", **headers})
    assert answer.status_code == 431, answer.text
    assert front.seen.take() == []
    await front.is_well()


async def test_headers_without_an_end_are_cut_off(front: Front) -> None:
    async def endless() -> list[int]:
        async with raw_connection(front.http) as connection:
            sending = asyncio.create_task(connection.send(*[part async for part in long_head(2_000)]))
            statuses = await connection.until_closed()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            return statuses

    front.seen.take()
    async with front.holding_no_more_than(60):
        answers = await asyncio.gather(*(endless() for _ in range(50)))
    assert all(statuses in ([431], [400], []) for statuses in answers)
    assert front.seen.take() == []
    await front.is_well()


async def test_a_path_of_a_megabyte(front: Front) -> None:
    front.seen.take()
    connection = await front.raw(b"GET /v1/models/" + b"x" * MIB + b" HTTP/1.1\r\nhost: edge\r\n\r\n")
    assert connection.statuses in ([431], [414], [])
    assert front.seen.take() == []
    await front.is_well()
