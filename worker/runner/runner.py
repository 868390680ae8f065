"""Runs one model in a process of its own, and starts that anew when it dies.

Decides when: at once after the first death, then later and later, so that a model that dies at each request does not spend
its time starting. The request that its process died of is told so; the next ones are answered. Blocks; belongs to one slot's
thread.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from runtime.backoff import Backoff
from runtime.errors import Code, PenstockError, error_from_wire
from worker.engine import Array, EngineFailed, ModelRefused
from worker.engines.described import fits
from worker.runner.process import Launch, RunnerProcess
from worker.runner.wire import Lost, Message, Placed, Word
from worker.types import TensorSpec

_log = structlog.get_logger("penstock.runner")

_BACKOFF = Backoff(first_s=0.2, max_s=30.0)
_WAITED_OUT_S = 1.0


class RunnerRestarting(PenstockError, code=Code.UNAVAILABLE, reason="RUNNER_RESTARTING"):
    """The model's process died several times in a row and is not started again yet."""


class RunnerDied(PenstockError, code=Code.INTERNAL, reason="RUNNER_DIED"):
    """The model's process died of this request, or did not end with it in time."""


@dataclass(frozen=True, slots=True)
class RunnerLimits:
    start_s: float
    execute_s: float


class Runner:
    """One model's process, whichever it is just now."""

    def __init__(
        self,
        launch: Launch,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        limits: RunnerLimits,
        *,
        batched: bool,
        clock_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Starts the process; `open` waits for it. Raises OSError."""
        self._launch, self._limits, self._batched = launch, limits, batched
        self._inputs = {tensor.name: tensor.datatype for tensor in inputs}
        self._outputs = tuple(outputs)
        self._clock_s, self._sleep = clock_s, sleep
        self._random = random.Random()  # noqa: S311  # jitter
        self._failures = 0
        self._not_before_s = 0.0
        self._staged: tuple[tuple[Placed, ...], dict[str, Array]] | None = None
        self._process: RunnerProcess | None = RunnerProcess(launch)

    @property
    def pid(self) -> int | None:
        """For the curious; None while there is none."""
        return None if self._process is None else self._process.pid

    def open(self) -> None:
        """Wait for the model to be open. Raises ModelRefused, or what else opening it raised there."""
        try:
            self._await_ready()
        except RunnerDied as error:
            raise ModelRefused(error.message) from error
        except ModelRefused as error:
            raise ModelRefused(f"{self._launch.where} refused it: {error.message}") from error

    def staging(self, shapes: Mapping[str, tuple[tuple[int, ...], str]]) -> Mapping[str, Array] | None:
        """See StagingEngine. None for BYTES, and while no process is up."""
        self._staged = None
        process = self._process
        if process is None or not process.ready or any(datatype == "BYTES" for _, datatype in shapes.values()):
            return None
        try:
            self._staged = process.inputs.staging(shapes)
        except ValueError as error:
            raise EngineFailed(f"{self._launch.where}: {error}") from error
        return self._staged[1]

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """One execution. Raises RunnerDied, RunnerRestarting, and what the model's process answers."""
        process = self._up()
        staged, self._staged = self._staged, None
        try:
            if staged is not None and all(inputs.get(name) is array for name, array in staged[1].items()):
                placed = staged[0]
            else:
                placed = process.inputs.put({name: (array, self._inputs[name]) for name, array in inputs.items()})
        except ValueError as error:
            raise EngineFailed(f"{self._launch.where}: {error}") from error
        answer = self._asked(process, placed)
        self._failures = 0
        if answer.word is Word.ERROR:
            raise _error(answer)
        return self._read(process, {each.name: each for each in answer.tensors})

    def close(self) -> None:
        """Safe to call twice."""
        process, self._process = self._process, None
        if process is not None:
            process.end(kindly=True)

    def _up(self) -> RunnerProcess:
        """The process, up and ready; started anew where it died."""
        process = self._process
        if process is not None and process.alive:
            return process if process.ready else self._await_ready()
        if process is not None:
            self._gone(process, "between requests")
        left_s = self._not_before_s - self._clock_s()
        if left_s > _WAITED_OUT_S:
            raise RunnerRestarting(
                f"{self._launch.where} died {self._failures} times in a row and is started again in {left_s:.0f} s; retry then",
                retry_after_s=left_s,
            )
        if left_s > 0:
            self._sleep(left_s)
        if self._process is None and not self._start():
            raise RunnerRestarting(
                f"{self._launch.where} cannot be started now; the worker's log has why; retry", retry_after_s=_WAITED_OUT_S
            )
        return self._await_ready()

    def _start(self) -> bool:
        """Whether a process could be started; it is not waited for."""
        try:
            self._process = RunnerProcess(self._launch)
        except OSError as error:
            delay_s = self._postpone()
            _log.error("runner_start_failed", process=self._launch.where, reason=error.strerror, delay_s=delay_s)
            return False
        return True

    def _await_ready(self) -> RunnerProcess:
        process = self._process
        if process is None:
            raise EngineFailed(f"{self._launch.where} is closed")
        try:
            answer = process.await_ready(self._limits.start_s)
        except TimeoutError as error:
            self._gone(process, "starting")
            raise RunnerDied(
                f"{self._launch.where} was not open after {self._limits.start_s:g} s; raise parameter 'start_timeout_s', or see"
                " what its start waits for"
            ) from error
        except Lost as error:
            how = self._gone(process, "starting", hung_up=True)
            raise RunnerDied(f"{self._launch.where} {how} before it was open; the worker's log has what it printed") from error
        if answer.word is not Word.DONE:
            self._gone(process, "starting")
            raise _error(answer)
        return process

    def _asked(self, process: RunnerProcess, placed: tuple[Placed, ...]) -> Message:
        try:
            return process.run(placed, self._limits.execute_s)
        except TimeoutError as error:
            self._gone(process, "executing")
            raise RunnerDied(
                f"{self._launch.where} had not ended this request after {self._limits.execute_s:g} s and was killed; send fewer"
                " rows, or raise parameter 'execute_timeout_s'"
            ) from error
        except Lost as error:
            how = self._gone(process, "executing", hung_up=True)
            raise RunnerDied(f"{self._launch.where} {how} while it ran this request; the next one is answered anew") from error

    def _gone(self, process: RunnerProcess, when: str, *, hung_up: bool = False) -> str:
        """Clear away what is left of it, and set when another may be started. How it ended, in words."""
        how = process.end(dying=hung_up)
        self._process, self._staged = None, None
        delay_s = self._postpone()
        _log.error("runner_died", process=self._launch.where, when=when, how=how, failures=self._failures, delay_s=delay_s)
        if when == "executing" and not delay_s:
            self._start()  # it opens while nobody waits for it yet
        return how

    def _postpone(self) -> float:
        """After a failure: at once the first time, then later and later."""
        self._failures += 1
        delay_s = _BACKOFF.delay_s(self._failures - 1, self._random) if self._failures > 1 else 0.0
        self._not_before_s = self._clock_s() + delay_s
        return delay_s

    def _read(self, process: RunnerProcess, given: Mapping[str, Placed]) -> list[Array]:
        """The outputs, by what the manifest says of them: the process is not believed."""
        arrays: list[Array] = []
        for tensor in self._outputs:
            placed = given.get(tensor.name)
            if placed is None or not fits(tensor, placed.shape, batched=self._batched):
                shape = "nothing" if placed is None else list(placed.shape)
                raise EngineFailed(
                    f"{self._launch.where} gave {shape} as output {tensor.name!r}; the manifest says {list(tensor.shape)}"
                    f"{' behind the rows' if self._batched else ''}"
                )
            try:
                arrays.append(process.output(replace(placed, datatype=tensor.datatype)))
            except (ValueError, PenstockError) as error:
                raise EngineFailed(f"{self._launch.where} gave an output {tensor.name!r} that is none: {error}") from error
        return arrays


def _error(answer: Message) -> PenstockError:
    try:
        code, reason, text = json.loads(answer.text)
        return error_from_wire(int(code), str(reason), str(text))
    except (ValueError, TypeError):
        return EngineFailed("the model's process failed and did not say how")
