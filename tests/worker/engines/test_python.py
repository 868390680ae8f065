"""A model's own code in its own process: what it is given, how it fails, dies, hangs and starts anew."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from runtime.errors import Code, PenstockError
from tests.support.public_models import onnx_affine, python_model
from tests.worker.onnx_models import lookup, spec
from worker.engine import EngineFailed, EngineUnavailable, ModelRefused
from worker.engines import open_engine
from worker.engines.python import RunnerEngine, open_python
from worker.runner.host import CodeFailed, CodeRefused
from worker.runner.runner import Runner, RunnerDied, RunnerRestarting
from worker.tensors import object_array
from worker.types import ModelSpec, TensorSpec

PATIENCE_S = 30.0

CODE = """
import ctypes, os, sys, time

class Model:
    def __init__(self, folder, parameters):
        self.folder, self.parameters, self.runs = folder, parameters, 0

    def execute(self, inputs):
        self.runs += 1
        x = inputs["x"]
        order = int(x[0, 0])
        if order == 1:
            os.abort()
        if order == 2:
            raise ValueError("two is not taken")
        if order == 3:
            return {}["secret"]
        if order == 4:
            while True:
                pass
        if order == 5:
            return {"y": x.astype("f8")}
        if order == 6:
            return {"y": x[0]}
        if order == 7:
            return {}
        if order == 8:
            return None
        if order == 9:
            sys.exit(3)
        if order == 10:
            ctypes.PyDLL(None).sleep(1000)  # in C, with the GIL held
        if order == 11:
            print("said", "\\x1b[31m", "x" * 9000)
            os.write(2, b"and \\xff\\n")
        if order == 12:
            return {"y": x * 0 + self.runs}
        return {"y": x + 1}
