"""Several processes of one gateway: they share the edge port, and one that dies is started again.

Owns the processes, the reservation of the port they share, and the file that says where they answer. This process serves
nothing itself. Each of the others is a gateway of its own, with its own inner port, its own links to workers and its own place
among the gateways of the region; it ends in order when its standard input does, so none outlives the supervisor.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import cast

import structlog
from pydantic import Secret, SecretStr

from gateway.config import GatewaySettings
from runtime.backoff import Backoff, sleep_unless
from runtime.clock import Clock, SystemClock
from runtime.errors import Code, PenstockError
from runtime.process import announce_whole
from runtime.serving import PortTaken
from runtime.telemetry import configure_logging

_AGAIN = Backoff(first_s=0.2, max_s=10.0)
_STEADY_S = 30.0
"""A process that ran for so long is believed to be well: its next failure counts as the first."""

_LEAVING_S = 5.0
"""What ending takes beside the drain; a process that is not gone by then is killed."""

_log = structlog.get_logger("penstock.processes")


class ProcessFailed(PenstockError, code=Code.FAILED_PRECONDITION, reason="GATEWAY_PROCESS_FAILED"):
    """A process of the gateway did not start. It said why itself."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which of a gateway's processes this is, and how it tells where it answers."""

    announce: Callable[..., None]
    number: int = 0
    is_shared: bool = False


@dataclass(slots=True)
class _Member:
    """One process, as its supervisor sees it."""

    number: int
    settings: GatewaySettings
    ports: dict[str, int] = field(default_factory=dict)


async def supervised(settings: GatewaySettings, stop: asyncio.Event, *, clock: Clock | None = None) -> None:
    """Run all processes until `stop` is set, then end them in order. Raises PortTaken, and ProcessFailed at the start."""
    configure_logging("gateway", level=settings.log_level)
    with _reserved(settings) as edge_port:
        members = [_Member(number, member_settings(settings, number, edge_port)) for number in range(settings.processes)]
        crew = Crew(members, settings, clock or SystemClock(), stop)
        async with asyncio.TaskGroup() as tasks:
            for member in members:
                tasks.create_task(crew.keep(member), name=f"process {member.number}")


def member_settings(settings: GatewaySettings, number: int, edge_port: int) -> GatewaySettings:
    """The settings of one process: ports count up from those that were named; where any is wanted, each takes its own."""
    host, _, advertised = settings.advertise.rpartition(":")
    metrics_port = settings.metrics_port
    changed = {
        "processes": 1,
        "edge_port": edge_port,
        "port": settings.port + number if settings.port else 0,
        "door_port": settings.door_port + number if settings.door_port else 0,
        "metrics_port": metrics_port + number if metrics_port else metrics_port,
        "advertise": f"{host}:{int(advertised) + number}" if advertised.isdecimal() else settings.advertise,
        "ready_file": None,
    }
    return settings.model_copy(update=changed)


def settings_line(settings: GatewaySettings) -> bytes:
    """All settings as `gateway.member` reads them, secrets as they are: it goes through a pipe that nobody else holds."""
    return json.dumps(settings.model_dump(), default=_plain).encode() + b"\n"


def _plain(value: object) -> object:
    match value:
        case SecretStr() | Secret():
            return value.get_secret_value()
        case Enum():
            return value.value
        case _:
            return str(value)


class Crew:
    """Keeps every member running until told to stop."""

    def __init__(self, members: list[_Member], settings: GatewaySettings, clock: Clock, stop: asyncio.Event) -> None:
        self._members, self._settings, self._clock, self._stop = members, settings, clock, stop
        self._rng = random.SystemRandom()
        self._is_up = False

    async def keep(self, member: _Member) -> None:
        """Start it, and again when it ends by itself. Returns after `stop`. Raises ProcessFailed before all were up."""
        failures = 0
        while not self._stop.is_set():
            began_s = self._clock.monotonic_s()
            status = await self._run(member)
            if self._stop.is_set():
                return
            if not self._is_up:
                self._stop.set()
                raise ProcessFailed(f"process {member.number} of the gateway ended with status {status} before it served")
            failures = 1 if self._clock.monotonic_s() - began_s >= _STEADY_S else failures + 1
            delay_s = _AGAIN.delay_s(failures, self._rng)
            _log.error("process_ended", process=member.number, status=status, again_in_s=round(delay_s, 1))
            await sleep_unless(self._clock, delay_s, self._stop)

    async def _run(self, member: _Member) -> int:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway.member", str(member.number)),
            stdin=PIPE,
            stdout=PIPE,
            start_new_session=True,  # Ctrl-C at the terminal reaches the supervisor alone, which then ends all in order
        )
        told, said = cast("asyncio.StreamWriter", process.stdin), cast("asyncio.StreamReader", process.stdout)
        told.write(settings_line(member.settings))  # and it stays open: its end is a sign
        listening = asyncio.create_task(self._listen(member, said), name=f"listen {member.number}")
        stopping = asyncio.create_task(self._end(process), name=f"end {member.number}")
        try:
            return await process.wait()
        finally:
            member.ports = {}
            for task in (listening, stopping):
                task.cancel()
            await asyncio.gather(listening, stopping, return_exceptions=True)
            if process.returncode is None:
                process.kill()
            told.close()

    async def _listen(self, member: _Member, said: asyncio.StreamReader) -> None:
        """It says where it answers, once it does."""
        with suppress(ValueError):
            member.ports = json.loads(await said.readline())
            _log.info("process_serves", process=member.number, **member.ports)
            if all(each.ports for each in self._members):
                self._is_up = True
                self._tell()
        await said.read()

    async def _end(self, process: Process) -> None:
        """Once all are to end: ask, wait for as long as its drain may take, then end it."""
        await self._stop.wait()
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        await self._clock.sleep(self._settings.drain_notice_s + self._settings.drain_grace_s + _LEAVING_S)
        with suppress(ProcessLookupError):
            process.kill()

    def _tell(self) -> None:
        """The first one's ports stand where a lone gateway's do."""
        ports = [member.ports for member in self._members]
        announce_whole(self._settings.ready_file, {**ports[0], "processes": ports})


@contextmanager
def _reserved(settings: GatewaySettings) -> Iterator[int]:
    """The edge port, for our processes alone: bound and not listened on, so that nobody else's bind succeeds meanwhile.

    Raises PortTaken.
    """
    kept = _bound(settings)
    with kept:
        yield int(kept.getsockname()[1])


def _bound(settings: GatewaySettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.edge_host else socket.AF_INET
    address, kept = (settings.edge_host, settings.edge_port), socket.socket(family)
    try:
        with socket.socket(family) as probe:
            # A bind that shares nothing fails where anybody is, also a gateway that shares its port with its own.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        kept.bind(address)
    except OSError as error:
        kept.close()
        where = f"{settings.edge_host}:{settings.edge_port}"
        raise PortTaken(f"cannot listen on {where}: something else does, or it is not allowed; choose another port") from error
    return kept
