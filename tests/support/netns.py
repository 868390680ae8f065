"""Hosts on one machine: network namespaces on bridges, so that a cable can be pulled.

A segment is a bridge, and the hosts that are plugged into it; segments are joined by a cable each to the first one. The test
itself sits on every segment: it reaches a region's hosts also when that region is cut off from all others. Names are this run's
own, and everything is taken away again, however the test ended.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


class NoNamespaces(Exception):
    """This machine, or this user, cannot make network namespaces."""


@dataclass(frozen=True, slots=True)
class Host:
    """A place for processes: their address, and what is said before a command so that it runs there."""

    name: str
    address: str
    words: tuple[str, ...] = ()
    port: str = ""
    """The host's cable, as its bridge names it."""


LOOPBACK = Host("loopback", "127.0.0.1")


@dataclass(slots=True)
class Network:
    """Segments and hosts of one test run."""

    run: str
    net: int
    _bridges: list[str] = field(default_factory=list)
    _cables: dict[int, str] = field(default_factory=dict)
    _hosts: list[Host] = field(default_factory=list)

    def segment(self) -> int:
        """Another bridge, joined to the first; returns its number."""
        number, bridge = len(self._bridges), f"pn{self.run}b{len(self._bridges)}"
        _ip("link", "add", "name", bridge, "type", "bridge")
        self._bridges.append(bridge)
        _ip("addr", "add", f"10.{self.net}.{number}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        # Each bridge answers for its own address alone, or a host would learn a way that leads through a cable.
        with open(f"/proc/sys/net/ipv4/conf/{bridge}/arp_ignore", "w") as setting:
            setting.write("1")
        if number:
            near, far = f"pn{self.run}c{number}", f"pn{self.run}d{number}"
            _ip("link", "add", "name", near, "type", "veth", "peer", "name", far)
            for end, on in ((near, self._bridges[0]), (far, bridge)):
                _ip("link", "set", end, "master", on, "up")
            self._cables[number] = near
        return number

    def host(self, name: str, segment: int = 0) -> Host:
        """Another namespace on a segment."""
        number = len(self._hosts) + 10
        space, port = f"pn{self.run}-{name}", f"pn{self.run}h{number}"
        address = f"10.{self.net}.{segment}.{number}"
        _ip("netns", "add", space)
        host = Host(name, address, ("ip", "netns", "exec", space), port)
        self._hosts.append(host)
        _ip("link", "add", "name", port, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("link", "set", port, "master", self._bridges[segment], "up")
        _ip("-n", space, "link", "set", "lo", "up")
        _ip("-n", space, "addr", "add", f"{address}/16", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        return host

    def cut(self, host: Host) -> None:
        """Nothing goes to this host or comes from it: packets are lost, connections are not told."""
        _ip("link", "set", host.port, "down")

    def heal(self, host: Host) -> None:
        _ip("link", "set", host.port, "up")

    def cut_segment(self, number: int) -> None:
        """The segment's hosts reach each other, and nobody else."""
        _ip("link", "set", self._cables[number], "down")

    def heal_segment(self, number: int) -> None:
        _ip("link", "set", self._cables[number], "up")

    def close(self) -> None:
        """Only once every process in it has ended."""
        for host in self._hosts:
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "del", f"pn{self.run}-{host.name}")
            with suppress(subprocess.CalledProcessError):  # gone with its namespace, as a rule
                _ip("link", "del", host.port)
        for link in (*self._cables.values(), *self._bridges):
            with suppress(subprocess.CalledProcessError):
                _ip("link", "del", link)


@contextmanager
def network() -> Iterator[Network]:
    """A network of this run's own. Raises NoNamespaces, with the reason."""
    why = lacking()
    if why:
        raise NoNamespaces(why)
    made = Network(secrets.token_hex(2), 64 + secrets.randbelow(63))
    try:
        yield made
    finally:
        made.close()


def lacking() -> str:
    """What is missing for network namespaces here; empty: nothing."""
    if shutil.which("ip") is None:
        return "there is no `ip` command (iproute2)"
    if os.geteuid() != 0:
        return "making network namespaces takes root"
    probe = f"pnprobe{secrets.token_hex(3)}"
    try:
        _ip("netns", "add", probe)
        try:
            _ip("-n", probe, "link", "add", "name", "br0", "type", "bridge")
            _ip("-n", probe, "link", "add", "name", "veth0", "type", "veth", "peer", "name", "veth1")
        finally:
            _ip("netns", "del", probe)
    except subprocess.CalledProcessError as failure:
        return f"`{' '.join(failure.cmd)}` is not possible here: {failure.stderr.strip()}"
    return ""


def _ip(*words: str) -> None:
    subprocess.run(("ip", *words), check=True, capture_output=True, text=True, timeout=10)
