"""What this worker was told to hold, and what has to be done for it to be so. A codec and a pure plan.

Level-triggered: orders and copies go in, the next steps come out; asked again after they were taken, it plans nothing. A
version that is no longer ordered goes on answering until the version that replaces it is READY, also when that one fails:
somebody has to answer. Absent orders are no orders at all and are not planned with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from penstock.scheduler.v1 import scheduler_pb2

from runtime.errors import Code, PenstockError
from runtime.ids import Digest, ModelName, ModelVersion
from worker.lifecycle import Copy, CopyKey
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

    @property
    def key(self) -> CopyKey:
        return self.model, self.version


@dataclass(frozen=True, slots=True)
class Plan:
    loads: tuple[Order, ...] = ()
    """To begin now; others wait for a place."""
    withdrawals: tuple[Copy, ...] = ()
    """Loads to break off, and failures to forget."""
    unloads: tuple[Copy, ...] = ()


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


def plan(orders: Sequence[Order], copies: Iterable[Copy], *, now_s: float, loads_at_once: int) -> Plan:
    """The next steps. Orders are taken in their own order."""
    held = {copy.key: copy for copy in copies}
    ordered = {order.key: order for order in orders}
    free = loads_at_once - sum(copy.state is CopyState.LOADING for copy in held.values())
    due = [order for order in orders if _wants_load(order, held.get(order.key), now_s)]
    unwanted = [copy for copy in held.values() if not _is_ordered(copy, ordered)]
    awaited = {order.model for order in orders if not _answers(held.get(order.key), order)}
    return Plan(
        loads=tuple(due[: max(0, free)]),
        withdrawals=tuple(copy for copy in unwanted if copy.state in (CopyState.LOADING, CopyState.FAILED)),
        unloads=tuple(
            copy for copy in unwanted if copy.state is CopyState.READY and (copy.key in ordered or copy.model not in awaited)
        ),
    )


def _wants_load(order: Order, copy: Copy | None, now_s: float) -> bool:
    if copy is None:
        return True
    if copy.state is not CopyState.FAILED or copy.digest != order.digest:
        return False  # another digest has to be gone first
    return order.generation > copy.generation or (copy.retry_at_s is not None and now_s >= copy.retry_at_s)


def _is_ordered(copy: Copy, ordered: dict[CopyKey, Order]) -> bool:
    order = ordered.get(copy.key)
    return order is not None and order.digest == copy.digest


def _answers(copy: Copy | None, order: Order) -> bool:
    return copy is not None and copy.state is CopyState.READY and copy.digest == order.digest
