"""What this worker was told to hold, and what has to be done for it to be so. A codec and a pure plan.

Level-triggered: orders and copies go in, the next steps come out; asked again after they were taken, it plans nothing. A
version that is no longer ordered goes on answering until the version that replaces it is READY, also when that one fails:
somebody has to answer. Only one that may not be answered for (`standing.py`) ends at once. Absent orders are no orders at all
and are not planned with.

Orders come from the scheduler and, beside them, from whoever calls LoadModel. Where both name a version the scheduler's word
counts, and a call makes it be tried again.

Nobody goes in circles for memory: each order lets others be let go of once (again when its generation grows or LoadModel asks
anew), and who was let go of comes back only to room that is free. A copy that answers although nobody orders it any more leaves
for anybody. So with orders that stand, evictions end.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from google.protobuf.message import DecodeError
from penstock.scheduler.v1 import scheduler_pb2

from runtime.errors import Code, PenstockError
from runtime.ids import Digest, ModelName, ModelVersion
from worker.life.lifecycle import Copy, CopyKey, Room
from worker.life.memory import Eviction, Memory, Refusal, Rooms, evictable, share_out
from worker.types import CopyState


class OrdersRefused(PenstockError, code=Code.INVALID_ARGUMENT, reason="ORDERS_REFUSED"):
    """The bytes under the assignment key are no assignment."""


@dataclass(frozen=True, slots=True)
class Order:
    """One model version to hold."""

    model: ModelName
    version: ModelVersion
    digest: Digest
    generation: int
    asked: int = 0
    """Which of LoadModel's calls asked for it last; 0 = none."""

    @property
    def key(self) -> CopyKey:
        return self.model, self.version


