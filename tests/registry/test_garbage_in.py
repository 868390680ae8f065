"""Whatever comes, from an operator or from a tenant's owner: an answer that is the sender's to understand, soon, and the same
registry afterwards. Nothing that was handed out in confidence is in its log.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog.testing
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from penstock.registry.v1 import models_pb2

from runtime.identity import NodeIdentity, Role
from runtime.manifests import sign_endorsement, sign_manifest
from tests.fuzz.choices import Choices
from tests.registry.callers import MODEL, Callers, callers_of
from tests.registry.front import METHODS, PASSWORD, ROOT, Answer, Front, Request, Way, front_on
from tests.registry.garbage import garbage, spoilt_fields
from tests.registry.harness import MASTER_KEYS

END_S = 20.0
_BUGS = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
}
bytes_of_choices = st.one_of(st.binary(max_size=64), st.binary(min_size=64, max_size=400))
each_input = settings(max_examples=5, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@dataclass(slots=True)
class Here:
    """A registry in this thread, and who sends it garbage."""

    runner: asyncio.Runner
    callers: Callers
    senders: dict[str, Way]
    logged: list[Any]

    @property
    def front(self) -> Front:
        return self.callers.front

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    async def sends(self, sender: str, method: str, *requests: Request) -> Answer:
        """One call. It is answered in time, and not with what stands for a bug."""
        answer = await self.front.call(self.senders[sender], method, *requests, timeout_s=END_S)
        assert answer.code not in _BUGS, (answer.code, answer.error and answer.error.message)
        if answer.error is not None:
            assert answer.error.message
            self.tells_no_secret(answer.error.message)
        return answer

    async def is_well(self) -> None:
        """It answers, and its log says of no bug, and no secret."""
        stub = health_pb2_grpc.HealthStub(await self.front.channel(self.front.node()))
        health = await stub.Check(health_pb2.HealthCheckRequest(), timeout=END_S)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        assert (await self.front.call(self.senders["owner"], "AccountService/WhoAmI", timeout_s=END_S)).message.role == "owner"
        for entry in self.logged:
            assert entry["event"] != "unmapped_error", entry
            self.tells_no_secret(str(entry))
        self.logged.clear()

    def tells_no_secret(self, text: str) -> None:
        secrets = [secret.rpartition("-")[2] for secret in self.callers.acme.secrets]
        for secret in (*secrets, PASSWORD, MASTER_KEYS.current.hex(), repr(MASTER_KEYS.current), "$argon2"):
            assert secret not in text


@asynccontextmanager
async def opened(
    address: str, folder: Path, identities: dict[Role, NodeIdentity]
) -> AsyncIterator[tuple[Callers, dict[str, Way]]]:
    async with front_on(address, folder, identities) as front:
        callers = await callers_of(front, folder)
        yield callers, {"operator": front.node(), "owner": Way().bearing(await callers.key(role="owner"))}


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def here(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, identities: dict[Role, NodeIdentity]
) -> Iterator[Here]:
    folder = tmp_path_factory.mktemp("garbage")
    address = str(folder / "registry.db")
    if request.param == "postgres":
        address = request.getfixturevalue("postgres").new_database(f"garbage_{id(folder)}")
    with asyncio.Runner() as runner, structlog.testing.capture_logs() as logged:
        opening = opened(address, folder, identities)
        callers, senders = runner.run(opening.__aenter__())
        try:
            yield Here(runner, callers, senders, logged)
        finally:
            runner.run(opening.__aexit__(None, None, None))


TAKES_ANY_TEXT = {
    "FileService/AbortUpload": "an upload that is not there is aborted already",
    "AccountService/LogIn": "a wrong name is answered like a wrong password",
    "AuditService/ReportIncident": "what a node says of an incident is written down, without what cannot be printed",
    "NodeService/Enrol": "without a good token nothing else is looked at",
}
"""RPCs that do not refuse a NUL by INVALID_ARGUMENT, or by NOT_FOUND where it is in an id, and why."""


def good_requests(here: Here, sender: str, method: str) -> list[Message]:
    return here.callers.requests(here.senders[sender], method)


@pytest.mark.parametrize("sender", ["operator", "owner"])
@pytest.mark.parametrize("method", METHODS)
def test_each_field_at_its_worst(here: Here, sender: str, method: str) -> None:
    """A NUL in a text, which PostgreSQL does not take and SQLite does, is refused over both."""

    async def calls() -> None:
        good = good_requests(here, sender, method)
        for index, message in enumerate(good):
            for what, bad in spoilt_fields(message):
                answer = await here.sends(sender, method, *good[:index], bad, *good[index + 1 :])
                if sender == "operator" and r"\x00" in what and method not in TAKES_ANY_TEXT:
                    assert answer.code.name in ("INVALID_ARGUMENT", "NOT_FOUND"), what
        await here.is_well()

    here.run(calls())


@pytest.mark.parametrize("sender", ["operator", "owner"])
@pytest.mark.parametrize("method", METHODS)
@each_input
@given(data=bytes_of_choices)
def test_any_message(here: Here, sender: str, method: str, data: bytes) -> None:
    acme, choices = here.callers.acme, Choices(data)
    words = [
        MODEL,
        "acme",
        "globex",
        "1",
        "steady",
        "owner",
        "worker",
        acme.upload_id,
        acme.digest,
        acme.token_id,
        acme.signer_id,
    ]
    kind = METHODS[method].input_type

    async def calls() -> None:
        count = 1 + choices.below(3) if METHODS[method].client_streaming else 1
        await here.sends(sender, method, *(garbage(choices, kind, words) for _ in range(count)))

    here.run(calls())


@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_message_is_refused(here: Here, method: str) -> None:
    """Also a text that is no UTF-8, as one with half of a surrogate pair is not."""

    async def calls() -> None:
        for raw in (b"\x08", b"\xff" * 1000, b"\x0a\x03\xed\xa0\x80", b"\x0a\xff\xff\xff\xff\x0f"):
            answer = await here.sends("operator", method, raw)
            has_text = METHODS[method].input_type.fields_by_number.get(1)
            if raw[0] != 0x0A or (has_text is not None and has_text.type == has_text.TYPE_STRING):
                assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
        await here.is_well()

    here.run(calls())


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"AccountService/LogIn", "NodeService/Enrol"}))
def test_of_what_nobody_sends_nothing_is_looked_at(here: Here, method: str) -> None:
    async def calls() -> None:
        for seed in range(10):
            sent = garbage(Choices(hashlib.shake_128(bytes([seed])).digest(300)), METHODS[method].input_type, [MODEL, "acme"])
            answer = await here.front.call(Way(), method, sent, timeout_s=END_S)
            assert answer.code is grpc.StatusCode.UNAUTHENTICATED
        await here.is_well()

    here.run(calls())


def test_a_signed_manifest_of_garbage(here: Here) -> None:
    """Signed by a key that everybody trusts: what is in it is looked at, not only who signed."""

    async def calls() -> None:
        for data in (bytes([seed]) * 40 + hashlib.shake_128(bytes([seed])).digest(300) for seed in range(60)):
            said: Any = garbage(Choices(data), models_pb2.Manifest.DESCRIPTOR, [MODEL, "acme", "1", "onnx", "tensor", "a" * 64])
            request = models_pb2.PublishVersionRequest(manifest=sign_manifest(ROOT, said))
            await here.sends("owner", "ModelService/PublishVersion", request)
            endorsed: Any = garbage(Choices(data[40:]), models_pb2.Endorsement.DESCRIPTOR, ["acme", "*"])
            signed = models_pb2.EndorseSignerRequest(endorsement=sign_endorsement(ROOT, endorsed))
            await here.sends("operator", "ModelService/EndorseSigner", signed)
        await here.is_well()

    here.run(calls())
