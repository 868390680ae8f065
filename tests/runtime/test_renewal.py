"""A certificate is renewed in time, by whoever may, and kept whole in its folder."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.registry.v1 import nodes_pb2

from runtime.certificates import NodeCertificate, Peer, node_id_of
from runtime.enrolment import CertificateRefused, SignedRequest, check_request
from runtime.errors import FailedPrecondition, PenstockError, Unavailable
from runtime.identity import Authority, NodeIdentity, Role, load_identity, public_key_of, write_public
from runtime.ids import NodeId
from runtime.records import RecordVerifier, sign_record
from runtime.renewal import Renewal, RenewalRules, due_wall_s, renewing
from runtime.revocations import NodeRevoked
from runtime.serving import Listen, serving
from tests.support.waiting import PATIENCE_S

DAY_S = 86_400.0


@dataclass(slots=True)
class HurryingClock:
    """Whoever sleeps has slept."""

    now_s: float = field(default_factory=time.time)
    slept_s: list[float] = field(default_factory=list)

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_s(self) -> float:
        return self.now_s

    async def sleep(self, delay_s: float) -> None:
        self.slept_s.append(delay_s)
        self.now_s += delay_s
        await asyncio.sleep(0)


@dataclass(slots=True)
class Registry:
    """Renews whoever asks, over plaintext, so that its hours are the test's; or does it wrong, as it is told to."""

    authority: Authority
    clock: HurryingClock
    lifetime_s: float = 90 * DAY_S
    errors: list[PenstockError] = field(default_factory=list)
    role: Role = Role.WORKER
    node_id: NodeId | None = None
    tls_key: Any = None
    says_pem: bytes | None = None
    asked_at_s: list[float] = field(default_factory=list)
    answered: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    address: str = ""

    async def RenewCertificate(self, request: nodes_pb2.RenewCertificateRequest, _: Any) -> nodes_pb2.RenewCertificateResponse:
        self.asked_at_s.append(self.clock.now_s)
        self.answered.release()
        if self.errors:
            raise self.errors.pop(0)
        request_ = SignedRequest(request.certificate_request, request.ed25519_public_key, request.signature)
        checked = check_request(request_, node_id_of(request.ed25519_public_key))
        peer = Peer(self.role, self.node_id or checked.node_id)
        made = self.authority.certify(self.tls_key or checked.tls_key, peer, ["localhost"], self.clock.now_s, self.lifetime_s)
        authority_pem = self.says_pem or self.authority.certificate_pem
        return nodes_pb2.RenewCertificateResponse(certificate_pem=made.pem, authority_pem=authority_pem)

    def channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self.address)

    def handlers(self, server: grpc.aio.Server) -> None:
        handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
            self.RenewCertificate,
            nodes_pb2.RenewCertificateRequest.FromString,
            nodes_pb2.RenewCertificateResponse.SerializeToString,
        )
        service = "penstock.registry.v1.NodeService"
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"RenewCertificate": handler}),))


@asynccontextmanager
async def running(registry: Registry) -> AsyncIterator[Registry]:
    async with serving([Listen("127.0.0.1", 0)], [registry.handlers], [], drain_grace_s=0.1) as server:
        registry.address = f"127.0.0.1:{server.ports[0]}"
        yield registry


@pytest.fixture
def identity(tmp_path: Path) -> NodeIdentity:
    return Authority.open(tmp_path / "ca").enrol(tmp_path / "node", Role.WORKER)


@pytest.fixture
async def registry(tmp_path: Path, identity: NodeIdentity) -> AsyncIterator[Registry]:
    async with running(Registry(Authority.open(tmp_path / "ca"), HurryingClock())) as opened:
        yield opened


def renewal_of(identity: NodeIdentity, registry: Registry, **rules: Any) -> Renewal:
    return Renewal(identity, registry.channel, registry.clock, random.Random(1), RenewalRules(**rules))


@given(st.floats(0, 1), st.floats(1, 400 * DAY_S))
def test_it_is_due_after_two_thirds_and_well_before_the_end(spread: float, lifetime_s: float) -> None:
    certificate = NodeCertificate(b"", b"", Peer(Role.WORKER, NodeId("n")), 1000.0, 1000.0 + lifetime_s)
    part = (due_wall_s(certificate, RenewalRules(), spread) - 1000.0) / lifetime_s
    assert 0.64 - 1e-6 <= part <= 0.70 + 1e-6


async def test_a_year_passes_and_the_certificate_never_ends(identity: NodeIdentity, registry: Registry) -> None:
    await renewal_of(identity, registry).renew()
    task = asyncio.ensure_future(renewal_of(identity, registry, look_s=DAY_S).run())
    async with asyncio.timeout(PATIENCE_S):
        for _ in range(7):
            await registry.answered.acquire()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    gaps = [later - earlier for earlier, later in zip(registry.asked_at_s, registry.asked_at_s[1:], strict=False)]
    assert all(0.6 * 90 * DAY_S < gap < 0.75 * 90 * DAY_S for gap in gaps[:5]), gaps
    assert max(registry.clock.slept_s) <= DAY_S


