"""Several endpoints, TLS and a login, against real etcds."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.backoff import Backoff
from runtime.errors import InvalidArgument
from runtime.etcd import EtcdStore
from runtime.etcd_members import EtcdSettings, EtcdTls, EtcdUser
from runtime.identity import Authority, Role
from runtime.keyvalue import EtcdAccessRefused, EtcdUnavailable, OutcomeUnknown
from runtime.lease import LeaseTiming
from runtime.watch import WatchTiming
from tests.support.etcd import EtcdServer, free_port, running_etcd
from tests.support.forwarder import forwarder_to
from tests.support.waiting import PATIENCE_S, events_of, eventually, snapshot_of

QUICK = Backoff(first_s=0.05, max_s=0.3)
ROOT_PASSWORD = "a secret of the test"


def session(settings: EtcdSettings) -> EtcdStore:
    return EtcdStore(settings, lease_timing=LeaseTiming(backoff=QUICK), watch_timing=WatchTiming(backoff=QUICK))


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdServer]:
    with running_etcd() as server:
        yield server


@pytest.mark.parametrize(
    ("given", "endpoints"),
    [
        ("127.0.0.1:2379", ("127.0.0.1:2379",)),
        (" a:1 , b:2,", ("a:1", "b:2")),
        ("http://a:1/,[::1]:2379", ("a:1", "[::1]:2379")),
    ],
)
def test_endpoints_are_host_and_port(given: str, endpoints: tuple[str, ...]) -> None:
    assert EtcdSettings.at(given).endpoints == endpoints


@pytest.mark.parametrize("given", ["", " , ", "a", "a:", ":1", "a:x", "a:0", "a:70000", "https://a:1", "ftp://a:1"])
def test_what_is_no_endpoint_is_refused_in_words(given: str) -> None:
    with pytest.raises(InvalidArgument, match=r"host:port|TLS"):
        EtcdSettings.at(given)


def test_with_tls_the_scheme_is_https() -> None:
    tls = EtcdTls(b"authority")
    assert EtcdSettings.at("https://a:1,b:2", tls=tls).endpoints == ("a:1", "b:2")
    with pytest.raises(InvalidArgument, match="TLS"):
        EtcdSettings.at("http://a:1", tls=tls)


def test_secrets_do_not_show_when_settings_are_printed() -> None:
    settings = EtcdSettings.at("a:1", tls=EtcdTls(b"ca", b"cert", b"KEY"), user=EtcdUser("root", "PASSWORD"))
    assert "KEY" not in repr(settings)
    assert "PASSWORD" not in repr(settings)


async def test_a_dead_endpoint_is_passed_over_for_calls_watches_and_leases(etcd: EtcdServer) -> None:
    async with session(EtcdSettings.at(f"127.0.0.1:{free_port()},{etcd.endpoint}")) as store:
        revision = await store.put("/dead/1", b"1")
        assert revision > 0
        async with store.watch("/dead/") as watch, store.lease(ttl_s=30) as lease:
            assert await snapshot_of(watch) == {"/dead/1": b"1"}
            lease.put("/dead/2", b"2")
            assert await events_of(watch, 1) == [("/dead/2", b"2")]


async def test_when_nobody_answers_every_endpoint_is_named() -> None:
    dead = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    async with session(EtcdSettings.at(",".join(dead))) as store:
        with pytest.raises(EtcdUnavailable) as caught:
            await store.put("/a", b"1")
        assert not isinstance(caught.value, OutcomeUnknown)
        assert all(endpoint in caught.value.message for endpoint in dead)


async def test_a_member_that_goes_away_hands_over_to_the_next(etcd: EtcdServer) -> None:
    async with forwarder_to(etcd.port) as one, forwarder_to(etcd.port) as two:
        async with session(EtcdSettings.at(f"{one.endpoint},{two.endpoint}")) as store:
            async with store.watch("/over/") as watch, store.lease(ttl_s=30) as lease:
                await snapshot_of(watch)
                lease.put("/over/1", b"1")
                assert await events_of(watch, 1) == [("/over/1", b"1")]
                before = lease.id
                assert two.accepted == 0
                await one.cut()
                lease.put("/over/1", b"2")
                assert await events_of(watch, 1) == [("/over/1", b"2")]
                assert (await store.get("/over/1")) is not None
                assert two.accepted >= 1
                # And back again, when it is the other's turn to fail.
                await one.mend()
                await two.cut()
                lease.put("/over/1", b"3")
                assert await events_of(watch, 1) == [("/over/1", b"3")]
                assert lease.id == before


async def test_a_member_that_falls_silent_is_left(etcd: EtcdServer) -> None:
    async with forwarder_to(etcd.port) as silent:
        settings = EtcdSettings((silent.endpoint, etcd.endpoint), connect_timeout_s=0.5, call_timeout_s=0.5)
        async with session(settings) as store:
            await store.put("/silent", b"1")
            silent.silence()
            with pytest.raises(OutcomeUnknown, match="not known"):
                await store.put("/silent", b"2")
            assert (await store.get("/silent")) is not None
        async with session(settings) as fresh, fresh.watch("/silent") as watch:
            assert set(await snapshot_of(watch)) == {"/silent"}


async def test_a_member_that_is_slow_to_shake_hands_is_waited_for(etcd: EtcdServer) -> None:
    async with forwarder_to(etcd.port) as slow, session(EtcdSettings.at(slow.endpoint)) as store:
        slow.silence()
        asking = asyncio.ensure_future(store.get("/slow"))
        await eventually(lambda: slow.accepted == 1)
        await asyncio.sleep(0.5)  # the delay is what is tested
        slow.resume()
        assert await asking is None
        assert slow.accepted == 1


async def test_a_cluster_goes_on_without_one_of_three_members(tmp_path: Path) -> None:
    calmer = ["--heartbeat-interval", "50", "--election-timeout", "500"]
    members = [EtcdServer(tmp_path, name=name, extra=calmer) for name in ("one", "two", "three")]
    endpoints = tuple(member.endpoint for member in members)
    try:
        for member in members:
            member.start(cluster=members, wait=False)
        for member in members:
            await asyncio.to_thread(member.wait_until_healthy)
        async with session(EtcdSettings(endpoints, call_timeout_s=2.0)) as store:
            async with store.watch("/c/") as watch, store.lease(ttl_s=30) as lease:
                await snapshot_of(watch)
                lease.put("/c/1", b"1")
                assert await events_of(watch, 1) == [("/c/1", b"1")]
                before = lease.id
                await eventually(lambda: watch.connected)
                await members[0].akill()  # the one that is being asked
                lease.put("/c/1", b"2")
                assert await events_of(watch, 1) == [("/c/1", b"2")]
                assert lease.id == before
                # Without a majority the last one answers nobody, and says so.
                await members[1].akill()
                with pytest.raises(EtcdUnavailable):
                    await store.get("/c/1")
                await eventually(lambda: not watch.connected)
    finally:
        for member in members:
            member.kill()


@pytest.fixture
def tls_etcd() -> Iterator[tuple[EtcdServer, EtcdTls]]:
    with tempfile.TemporaryDirectory() as folder:
        authority = Authority.open(Path(folder) / "ca")
        server = authority.enrol(Path(folder) / "server", Role.REGISTRY)
        client = authority.enrol(Path(folder) / "client", Role.SCHEDULER)
        extra = ["--cert-file", server.files.certificate, "--key-file", server.files.key]
        extra += ["--trusted-ca-file", server.files.authority, "--client-cert-auth"]
        with running_etcd(extra=[str(part) for part in extra], scheme="https") as started:
            yield started, EtcdTls(client.authority_pem, client.certificate_pem, client.tls_key_pem)


async def test_tls_with_a_client_certificate(tls_etcd: tuple[EtcdServer, EtcdTls]) -> None:
    server, tls = tls_etcd
    async with session(EtcdSettings.at(f"https://{server.endpoint}", tls=tls)) as store, store.watch("/t/") as watch:
        assert await snapshot_of(watch) == {}
        await store.put("/t/1", b"1")
        assert await events_of(watch, 1) == [("/t/1", b"1")]
    for wrong in (None, EtcdTls(tls.authority_pem)):
        async with session(EtcdSettings((server.endpoint,), tls=wrong, connect_timeout_s=1.0)) as stranger:
            with pytest.raises(EtcdUnavailable):
                await stranger.get("/t/1")


@pytest.fixture
def guarded_etcd() -> Iterator[EtcdServer]:
    with running_etcd(extra=["--auth-token-ttl", "1"]) as server:
        server.control("user", "add", f"root:{ROOT_PASSWORD}")
        server.control("user", "grant-role", "root", "root")
        server.control("user", "add", "reader:reader")
        server.control("role", "add", "reader")
        server.control("role", "grant-permission", "reader", "--prefix=true", "read", "/open/")
        server.control("user", "grant-role", "reader", "reader")
        server.control("auth", "enable")
        yield server


async def test_a_login_is_renewed_when_its_token_is_not_known_any_more(guarded_etcd: EtcdServer) -> None:
    user = EtcdUser("root", ROOT_PASSWORD)
    async with session(EtcdSettings.at(guarded_etcd.endpoint, user=user)) as store:
        async with store.watch("/open/") as watch, store.lease(ttl_s=2) as lease:
            assert await snapshot_of(watch) == {}
            await asyncio.gather(*(store.put(f"/open/{number}", b"1") for number in range(10)))
            await events_of(watch, 10)
            await guarded_etcd.astop()  # simple tokens live in etcd's memory
            await guarded_etcd.astart()
            lease.put("/open/me", b"1")
            assert await events_of(watch, 1) == [("/open/me", b"1")]
            async with asyncio.timeout(PATIENCE_S):
                await lease.settle()


async def test_without_rights_the_sentence_says_which_are_missing(guarded_etcd: EtcdServer) -> None:
    async with session(EtcdSettings.at(guarded_etcd.endpoint, user=EtcdUser("reader", "reader"))) as reader:
        assert await reader.get("/open/1") is None
        with pytest.raises(EtcdAccessRefused, match="role"):
            await reader.put("/open/1", b"1")
        with pytest.raises(EtcdAccessRefused):
            await reader.range("/closed/")
    async with session(EtcdSettings.at(guarded_etcd.endpoint)) as nobody:
        with pytest.raises(EtcdAccessRefused, match="user and a password"):
            await nobody.get("/open/1")


async def test_a_wrong_password_is_refused_and_not_repeated_in_the_message(guarded_etcd: EtcdServer) -> None:
    settings = EtcdSettings.at(guarded_etcd.endpoint, user=EtcdUser("root", "a wrong password"))
    async with session(settings) as store:
        with pytest.raises(EtcdAccessRefused, match="configured user and password") as caught:
            await store.get("/open/1")
        assert "a wrong password" not in caught.value.message


async def test_a_user_where_etcd_knows_none_is_told(etcd: EtcdServer) -> None:
    async with session(EtcdSettings.at(etcd.endpoint, user=EtcdUser("root", "x"))) as store:
        with pytest.raises(EtcdAccessRefused, match="knows no users"):
            await store.get("/a")
