"""How gRPC's C core is told to run in our server processes. Has to be in the environment before `grpc` is imported.

The core's newer event engine hands every socket event from a poller thread to a pool thread to the completion queue's
thread. In an asyncio server each hand-over is a context switch with nothing gained: there is one queue, drained by one thread.
With the older poller that thread waits for the sockets itself. What it saves is in `docs/decisions/0008-grpc-core-poller.md`.
"""

from __future__ import annotations

from collections.abc import MutableMapping

EXPERIMENTS = "GRPC_EXPERIMENTS"
ONE_POLLER = "-event_engine_client,-event_engine_listener"


def tune(environment: MutableMapping[str, str]) -> None:
    """Put the choice into an environment, unless an operator chose already."""
    environment.setdefault(EXPERIMENTS, ONE_POLLER)
