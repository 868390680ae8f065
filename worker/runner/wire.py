"""What a runner and its process say to each other: short messages over a socket, tensors in shared memory.

Owns the framing and the layout of a region: one memfd that both sides map; each side writes one of the two. It grows
and never shrinks (sealed), so that nobody can take pages away under the other. Light to import: the child starts with it.
"""

from __future__ import annotations

import enum
import fcntl
import json
import mmap
import os
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from worker.datatypes import DATATYPES
from worker.engine import Array
from worker.tensors import element_count, from_raw, to_raw

MAX_REGION_BYTES = 4 * 1024**3
_MAX_MESSAGE_BYTES = 4 * 1024**2
_LENGTH = struct.Struct("<I")
_ALIGNMENT_BYTES = 64
_F_ADD_SEALS, _F_SEAL_SHRINK = 1033, 2  # linux/fcntl.h


class Lost(Exception):
    """The other side is gone, or does not speak as it should."""


class Word(enum.Enum):
    OPEN = "open"
    """Text: what to open. Answered by DONE or ERROR."""
    RUN = "run"
    """Tensors: the inputs. Answered by DONE with the outputs, or ERROR."""
    CLOSE = "close"
    DONE = "done"
    ERROR = "error"
    """Text: a code, a reason and a sentence."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor in a region."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    offset_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Message:
    word: Word
    text: str = ""
    tensors: tuple[Placed, ...] = ()


def send(link: socket.socket, message: Message) -> None:
    """Raises Lost."""
    tensors = [(each.name, each.datatype, each.shape, each.offset_bytes, each.size_bytes) for each in message.tensors]
    content = json.dumps((message.word.value, message.text, tensors)).encode()
    try:
        link.sendall(_LENGTH.pack(len(content)) + content)
    except OSError as error:
        raise Lost("it hung up") from error


def receive(link: socket.socket, within_s: float | None) -> Message:
    """The next message. Raises Lost, TimeoutError."""
    until_s = None if within_s is None else time.monotonic() + within_s
    size_bytes = _LENGTH.unpack(_exactly(link, _LENGTH.size, until_s))[0]
    if size_bytes > _MAX_MESSAGE_BYTES:
        raise Lost(f"it sent a message of {size_bytes} bytes; up to {_MAX_MESSAGE_BYTES} are taken")
    try:
        word, text, tensors = json.loads(_exactly(link, size_bytes, until_s))
        return Message(Word(word), str(text), tuple(_placed(*tensor) for tensor in tensors))
    except (ValueError, TypeError, RecursionError) as error:
        raise Lost("it sent what is no message") from error


def _placed(name: str, datatype: str, shape: Sequence[int], offset_bytes: int, size_bytes: int) -> Placed:
    return Placed(str(name), str(datatype), tuple(map(int, shape)), int(offset_bytes), int(size_bytes))


def _exactly(link: socket.socket, size_bytes: int, until_s: float | None) -> bytes:
    parts: list[bytes] = []
    while size_bytes:
        left_s = None if until_s is None else until_s - time.monotonic()
        if left_s is not None and left_s <= 0:
            raise TimeoutError
        link.settimeout(left_s)
        try:
            part = link.recv(size_bytes)
        except TimeoutError:
            raise
        except OSError as error:
            raise Lost("it hung up") from error
        if not part:
            raise Lost("it hung up")
        parts.append(part)
        size_bytes -= len(part)
    link.settimeout(None)
    return b"".join(parts)


class Region:
    """Shared memory that one side writes and the other reads."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._mapped: mmap.mmap | None = None

    @classmethod
    def make(cls, name: str) -> Region:
        descriptor = os.memfd_create(name[:200], os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        fcntl.fcntl(descriptor, _F_ADD_SEALS, _F_SEAL_SHRINK)
        return cls(descriptor)

    def close(self) -> None:
        """Arrays that were given out stay usable."""
        self._mapped = None
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1

    def staging(self, layout: Mapping[str, tuple[tuple[int, ...], str]]) -> tuple[tuple[Placed, ...], dict[str, Array]]:
        """Arrays to write tensors of fixed-size elements into. Raises ValueError where they are too much."""
        placed: list[Placed] = []
        end = 0
        for name, (shape, datatype) in layout.items():
            size_bytes = element_count(shape) * DATATYPES[datatype].size_bytes
            placed.append(Placed(name, datatype, shape, end, size_bytes))
            end = _aligned(end + size_bytes)
        mapped = self._reaching(end, grow=True)
        return tuple(placed), {each.name: _view(mapped, each) for each in placed}

    def put(self, arrays: Mapping[str, tuple[Array, str]]) -> tuple[Placed, ...]:
        """Copy tensors of any datatype in. Raises ValueError where they are too much."""
        raws = {name: to_raw(array) for name, (array, _) in arrays.items() if array.dtype.hasobject}
        placed: list[Placed] = []
        end = 0
        for name, (array, datatype) in arrays.items():
            size_bytes = len(raws[name]) if name in raws else array.nbytes
            placed.append(Placed(name, datatype, array.shape, end, size_bytes))
            end = _aligned(end + size_bytes)
        mapped = self._reaching(end, grow=True)
        for each in placed:
            if each.name in raws:
                mapped[each.offset_bytes : each.offset_bytes + each.size_bytes] = raws[each.name]
            else:
                np.copyto(_view(mapped, each), arrays[each.name][0])
        return tuple(placed)

    def get(self, placed: Placed, *, copied: bool) -> Array:
        """A tensor that the other side put there; a view of the region unless copied. Raises ValueError, PenstockError."""
        datatype = DATATYPES[placed.datatype]
        if placed.offset_bytes < 0 or placed.size_bytes < 0 or min(placed.shape, default=0) < 0:
            raise ValueError("a tensor lies outside of its region")
        mapped = self._reaching(placed.offset_bytes + placed.size_bytes, grow=False)
        if not datatype.size_bytes or datatype.name == "BOOL":  # BOOL: any byte may lie there, and numpy knows 0 and 1 only
            raw = mapped[placed.offset_bytes : placed.offset_bytes + placed.size_bytes]
            return from_raw(raw, datatype, placed.shape, placed.name)
        if placed.size_bytes != element_count(placed.shape) * datatype.size_bytes:
            raise ValueError("a tensor's size is not that of its shape")
        view = _view(mapped, placed)
        return view.copy() if copied else view

    def _reaching(self, size_bytes: int, *, grow: bool) -> mmap.mmap:
        """The region, mapped at least so far."""
        if self._mapped is not None and len(self._mapped) >= size_bytes:
            return self._mapped
        if size_bytes > MAX_REGION_BYTES:
            raise ValueError(f"tensors of {size_bytes} bytes; {MAX_REGION_BYTES} can be passed at once")
        there = os.fstat(self.descriptor).st_size
        if there < size_bytes or not there:
            if not grow:
                raise ValueError("a tensor lies outside of its region")
            there = max(mmap.PAGESIZE, 1 << (size_bytes - 1).bit_length() if size_bytes else 0)  # rarely again
            os.ftruncate(self.descriptor, there)
        self._mapped = mmap.mmap(self.descriptor, there)  # the old one goes with the last array in it
        return self._mapped


def _view(mapped: mmap.mmap, placed: Placed) -> Array:
    dtype = DATATYPES[placed.datatype].dtype
    return np.frombuffer(mapped, dtype, element_count(placed.shape), placed.offset_bytes).reshape(placed.shape)


def _aligned(offset_bytes: int) -> int:
    return -(-offset_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
