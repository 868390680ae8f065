"""Passwords: hashed with argon2id, checked in threads, few at once.

Owns how much memory and time a guess costs, here and to a thief of the database. What does not exist is checked against a hash
of the same cost that nothing fits, so that an answer's time does not tell who exists. (A hash made with older parameters takes
another time, until its user logs in again.)
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Callable
from typing import TypeVar

from argon2 import Parameters, PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError

from registry.accounts.types import PasswordsBusy
from registry.threads import in_thread

T = TypeVar("T")

RECOMMENDED = Parameters(
    # | parameter | value | source |
    # |---|---|---|
    # | variant | argon2id, version 1.3 | RFC 9106 4: "MUST be supported", both recommended options |
    # | passes t | 3 | RFC 9106 4, second recommended option |
    # | lanes p | 4 | the same |
    # | memory m | 64 MiB | the same; OWASP's Password Storage Cheat Sheet asks for 19 MiB and t=2 at least |
    # | salt | 128 bits | the same |
    # | tag | 256 bits | the same |
    type=Type.ID,
    version=19,
    time_cost=3,
    parallelism=4,
    memory_cost=64 * 1024,
    salt_len=16,
    hash_len=32,
)
AT_ONCE = 2
"""128 MiB at most."""
WAITING = 16
"""About a second of work."""


class Passwords:
    """Belongs to one event loop."""

    def __init__(self, parameters: Parameters = RECOMMENDED, *, at_once: int = AT_ONCE, waiting: int = WAITING) -> None:
        self._hasher = PasswordHasher.from_parameters(parameters)
        self._nobody = _hash_that_nothing_fits(parameters)
        self._turns, self._room = asyncio.Semaphore(at_once), at_once + waiting

    async def hash(self, password: str) -> str:
        """What is stored. Raises PasswordsBusy."""
        return await self._in_turn(lambda: self._hasher.hash(password))

    async def fits(self, stored: str | None, password: str) -> bool:
        """Whether this is the password that was hashed; without a hash it never is, and takes as long. Raises PasswordsBusy."""
        fits = await self._in_turn(lambda: self._verified(stored or self._nobody, password))
        return fits and stored is not None

    def is_outdated(self, stored: str) -> bool:
        """Whether it was made with other parameters than are used now."""
        return self._hasher.check_needs_rehash(stored)

    def _verified(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except (VerificationError, InvalidHashError):
            return False

    async def _in_turn(self, work: Callable[[], T]) -> T:
        if not self._room:
            raise PasswordsBusy("too many passwords are being checked; try again", retry_after_s=1.0)
        self._room -= 1
        try:
            async with self._turns:
                return await in_thread(work)
        finally:
            self._room += 1


def _hash_that_nothing_fits(parameters: Parameters) -> str:
    """A random tag: that some password has it is as likely as guessing 256 bits."""
    salt, tag = (
        base64.b64encode(secrets.token_bytes(length)).decode().rstrip("=")
        for length in (parameters.salt_len, parameters.hash_len)
    )
    costs = f"m={parameters.memory_cost},t={parameters.time_cost},p={parameters.parallelism}"
    return f"$argon2id$v={parameters.version}${costs}${salt}${tag}"
