"""Ports before they are needed: free ones, and a clear word about a taken one."""

from __future__ import annotations

import socket
from contextlib import ExitStack, suppress

import psutil

from runtime.errors import Code, PenstockError

_TRIES = 100


class PortInUse(PenstockError, code=Code.FAILED_PRECONDITION, reason="PORT_IN_USE"):
    """Something else listens there."""


def free_ports(count: int) -> list[int]:
    """That many different free loopback ports."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for bound in sockets:
            bound.bind(("127.0.0.1", 0))
        return [int(bound.getsockname()[1]) for bound in sockets]


def free_row(count: int) -> int:
    """The first of that many free loopback ports in a row. Raises PortInUse where there is no such row."""
    for _ in range(_TRIES):
        (first,) = free_ports(1)
        with ExitStack() as stack, suppress(OSError, OverflowError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise PortInUse(f"no {count} free ports in a row were found in {_TRIES} places; close something, or start fewer gateways")


def claim(host: str, port: int, option: str) -> int:
    """The port if it is free; a free one where 0 is asked for. Raises PortInUse naming the option to pass instead."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            holder = _holder(port)
            raise PortInUse(
                f"port {port} is taken{holder}; pass {option} with another one, or {option} 0 for any free one"
            ) from error
        return int(probe.getsockname()[1])


def _holder(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            if (
                connection.status == psutil.CONN_LISTEN
                and connection.laddr
                and connection.laddr.port == port
                and connection.pid
            ):
                return f" by {psutil.Process(connection.pid).name()} (process {connection.pid})"
    except psutil.Error:
        pass
    return ""