async def test_a_registry_that_is_away_is_asked_again_ever_more_slowly(identity: NodeIdentity, registry: Registry) -> None:
    registry.clock.now_s = identity.certificate.expires_wall_s - 30 * DAY_S
    registry.errors = [Unavailable("away") for _ in range(12)]
    before = identity.certificate
    task = asyncio.ensure_future(renewal_of(identity, registry).run())
    async with asyncio.timeout(PATIENCE_S):
        for _ in range(13):
            await registry.answered.acquire()
        while identity.certificate is before:
            await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    waits = registry.clock.slept_s[:12]
    assert waits[0] < 10
    assert 600 <= max(waits) <= 900
    assert all(wait >= 5 for wait in waits)


async def test_a_revoked_node_stops_asking(identity: NodeIdentity, registry: Registry) -> None:
    registry.clock.now_s = identity.certificate.expires_wall_s - DAY_S
    registry.errors = [NodeRevoked("out")]
    async with asyncio.timeout(PATIENCE_S):
        await renewal_of(identity, registry).run()
    assert len(registry.asked_at_s) == 1


async def test_a_new_certificate_is_in_the_folder_and_on_what_is_signed(identity: NodeIdentity, registry: Registry) -> None:
    before = identity.certificate
    keys = {name: (identity.folder / name).read_bytes() for name in ("ed25519.key", "tls.key", "ca.pem")}
    await renewal_of(identity, registry).renew()
    assert identity.certificate is not before
    assert load_identity(identity.folder) == identity
    assert {name: (identity.folder / name).read_bytes() for name in keys} == keys
    assert sorted(os.listdir(identity.folder)) == ["ca.pem", "ed25519.key", "tls.key", "tls.pem"]
    record = sign_record(identity, b"here")
    assert identity.certificate.der in record
    verifier = RecordVerifier(identity.authority_pem)
    assert verifier.open(record, now_wall_s=time.time()).signer.node_id == identity.node_id


async def test_an_answer_that_is_not_for_this_node_changes_nothing(
    identity: NodeIdentity, registry: Registry, tmp_path: Path
) -> None:
    other = registry.authority.enrol(tmp_path / "other", Role.WORKER)
    stranger = Authority.open(tmp_path / "stranger")
    before, own = (identity.folder / "tls.pem").read_bytes(), registry.authority
    wrongs: list[dict[str, Any]] = [
        {"authority": stranger},
        {"authority": stranger, "says_pem": own.certificate_pem},
        {"says_pem": stranger.certificate_pem},
        {"role": Role.OPERATOR},
        {"node_id": other.node_id},
        {"tls_key": public_key_of(other.tls_key_pem)},
    ]
    for wrong in wrongs:
        answering = Registry(own, registry.clock)
        for name, value in wrong.items():
            setattr(answering, name, value)
        async with running(answering):
            with pytest.raises(CertificateRefused):
                await renewal_of(identity, answering).renew()
        assert identity.certificate_pem == before == (identity.folder / "tls.pem").read_bytes(), wrong


async def test_what_somebody_else_put_into_the_folder_is_taken_over(identity: NodeIdentity, registry: Registry) -> None:
    key, peer = public_key_of(identity.tls_key_pem), identity.certificate.peer
    newer = registry.authority.certify(key, peer, ["here"], time.time() + 100, 397 * DAY_S)
    older = registry.authority.certify(key, peer, ["here"], time.time(), DAY_S)
    renewal = renewal_of(identity, registry)
    write_public(identity.files.certificate, newer.pem)
    assert await renewal.step()
    assert identity.certificate == newer
    write_public(identity.files.certificate, older.pem)
    assert not await renewal.step()
    assert identity.certificate == newer
    assert not registry.asked_at_s


async def test_another_node_in_the_folder_is_not_taken_over(identity: NodeIdentity, registry: Registry, tmp_path: Path) -> None:
    other = registry.authority.enrol(tmp_path / "other", Role.WORKER)
    for name in ("ed25519.key", "tls.key", "tls.pem"):
        (identity.folder / name).write_bytes((other.folder / name).read_bytes())
    before = identity.certificate
    with pytest.raises(FailedPrecondition, match="restart"):
        await renewal_of(identity, registry).step()
    assert identity.certificate is before


async def test_a_folder_that_is_gone_does_not_end_the_loop(identity: NodeIdentity, registry: Registry) -> None:
    clock = registry.clock
    identity.files.certificate.unlink()
    task = asyncio.ensure_future(renewal_of(identity, registry).run())
    async with asyncio.timeout(PATIENCE_S):
        while len(clock.slept_s) < 3:
            await asyncio.sleep(0)
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_process_without_a_registry_runs_on(identity: NodeIdentity) -> None:
    clock = HurryingClock(identity.certificate.expires_wall_s - DAY_S)
    async with renewing(identity, "", clock=clock) as renewal:
        async with asyncio.timeout(PATIENCE_S):
            while len(clock.slept_s) < 3:
                await asyncio.sleep(0)
        with pytest.raises(FailedPrecondition, match="registry-address"):
            await renewal.renew()