@dataclass(frozen=True, slots=True)
class Begin:
    """A load to begin."""

    order: Order
    promised: bool = False
    """Its memory is reserved: it was known, and is free."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The next steps. Promises and grants concern LOADING copies: of memory to come, and of memory to use."""

    loads: tuple[Begin, ...] = ()
    """To begin now; others wait for a place."""
    withdrawals: tuple[Copy, ...] = ()
    """Loads to break off, and failures to forget."""
    unloads: tuple[Copy, ...] = ()
    evictions: tuple[Eviction, ...] = ()
    forgotten: tuple[Copy, ...] = ()
    """They take nothing and nobody orders them any more."""
    promises: tuple[Copy, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    grants: tuple[Copy, ...] = ()


UNBOUNDED = Memory(limit_bytes=1 << 62)


def parse_orders(raw: bytes) -> tuple[Order, ...]:
    """Raises OrdersRefused."""
    try:
        message = scheduler_pb2.Assignment.FromString(raw)
    except DecodeError as error:
        raise OrdersRefused(f"the {len(raw)} bytes are no penstock.scheduler.v1.Assignment") from error
    orders = {
        (each.model, each.version): Order(
            ModelName(each.model), ModelVersion(each.version), Digest(each.digest), each.generation
        )
        for each in message.models
    }
    return tuple(orders.values())


def merged(scheduled: Iterable[Order], local: Mapping[CopyKey, Order]) -> tuple[Order, ...]:
    """The scheduler's orders first. One that LoadModel asked for too carries which call it was; it counts once."""
    ordered = {order.key: order for order in scheduled}
    both = tuple(
        replace(order, asked=local[key].asked) if key in local and local[key].digest == order.digest else order
        for key, order in ordered.items()
    )
    return both + tuple(order for key, order in local.items() if key not in ordered)


def plan(
    orders: Sequence[Order],
    copies: Iterable[Copy],
    *,
    now_s: float,
    loads_at_once: int,
    memory: Memory = UNBOUNDED,
    barred: Collection[CopyKey] = (),
) -> Plan:
    """The next steps. Orders are taken in their own order. Those copies that are `barred` end, whoever ordered them."""
    held = {copy.key: copy for copy in copies}
    ordered = {order.key: order for order in orders}
    awaited = {order.model for order in orders if not _answers(held.get(order.key), order)}
    unwanted = [copy for copy in held.values() if not _is_ordered(copy, ordered)]
    unloads = tuple(
        copy
        for copy in held.values()
        if copy.state is CopyState.READY
        and (copy.key in barred or (copy in unwanted and (copy.key in ordered or copy.model not in awaited)))
    )
    withdrawals = tuple(
        copy
        for copy in held.values()
        if (copy in unwanted and copy.state in (CopyState.LOADING, CopyState.FAILED))
        or (copy.key in barred and copy.state is CopyState.LOADING)
    )
    going = {copy.key for copy in (*unloads, *withdrawals)}
    staying = [copy for copy in held.values() if copy.key not in going and copy.state not in _LEAVING]
    leaving = [copy for copy in held.values() if copy.key in going or copy.state in _LEAVING]
    spare = frozenset(copy.key for copy in unwanted if copy.state is CopyState.READY and copy.key not in going)
    memory = replace(memory, spare=spare)
    rooms = share_out(staying, [copy for copy in leaving if _takes_memory(copy)], memory)
    free = loads_at_once - sum(copy.state is CopyState.LOADING for copy in held.values())
    return Plan(
        loads=tuple(_begins(orders, held, free, now_s, staying, memory, rooms)),
        withdrawals=withdrawals,
        unloads=unloads,
        evictions=tuple(rooms.evictions),
        forgotten=tuple(copy for copy in unwanted if copy.state is CopyState.UNAVAILABLE),
        promises=tuple(rooms.promises),
        refusals=tuple(rooms.refusals),
        grants=tuple(rooms.grants),
    )


_LEAVING = (CopyState.DRAINING, CopyState.UNLOADING)


def _begins(
    orders: Iterable[Order],
    held: Mapping[CopyKey, Copy],
    free: int,
    now_s: float,
    staying: Sequence[Copy],
    memory: Memory,
    rooms: Rooms,
) -> list[Begin]:
    begins: list[Begin] = []
    for order in orders:
        if len(begins) >= free:
            break
        copy = held.get(order.key)
        if copy is not None and _awaits_room(copy) and copy.digest == order.digest and not is_newer(order, copy):
            if rooms.reserve(copy.memory_bytes):
                begins.append(Begin(order, promised=True))
            elif (
                _may_ask_again(copy, now_s)
                and not rooms.evictions
                and evictable(copy, staying, memory, free_bytes=rooms.free_bytes) is not None
            ):
                begins.append(Begin(order))
        elif _wants_load(order, copy, now_s):
            begins.append(Begin(order))
    return begins


def is_newer(order: Order, copy: Copy) -> bool:
    """Whether the order was given anew since the copy was loaded for it."""
    return order.generation > copy.generation or order.asked > copy.asked


def _wants_load(order: Order, copy: Copy | None, now_s: float) -> bool:
    if copy is None:
        return True
    if copy.digest != order.digest or not (copy.state is CopyState.FAILED or _awaits_room(copy)):
        return False  # another digest has to be gone first
    return is_newer(order, copy) or (copy.retry_at_s is not None and now_s >= copy.retry_at_s)


def _awaits_room(copy: Copy) -> bool:
    return copy.awaits_room and copy.state in (CopyState.FAILED, CopyState.UNAVAILABLE)


def _may_ask_again(copy: Copy, now_s: float) -> bool:
    """If it was refused because others were in use, some time has passed."""
    return copy.retry_at_s is None or now_s >= copy.retry_at_s


def _takes_memory(copy: Copy) -> bool:
    return copy.state in (CopyState.READY, *_LEAVING) or (copy.state is CopyState.LOADING and copy.room is Room.GIVEN)


def _is_ordered(copy: Copy, ordered: dict[CopyKey, Order]) -> bool:
    order = ordered.get(copy.key)
    return order is not None and order.digest == copy.digest


def _answers(copy: Copy | None, order: Order) -> bool:
    return copy is not None and copy.state is CopyState.READY and copy.digest == order.digest
