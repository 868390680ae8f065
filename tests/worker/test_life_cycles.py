"""Loading and unloading again and again: nothing is left behind. `benchmarks/soak.py` does the same a thousand times over."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

from penstock.registry.v1 import models_pb2

from runtime.clock import SystemClock
from runtime.ids import ModelName, ModelVersion
from runtime.memory_store import MemoryStore
from tests.worker.manifests import TRUSTED, MemoryRegistry, manifest_of
from tests.worker.onnx_models import identity, spec
from worker.batching.tensor_model import TensorModel
from worker.copies import open_model
from worker.files.artifacts import Artifacts
from worker.files.cache import open_cache
from worker.life.lifecycle import Holdings
from worker.life.loading import LoadRules
from worker.life.reconcile import Reconciler
from worker.life.repository import FolderRepository
from worker.models import ModelTable

CYCLES = 25


def published(registry: MemoryRegistry, folder: Path) -> models_pb2.Manifest:
    files = {"model.onnx": (identity(folder, "FP32") / "model.onnx").read_bytes()}
    manifest = manifest_of(files)
    for tensor in (*manifest.inputs, *manifest.outputs):
        tensor.shape[:] = [2]
    registry.files.update({file.sha256: files[file.path] for file in manifest.files})
    return manifest


def threads() -> Counter[str]:
    """How many there are of each name. Only more of them is a leak: those of other tests may end meanwhile."""
    return Counter(thread.name for thread in threading.enumerate() if not thread.name.startswith("asyncio"))


def open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0


async def gone(reference: weakref.ref[Any]) -> bool:
    """Whether nothing holds it any more, once the engine's thread has ended."""
    for _ in range(2000):
        gc.collect()
        if reference() is None:
            return True
        await asyncio.sleep(0.001)
    return False


async def test_closing_a_copy_frees_its_engine(tmp_path: Path) -> None:
    loaded = await open_model(spec(), identity(tmp_path, "FP32"))
    assert isinstance(loaded, TensorModel)
    engine, session = weakref.ref(loaded._engine), weakref.ref(loaded._engine._session)  # type: ignore[attr-defined]
    table = ModelTable()
    table.add(loaded)
    await table.remove(ModelName("m"), ModelVersion("1"))
    assert await gone(session), "at once, also while somebody still names the copy"
    del loaded
    assert await gone(engine)


async def test_orders_that_come_and_go_leave_no_file_thread_task_or_descriptor(tmp_path: Path) -> None:
    registry, table, holdings = MemoryRegistry(), ModelTable(), Holdings()
    digest = registry.publish(published(registry, tmp_path / "model"))
    rules, clock = LoadRules(leave_grace_s=0.0), SystemClock()
    with open_cache(tmp_path / "cache", 1 << 30) as cache:
        artifacts = Artifacts(cache, registry, lambda: TRUSTED)
        async with MemoryStore(clock=clock, rng=random.Random(1)) as store:
            reconciler = Reconciler(store, "/key", artifacts, table, open_model, holdings, clock, random.Random(2), rules)
            async with reconciler.running():

                async def cycle() -> None:
                    await reconciler.local.load(ModelName("digits"), ModelVersion("1"), digest)
                    await reconciler.local.unload(ModelName("digits"), ModelVersion("1"))

                for _ in range(3):
                    await cycle()
                before = threads(), len(asyncio.all_tasks()), open_files()
                for _ in range(CYCLES):
                    await cycle()
                await _until(lambda: not threads() - before[0] and len(asyncio.all_tasks()) <= before[1])
                assert open_files() <= before[2]
        assert (len(holdings), len(table), cache._pins, cache._laid_out) == (0, 0, {}, {})
        assert not list((tmp_path / "cache" / "models").iterdir())
        assert not list((tmp_path / "cache" / "partial").iterdir())
        assert holdings._watching == [reconciler._dirty]


async def test_a_folder_loaded_anew_again_and_again_leaves_as_little(tmp_path: Path) -> None:
    folder = identity(tmp_path / "m", "FP32")
    tensors = "".join(f'[[{kind}]]\nname = "{name}"\ndatatype = "FP32"\nshape = [2]\n' for kind, name in _TENSORS)
    (folder / "model.toml").write_text(f'name = "m"\nengine = "onnx"\ntask = "tensor"\nmax_batch_size = 8\n{tensors}')
    table, others = ModelTable(), set(threading.enumerate())
    repository = FolderRepository((folder,), (), table, Holdings(), open_model)
    async with repository.running():
        await repository.load("m")
        before = threads(), len(asyncio.all_tasks()), open_files()
        for number in range(CYCLES):
            if number % 2:
                await repository.unload("m")
            await repository.load("m")
        await _until(lambda: not threads() - before[0] and len(asyncio.all_tasks()) <= before[1] and not table.leaving)
        assert open_files() <= before[2]
        await repository.unload("m")
    await _until(lambda: not [each for each in set(threading.enumerate()) - others if each.name.startswith("engine-")])


_TENSORS = (("inputs", "x"), ("outputs", "y"))


async def _until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)
