"""How the C library keeps memory: for a process whose threads turn over many buffers of a MiB.

glibc gives threads arenas of their own, and what was freed in one is not used in another: a registry that seals in threads
keeps tens of MiB more than it needs. Few arenas cost it nothing. Elsewhere than on glibc this does nothing.
"""

from __future__ import annotations

import ctypes
import sys

_M_ARENA_MAX = -8  # glibc, malloc.h
_ARENAS = 2


def few_arenas() -> bool:
    """To be called once, before there are threads. Whether it was heard."""
    if sys.platform != "linux":
        return False
    try:
        return bool(ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS))
    except AttributeError:  # another C library
        return False