"""


def described(datatype: str = "FP32", **other: Any) -> ModelSpec:
    return spec(engine="python", inputs=(TensorSpec("x", datatype, (2,)),), outputs=(TensorSpec("y", datatype, (2,)),), **other)


@pytest.fixture
def engine(tmp_path: Path) -> Any:
    engine = open_python(described(parameters={"execute_timeout_s": "20"}), python_model(tmp_path, CODE))
    yield engine
    engine.close()


def order(engine: RunnerEngine, number: float, slot: int = 0) -> list[Any]:
    return list(engine.run({"x": np.full((1, 2), number, np.float32)}, slot)[0].reshape(-1).tolist())


def pid_of(engine: RunnerEngine, slot: int = 0) -> int:
    runner: Runner = engine._runners[slot]
    assert runner.pid is not None
    return runner.pid


def lives(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def kill(engine: RunnerEngine) -> None:
    """From outside, between requests; returns when it has ended with all its threads."""
    process = engine._runners[0]._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    until_s = time.monotonic() + PATIENCE_S
    while process.alive and time.monotonic() < until_s:
        time.sleep(0.01)


def gone(*pids: int) -> bool:
    """Whether they are, after some time at most."""
    until_s = time.monotonic() + PATIENCE_S
    while any(map(lives, pids)) and time.monotonic() < until_s:
        time.sleep(0.01)
    return not any(map(lives, pids))


@pytest.mark.parametrize(
    ("number", "kind", "sentence"),
    [
        (2, CodeRefused, "the model refuses these inputs: ValueError: two is not taken"),
        (3, CodeFailed, "the model's code raised KeyError; the worker's log has the rest"),
        (5, CodeFailed, "gave output 'y' as float64; the manifest says FP32: float32"),
        (6, EngineFailed, "gave [2] as output 'y'; the manifest says [2] behind the rows"),
        (7, CodeFailed, "gave no output 'y'; it gave []"),
        (8, CodeFailed, "gave a NoneType; a mapping of names to arrays is expected"),
    ],
)
def test_what_the_code_does_wrong_is_told_and_the_process_goes_on(
    engine: RunnerEngine, number: int, kind: type[PenstockError], sentence: str
) -> None:
    before = pid_of(engine)
    with pytest.raises(kind) as failed:
        order(engine, number)
    assert sentence in failed.value.message
    assert order(engine, 0) == [1, 1]
    assert pid_of(engine) == before


@pytest.mark.parametrize(("number", "how"), [(1, "was killed by SIGABRT"), (9, "ended with status 3")])
def test_the_request_that_kills_the_process_fails_and_the_next_one_is_answered(
    engine: RunnerEngine, number: int, how: str
) -> None:
    before = pid_of(engine)
    with pytest.raises(RunnerDied, match=f"{how} while it ran this request") as died:
        order(engine, number)
    assert died.value.code is Code.INTERNAL
    assert order(engine, 0) == [1, 1]
    assert pid_of(engine) != before
    assert gone(before)


def test_a_process_that_died_between_requests_is_not_missed(engine: RunnerEngine) -> None:
    kill(engine)
    assert order(engine, 0) == [1, 1]


@pytest.mark.parametrize("number", [4, 10])
def test_a_hung_execute_is_ended(tmp_path: Path, number: int) -> None:
    engine = open_python(described(parameters={"execute_timeout_s": "0.5"}), python_model(tmp_path, CODE))
    before = pid_of(engine)
    with pytest.raises(RunnerDied, match=r"had not ended this request after 0.5 s and was killed"):
        order(engine, number)
    assert gone(before)
    engine.close()


def test_deaths_in_a_row_are_answered_later_and_later(tmp_path: Path) -> None:
    launched = open_python(described(), python_model(tmp_path, CODE))
    (runner,) = launched._runners
    now_s, slept = [1000.0], list[float]()
    runner._clock_s, runner._sleep = lambda: now_s[0], slept.append
    for _ in range(4):
        with pytest.raises(RunnerDied):
            order(launched, 1)
    assert len(slept) == 2, "the first start after a death is at once"
    assert 0.2 <= slept[0] <= 0.3
    assert 0.4 <= slept[1] <= 0.6
    now_s[0] += 2
    with pytest.raises(RunnerDied):
        order(launched, 1)
    with pytest.raises(RunnerRestarting, match="died 5 times in a row") as restarting:
        order(launched, 0)
    assert restarting.value.code is Code.UNAVAILABLE
    assert restarting.value.retry_after_s is not None
    now_s[0] += restarting.value.retry_after_s
    assert order(launched, 0) == [1, 1]
    launched.close()


def test_every_slot_has_a_process_of_its_own(tmp_path: Path) -> None:
    engine = open_python(described(instances=3), python_model(tmp_path, CODE))
    pids = [pid_of(engine, slot) for slot in range(3)]
    assert len(set(pids)) == 3
    with pytest.raises(RunnerDied, match=r"\(instance 1\)"):
        order(engine, 1, slot=1)
    assert [order(engine, 12, slot)[0] for slot in range(3)] == [1, 1, 1]
    assert [pid_of(engine, slot) == pid for slot, pid in enumerate(pids)] == [True, False, True]
    left = [pid_of(engine, slot) for slot in range(3)]
    engine.close()
    assert gone(*pids, *left)


def test_what_it_prints_goes_to_the_log_line_by_line(engine: RunnerEngine) -> None:
    with capture_logs() as logs:
        order(engine, 11)
        engine.close()
        until_s = time.monotonic() + PATIENCE_S
        while not any("and" in str(log.get("line")) for log in logs) and time.monotonic() < until_s:
            time.sleep(0.01)
    lines = [str(log["line"]) for log in logs if log["event"] == "model_output"]
    assert lines[0].startswith("said  [31m xxx")
    assert max(map(len, lines)) <= 2000
    assert lines[-1] == "and \\xff"


def test_a_flood_of_lines_is_bounded(tmp_path: Path) -> None:
    code = "for number in range(20_000): print(number)\n" + CODE
    with capture_logs() as logs:
        open_python(described(), python_model(tmp_path, code)).close()
    assert len([log for log in logs if log["event"] == "model_output"]) < 5_000


SEES = """
import os, json
class Model:
    def __init__(self, folder, parameters):
        self.seen = json.dumps([sorted(os.environ), os.listdir("/proc/self/fd"), str(folder), parameters, os.getcwd(),
                                sorted(os.listdir(folder))])
    def execute(self, inputs):
        return {"y": inputs["x"][:0].tolist() + [[self.seen, b"raw \\xff"]]}
