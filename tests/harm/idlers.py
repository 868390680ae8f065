"""A process of its own that opens connections and does nothing with them: `python -m tests.harm.idlers HOST PORT COUNT HEX`.

Each sends the bytes given in hexadecimal. It says on stdout how many are open, and ends with its stdin. How many of them were
closed by the other side meanwhile is its last line.
"""

from __future__ import annotations

import resource
import socket
import sys

_PORT_LATER = 24
"""IP_BIND_ADDRESS_NO_PORT of ip(7), which Python has no name for: the port is chosen when it connects."""


def opened(host: str, port: int, count: int, beginning: bytes) -> list[socket.socket]:
    """All of them, one after the other."""
    found = []
    for _ in range(count):
        one = socket.socket()
        one.settimeout(60)
        one.setsockopt(socket.IPPROTO_IP, _PORT_LATER, 1)
        one.bind(("127.0.0.2", 0))  # ports of 127.0.0.1 are left to whoever else tests here
        one.connect((host, port))
        if beginning:
            one.sendall(beginning)
        one.setblocking(False)
        found.append(one)
    return found


def is_closed(one: socket.socket) -> bool:
    try:
        while part := one.recv(65_536):
            del part
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def main(host: str, port: str, count: str, beginning: str) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    found = opened(host, int(port), int(count), bytes.fromhex(beginning))
    sys.stdout.write(f"{len(found)}\n")
    sys.stdout.flush()
    sys.stdin.read()
    sys.stdout.write(f"{sum(map(is_closed, found))}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
