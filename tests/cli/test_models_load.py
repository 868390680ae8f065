"""`penstock models load`: at least so many, as many as are asked for, on which workers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc.aio
import pytest

from cli.models import PushOptions, load_model, push_folder, spread_of
from cli.publish import Spread
from placement.copies.wishes import Placement
from runtime.errors import FailedPrecondition, InvalidArgument
from tests.cli.models_mesh import Mesh, opened_mesh
from tests.cli.test_models import write_folder
from tests.support.waiting import eventually
from worker.life.memory import BASE_BYTES, FACTORS


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with opened_mesh(tmp_path / "mesh") as made, AsyncExitStack() as stack:
        for name in ("one", "two"):
            await stack.enter_async_context(made.worker(name))
        await eventually(lambda: len(made.scheduler.fleet.members) == 2)
        await push_folder(made.profile, write_folder(tmp_path / "digits"), PushOptions())
        yield made


def wished(mesh: Mesh) -> Placement:
    [wish] = mesh.scheduler.control.wishes()
    return wish


async def test_it_is_loaded_on_so_many_and_may_grow(mesh: Mesh, capsys: pytest.CaptureFixture[str]) -> None:
    await load_model(mesh.profile, "digits", "", 1, wait=True, spread=Spread(max_copies=5))
    assert (wished(mesh).copies, wished(mesh).max_copies) == (1, 5)
    assert "digits version 1: 1 of 1 copies are ready" in capsys.readouterr().out


async def test_on_demand_nothing_is_waited_for(mesh: Mesh, capsys: pytest.CaptureFixture[str]) -> None:
    least, spread = spread_of(2, 0, on_demand=True, tier="", labels=())
    await load_model(mesh.profile, "digits", "", least, wait=True, spread=spread)
    assert (wished(mesh).copies, wished(mesh).max_copies) == (0, 2)
    assert "digits version 1 will be loaded when somebody asks for it, on up to 2 workers" in " ".join(
        capsys.readouterr().out.split()
    )
    await load_model(mesh.profile, "digits", "1", 0, wait=True)
    assert (wished(mesh).copies, wished(mesh).max_copies) == (0, 0), "and unloading ends that"


async def test_what_a_copy_is_thought_to_take_goes_along(mesh: Mesh) -> None:
    await load_model(mesh.profile, "digits", "", 1, wait=False)
    assert wished(mesh).memory_bytes > BASE_BYTES
    assert (wished(mesh).memory_bytes - BASE_BYTES) / FACTORS["onnx"] == pytest.approx(35_021, abs=100)


async def test_who_is_not_of_the_kind_is_not_waited_for(mesh: Mesh) -> None:
    with pytest.raises(FailedPrecondition, match="no worker may load digits version 1: all 2 are of other"):
        await load_model(mesh.profile, "digits", "", 1, wait=True, spread=Spread(tier="A", labels=("spot",)))
    assert (wished(mesh).tier, wished(mesh).labels) == ("A", frozenset({"spot"}))


async def test_what_the_scheduler_refuses_is_said(mesh: Mesh) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="is no label"):
        await load_model(mesh.profile, "digits", "", 1, wait=True, spread=Spread(labels=("not a label",)))


@pytest.mark.parametrize(
    ("copies", "most", "on_demand", "expected"),
    [
        (2, 0, False, (2, Spread())),
        (2, 4, False, (2, Spread(max_copies=4))),
        (2, 0, True, (0, Spread(max_copies=2))),
        (2, 8, True, (0, Spread(max_copies=8))),
    ],
)
def test_what_the_options_come_to(copies: int, most: int, on_demand: bool, expected: tuple[int, Spread]) -> None:
    assert spread_of(copies, most, on_demand=on_demand, tier="", labels=[]) == expected


def test_fewer_at_most_than_at_least_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="--max-copies 1 is less than --copies 2"):
        spread_of(2, 1, on_demand=False, tier="", labels=[])
