"""Whether what etcd says has to be written anew. Pure.

Two replicas never overwrite each other with something older: each reads etcd first, then the database, and writes only if etcd
is still as it was read; so of two writes the later one was made of the later reading. The generation catches what that cannot:
a database that is itself older than what was already told.
"""

from __future__ import annotations

import enum

from registry.notices.types import Told, Truth


class Verdict(enum.Enum):
    LEAVE = "leave"
    WRITE = "write"
    REMOVE = "remove"
    AHEAD = "ahead"
    """etcd knows a newer one than the database, which was put back from a backup: leave it, and say so."""


def judge(told: Told, truth: Truth | None, *, now_ms: int, whole: bool) -> Verdict:
    """`whole`: the contents are compared too, not only whether something is there that is to be believed and not older.

    Contents are not compared for what another replica has just written: two releases that write the same notice in different
    words would correct each other for ever.
    """
    if truth is None:
        return Verdict.LEAVE  # never told of, or by another database: not ours to take back
    if truth.until_ms and now_ms >= truth.until_ms:
        return Verdict.LEAVE if told.item is None else Verdict.REMOVE
    if told.payload is None or told.generation < truth.generation:
        return Verdict.WRITE
    if told.generation > truth.generation:
        return Verdict.AHEAD
    return Verdict.WRITE if whole and told.payload != truth.payload else Verdict.LEAVE