"""


def test_it_is_given_its_folder_its_parameters_and_little_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_SECRET", "s3cret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    with (tmp_path / "open").open("w") as held:
        os.set_inheritable(held.fileno(), True)
        engine = open_python(described("BYTES", parameters={"depth": "3"}), python_model(tmp_path / "m", SEES))
        seen, raw = engine.run({"x": object_array([b"a", b"b"]).reshape(1, 2)})[0][0]
        engine.close()
    environment, descriptors, folder, parameters, cwd, files = json.loads(seen)
    assert not {"PENSTOCK_SECRET", "AWS_SECRET_ACCESS_KEY", "HOME"} & set(environment)
    assert len(environment) < 20
    assert len(descriptors) == 8, "input, output, error, link, lifeline, two regions, and the listing itself"
    assert (folder, cwd) == (str(tmp_path / "m"),) * 2
    assert parameters == {"depth": "3"}
    assert files == ["model.py"], "nothing is written beside a model's files"
    assert raw == b"raw \xff"


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("import no_such_module", "model.py raised ModuleNotFoundError: No module named 'no_such_module' (model.py, line 1)"),
        ("class Model:\n  def run(self): ...", "model.py has no class Model with a method execute(self, inputs)"),
        ("Model = 3", "model.py has no class Model"),
        ("class Model(: pass", "model.py raised SyntaxError"),
        ("class Model:\n  execute = 3\n  def __init__(self): ...", "model.py has no class Model"),
        ("class Model:\n  def execute(self, inputs): ...", "model.py raised TypeError: Model() takes no arguments"),
        ("import sys\nsys.exit(4)", "model.py raised SystemExit: 4 (model.py, line 2)"),
        ("import os\nos._exit(5)", "ended with status 5 before it was open"),
        ("import os\nos.abort()", "was killed by SIGABRT before it was open"),
    ],
)
def test_code_that_cannot_be_loaded_is_refused_in_one_line(tmp_path: Path, code: str, sentence: str) -> None:
    with pytest.raises(ModelRefused) as refused:
        open_python(described(), python_model(tmp_path, code))
    assert sentence in refused.value.message
    assert "'m'" in refused.value.message
    assert "\n" not in refused.value.message


def test_a_start_that_takes_too_long(tmp_path: Path) -> None:
    code = "import threading\nthreading.Event().wait()"
    with pytest.raises(ModelRefused, match=r"was not open after 0.5 s; raise parameter 'start_timeout_s'"):
        open_python(described(parameters={"start_timeout_s": "0.5"}), python_model(tmp_path, code))


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"execute_timeout_s": "0"}, "parameter 'execute_timeout_s' of model 'm' is '0'"),
        ({"execute_timeout_s": "nan"}, "seconds above 0"),
        ({"start_timeout_s": "soon"}, "parameter 'start_timeout_s' of model 'm' is 'soon'"),
        ({"memory_limit_bytes": "1"}, "a number from 67108864"),
    ],
)
def test_parameters_are_checked(tmp_path: Path, parameters: dict[str, str], sentence: str) -> None:
    with pytest.raises(ModelRefused) as refused:
        open_python(described(parameters=parameters), python_model(tmp_path, CODE))
    assert sentence in refused.value.message


def test_memory_is_bounded_where_the_manifest_says_so(tmp_path: Path) -> None:
    code = CODE.replace('return {"y": x + 1}', 'return {"y": x + len(bytearray(int(x[0, 1]) << 20))}')
    engine = open_python(described(parameters={"memory_limit_bytes": str(2 << 30)}), python_model(tmp_path, code))
    assert engine.run({"x": np.array([[0, 1]], np.float32)})[0][0, 0] == 1 << 20
    with pytest.raises(CodeFailed, match="raised MemoryError"):
        engine.run({"x": np.array([[0, 4096]], np.float32)})
    engine.close()


ENDS_WITH_ITS_PARENT = """
import sys, threading, time
from pathlib import Path
import numpy as np
from tests.worker.engines.test_python import described
from worker.engines.python import open_python
engine = open_python(described(), Path(sys.argv[1]))
threading.Thread(target=lambda: engine.run({"x": np.full((1, 2), int(sys.argv[2]), np.float32)}), daemon=True).start()
time.sleep(0.2)  # best that it is inside already; right in either case
print(engine._runners[0].pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("number", [0, 4, 10])
def test_it_ends_when_the_worker_is_killed_whatever_it_does(tmp_path: Path, number: int) -> None:
    folder = python_model(tmp_path, CODE)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", ENDS_WITH_ITS_PARENT, str(folder), str(number)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert lives(child)
        parent.kill()
    assert gone(child)


def test_what_the_code_started_itself_ends_with_it(tmp_path: Path) -> None:
    code = CODE.replace(
        "self.runs += 1",
        "import subprocess; self.runs += 1; return {'y': inputs['x'] * 0 + subprocess.Popen(['sleep', '1000']).pid}",
    )
    engine = open_python(described("INT32"), python_model(tmp_path, code))
    pid = int(engine.run({"x": np.zeros((1, 2), np.int32)})[0][0, 0])
    assert lives(pid)
    engine.close()
    assert gone(pid)


def test_opening_crashing_and_closing_many_times_leaves_nothing(tmp_path: Path) -> None:
    folder = python_model(tmp_path, CODE)

    def once() -> None:
        engine = open_python(described(), folder)
        with pytest.raises(RunnerDied):
            order(engine, 1)
        engine.close()

    once()
    held, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(5):
        once()
    until_s = time.monotonic() + PATIENCE_S
    while threading.active_count() > threads and time.monotonic() < until_s:
        time.sleep(0.01)
    assert threading.active_count() <= threads
    assert len(os.listdir("/proc/self/fd")) <= held


def test_close_lets_the_model_close(tmp_path: Path) -> None:
    code = CODE + "\n    def close(self):\n        (self.folder / 'closed').touch()\n"
    open_python(described(), python_model(tmp_path, code)).close()
    assert (tmp_path / "closed").exists()


def test_another_engines_model_in_a_process_of_its_own(tmp_path: Path) -> None:
    whole = spec(inputs=(TensorSpec("x", "INT64", (1,)),), outputs=(TensorSpec("y", "FP32", (1,)),))
    own = spec(inputs=whole.inputs, outputs=whole.outputs, parameters={"process": "own"})
    engine = open_engine(own, lookup(tmp_path))
    assert isinstance(engine, RunnerEngine)
    with pytest.raises(PenstockError):
        engine.run({"x": np.array([[4]])})
    assert engine.run({"x": np.array([[3]])})[0].tolist() == [[30.0]]
    kill(engine)
    assert engine.run({"x": np.array([[2]])})[0].tolist() == [[20.0]]
    engine.close()


def test_what_that_engine_refuses_is_refused(tmp_path: Path) -> None:
    own = spec(parameters={"process": "own", "device": "cuda"})
    with pytest.raises(EngineUnavailable, match="install onnxruntime-gpu"):
        open_engine(own, onnx_affine(tmp_path))
    with pytest.raises(ModelRefused, match="'process' of model 'm' is 'mine'; allowed: own"):
        open_engine(spec(parameters={"process": "mine"}), tmp_path)
    with pytest.raises(ModelRefused, match="engines onnx, torch, litert can have one"):
        open_engine(spec(engine="llm", parameters={"process": "own"}), tmp_path)
