"""A registry's process for tests that kill it: publishes one version, and dies by SIGKILL before or after a statement.

    python -m tests.registry.models.publisher ADDRESS NUMBER STATEMENT

Source of the hooks: SQLAlchemy, "Core Events", before_cursor_execute and commit.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine

from tests.registry.harness import ground_on
from tests.registry.models.rig import Desk


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(statement: str) -> None:
    """Right before the first statement that begins so; COMMIT: when all is written, and nothing is committed."""

    @event.listens_for(Engine, "before_cursor_execute")
    def executing(_: Any, __: Any, said: str, *___: Any) -> None:
        if said.startswith(statement):
            die()

    @event.listens_for(Engine, "commit")
    def committing(_: Any) -> None:
        if statement == "COMMIT":
            die()


async def main(address: str, number: int, statement: str) -> None:
    async with ground_on(address) as ground:
        die_at(statement)
        await Desk(ground).publish(number)
        die()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
