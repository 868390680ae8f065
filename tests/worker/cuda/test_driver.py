"""One body for both drivers, the machine's own and the one that is not there; then what only the latter notices."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from worker.cuda.driver import CudaDriver, CudaFailed, Device, DeviceMemoryFull, Driver, open_driver
from worker.cuda.fake import CudaMisused, FakeDriver, Live
from worker.cuda.memory import DeviceBuffer, PinnedBuffer
from worker.engine import EngineUnavailable


def real_driver() -> Driver:
    try:
        driver = open_driver()
    except EngineUnavailable as error:
        pytest.skip(f"no NVIDIA driver: {error.message}")
    return driver


@pytest.fixture(params=["fake", "real"])
def driver(request: pytest.FixtureRequest) -> Driver:
    found: Driver = FakeDriver() if request.param == "fake" else real_driver()
    found.use(0)
    return found


@pytest.fixture
def stream(driver: Driver) -> Iterator[int]:
    made = driver.create_stream()
    yield made
    driver.synchronise(made)
    driver.destroy_stream(made)


@pytest.fixture
def buffers(driver: Driver) -> Iterator[tuple[PinnedBuffer, DeviceBuffer, PinnedBuffer]]:
    made = PinnedBuffer(driver), DeviceBuffer(driver), PinnedBuffer(driver)
    for buffer in made:
        buffer.reserve(4096)
    yield made
    for buffer in made:
        buffer.close()


INT32 = np.dtype(np.int32)
Buffers = tuple[PinnedBuffer, DeviceBuffer, PinnedBuffer]


def test_a_device_says_what_it_is(driver: Driver) -> None:
    device = driver.devices()[0]
    assert device.name
    assert device.memory_bytes > 0
    major, minor = device.compute_capability.split(".")
    assert int(major) >= 5
    assert int(minor) >= 0


def test_bytes_come_back_as_they_were_sent(driver: Driver, stream: int, buffers: Buffers) -> None:
    source, device, target = buffers
    source.view((1024,), INT32)[:] = np.arange(1024)
    driver.copy_to_device(device.address, source.address, 4096, stream)
    driver.copy_to_host(target.address, device.address, 4096, stream)
    driver.synchronise(stream)
    np.testing.assert_array_equal(target.view((1024,), INT32), np.arange(1024))


def test_a_part_of_a_buffer_may_be_copied(driver: Driver, stream: int, buffers: Buffers) -> None:
    source, device, target = buffers
    source.view((1024,), INT32)[:] = np.arange(1024)
    driver.copy_to_device(device.address, source.address, 4096, stream)
    driver.copy_to_host(target.address, device.address + 4 * 100, 4 * 10, stream)
    driver.synchronise(stream)
    np.testing.assert_array_equal(target.view((10,), INT32), np.arange(100, 110))


def test_waiting_for_an_event_waits_for_what_came_before_it(driver: Driver, stream: int, buffers: Buffers) -> None:
    source, device, target = buffers
    event = driver.create_event()
    for number in range(3):
        source.view((4,), INT32)[:] = number
        driver.copy_to_device(device.address, source.address, 16, stream)
        driver.copy_to_host(target.address, device.address, 16, stream)
        driver.record(event, stream)
        driver.wait(event)
        np.testing.assert_array_equal(target.view((4,), INT32), np.full(4, number))
    driver.destroy_event(event)


def test_a_captured_graph_runs_again_on_what_the_memory_holds_then(driver: Driver, stream: int, buffers: Buffers) -> None:
    source, device, target = buffers
    source.view((4,), INT32)[:] = 1
    target.view((4,), INT32)[:] = 0
    driver.begin_capture(stream)
    driver.copy_to_device(device.address, source.address, 16, stream)
    driver.copy_to_host(target.address, device.address, 16, stream)
    graph = driver.end_capture(stream)
    driver.synchronise(stream)
    np.testing.assert_array_equal(target.view((4,), INT32), np.zeros(4))
    for number in (7, 8):
        source.view((4,), INT32)[:] = number
        driver.launch(graph, stream)
        driver.synchronise(stream)
        np.testing.assert_array_equal(target.view((4,), INT32), np.full(4, number))
    driver.destroy_graph(graph)


def test_more_memory_than_there_is_is_refused_and_the_next_is_given(driver: Driver) -> None:
    with pytest.raises(DeviceMemoryFull):
        driver.allocate(1 << 50)
    driver.free(driver.allocate(256))


def test_device_memory_is_aligned(driver: Driver) -> None:
    addresses = [driver.allocate(size_bytes) for size_bytes in (1, 3, 1000)]
    assert [address % 256 for address in addresses] == [0, 0, 0]
    for address in addresses:
        driver.free(address)


def test_each_thread_chooses_its_device(driver: Driver) -> None:
    freed: list[bool] = []

    def work() -> None:
        driver.use(0)
        driver.free(driver.allocate(256))
        freed.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert freed == [True]


def test_a_buffer_grows_moves_and_is_freed_once(driver: Driver) -> None:
    for buffer in (DeviceBuffer(driver), PinnedBuffer(driver)):
        assert buffer.reserve(100)
        assert not buffer.reserve(100)
        first_bytes = buffer.capacity_bytes
        assert buffer.reserve(first_bytes + 1)
        assert buffer.capacity_bytes >= 2 * first_bytes
        buffer.close()
        buffer.close()
        assert (buffer.address, buffer.capacity_bytes) == (0, 0)


def test_a_buffer_does_not_grow_ahead_beyond_the_most_that_will_be_asked(driver: Driver) -> None:
    buffer = DeviceBuffer(driver)
    buffer.reserve(1024, 1536)
    buffer.reserve(1100, 1536)
    assert buffer.capacity_bytes == 1536
    buffer.close()


def test_a_buffer_that_cannot_grow_holds_nothing_and_can_grow_later(driver: Driver) -> None:
    buffer = DeviceBuffer(driver)
    buffer.reserve(100)
    with pytest.raises(DeviceMemoryFull):
        buffer.reserve(1 << 50)
    assert (buffer.address, buffer.capacity_bytes) == (0, 0)
    assert buffer.reserve(100)
    buffer.close()


def test_a_machine_without_a_driver_or_without_the_package_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(EngineUnavailable, match=r"cuda-bindings: pip install 'penstock\[tensorrt\]'"):
        open_driver()


def test_the_bindings_name_a_missing_driver() -> None:
    bindings = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    code, _ = bindings.cudaGetDeviceCount()
    if code == bindings.cudaError_t.cudaSuccess:
        pytest.skip("this machine has an NVIDIA driver")
    with pytest.raises(EngineUnavailable, match="needs an NVIDIA driver for CUDA"):
        open_driver()
    with pytest.raises(CudaFailed, match="cudaMalloc failed: cudaError"):
        CudaDriver(bindings).allocate(256)


@pytest.fixture
def fake() -> FakeDriver:
    driver = FakeDriver([Device(0, "small", "8.0", 8192)])
    driver.use(0)
    return driver


def test_the_fake_counts_what_was_not_freed(fake: FakeDriver) -> None:
    address, pinned, stream, event = fake.allocate(100), fake.allocate_pinned(50), fake.create_stream(), fake.create_event()
    fake.begin_capture(stream)
    graph = fake.end_capture(stream)
    assert fake.live == Live(100, 50, 1, 1, 1)
    fake.destroy_graph(graph)
    fake.destroy_event(event)
    fake.destroy_stream(stream)
    fake.free_pinned(pinned)
    fake.free(address)
    assert fake.live == Live(0, 0, 0, 0, 0)


def test_the_fake_notices_a_second_free(fake: FakeDriver) -> None:
    address, pinned = fake.allocate(100), fake.allocate_pinned(100)
    fake.free(address)
    fake.free_pinned(pinned)
    with pytest.raises(CudaMisused, match="nothing is allocated there"):
        fake.free(address)
    with pytest.raises(CudaMisused, match="nothing is pinned there"):
        fake.free_pinned(pinned)


def test_the_fake_notices_memory_that_was_freed_while_a_copy_was_queued(fake: FakeDriver) -> None:
    address, pinned, stream = fake.allocate(100), fake.allocate_pinned(100), fake.create_stream()
    fake.copy_to_device(address, pinned, 100, stream)
    fake.free(address)
    with pytest.raises(CudaMisused, match="was freed"):
        fake.synchronise(stream)


@pytest.mark.parametrize("device_bytes", [99, 101])
def test_the_fake_notices_sizes_beyond_an_allocation(fake: FakeDriver, device_bytes: int) -> None:
    address, pinned, stream = fake.allocate(device_bytes), fake.allocate_pinned(200 - device_bytes), fake.create_stream()
    with pytest.raises(CudaMisused, match="only 99 are there"):
        fake.copy_to_device(address, pinned, 100, stream)


def test_the_fake_notices_host_memory_that_is_not_pinned(fake: FakeDriver) -> None:
    address, stream, plain = fake.allocate(100), fake.create_stream(), np.zeros(100, np.uint8)
    with pytest.raises(CudaMisused, match="pinned host address"):
        fake.copy_to_device(address, plain.ctypes.data, 100, stream)


def test_reading_before_waiting_reads_poison(fake: FakeDriver) -> None:
    source, device, target = PinnedBuffer(fake), DeviceBuffer(fake), PinnedBuffer(fake)
    for buffer in (source, device, target):
        buffer.reserve(100)
    stream = fake.create_stream()
    source.view((4,), INT32)[:] = 1
    target.view((4,), INT32)[:] = 1
    fake.copy_to_device(device.address, source.address, 16, stream)
    fake.copy_to_host(target.address, device.address, 16, stream)
    assert not (target.view((4,), INT32) == 1).any()
    fake.synchronise(stream)
    assert (target.view((4,), INT32) == 1).all()


def test_the_fake_refuses_to_wait_allocate_or_free_while_capturing(fake: FakeDriver) -> None:
    stream, address = fake.create_stream(), fake.allocate(100)
    fake.begin_capture(stream)
    calls: tuple[Callable[[], object], ...] = (
        lambda: fake.allocate(1),
        lambda: fake.free(address),
        lambda: fake.synchronise(stream),
    )
    for forbidden in calls:
        with pytest.raises(CudaMisused, match="while this thread captures"):
            forbidden()


def test_the_fake_notices_a_thread_that_chose_no_device() -> None:
    with pytest.raises(CudaMisused, match="chosen no device"):
        FakeDriver().allocate(1)


def test_the_fake_notices_handles_that_are_gone(fake: FakeDriver) -> None:
    stream, event = fake.create_stream(), fake.create_event()
    fake.destroy_stream(stream)
    fake.destroy_event(event)
    gone: tuple[Callable[[], None], ...] = (
        lambda: fake.destroy_stream(stream),
        lambda: fake.synchronise(stream),
        lambda: fake.wait(event),
        lambda: fake.destroy_graph(99),
        lambda: fake.launch(99, stream),
    )
    for call in gone:
        with pytest.raises(CudaMisused):
            call()


def test_the_fake_notices_a_stream_destroyed_with_work_on_it(fake: FakeDriver) -> None:
    stream = fake.create_stream()
    fake.enqueue(stream, lambda: None)
    with pytest.raises(CudaMisused, match="with work queued"):
        fake.destroy_stream(stream)
