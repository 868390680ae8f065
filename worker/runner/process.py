"""A process that holds one model: how it is started, spoken to and ended.

Owns one child at a time of its life: socket, lifeline, regions, and the thread that carries its output to our log. Started by
exec with a short environment and no descriptors but its own; ended by SIGKILL to its whole process group. Never decides whether
to start another: that is `runner.py`'s.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import structlog

import worker
from worker.engine import Array
from worker.runner.host import Opening
from worker.runner.wire import Lost, Message, Placed, Region, Word, receive, send

_log = structlog.get_logger("penstock.runner")

_PASSED_ON = (
    "PATH",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
)
_CLOSE_S = 2.0
_DYING_S = 0.5
"""A socket closes a moment before its process has ended, and only then is known how."""
_MAX_LINE_BYTES = 2000
_LINES_PER_S = 50


@dataclass(frozen=True, slots=True)
class Launch:
    """A process to start. `where` names the model and slot in sentences and in the log."""

    where: str
    opening: Opening
    threads: int = 1
    """What numerical libraries are told to use."""


class RunnerProcess:
    """One child process. Used by one thread at a time."""

    def __init__(self, launch: Launch) -> None:
        """Starts it, and does not wait for it to be ready. Raises OSError."""
        self._launch = launch
        self.inputs, self.outputs = Region.make("penstock-inputs"), Region.make("penstock-outputs")
        self._link, theirs = socket.socketpair()
        their_lifeline, self._lifeline = os.pipe()
        passed = (theirs.fileno(), their_lifeline, self.inputs.descriptor, self.outputs.descriptor)
        try:
            self._process = subprocess.Popen(  # noqa: S603  # this interpreter, and a module of ours
                [sys.executable, "-u", "-B", "-P", "-s", "-X", "faulthandler", "-m", "worker.runner.child", *map(str, passed)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=launch.opening.folder,
                env=_environment(os.environ, launch.threads),
                pass_fds=passed,
                start_new_session=True,
            )
        except BaseException:
            self._free()
            raise
        finally:
            theirs.close()
            os.close(their_lifeline)
        self.started_s = time.monotonic()
        self.ready = False
        _tell_output(self._process, launch.where)
        try:
            send(self._link, Message(Word.OPEN, launch.opening.to_text()))
        except Lost:  # it ended at once: the answer that is waited for will not come either
            return

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        """It is not reaped here, so that its process group keeps its number until it was killed."""
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def await_ready(self, within_s: float) -> Message:
        """Its answer to being opened. Raises Lost, TimeoutError."""
        answer = receive(self._link, max(0.001, self.started_s + within_s - time.monotonic()))
        self.ready = answer.word is Word.DONE
        return answer

    def run(self, tensors: tuple[Placed, ...], within_s: float) -> Message:
        """One execution. Raises Lost, TimeoutError; the process is of no use then."""
        send(self._link, Message(Word.RUN, tensors=tensors))
        return receive(self._link, within_s)

    def output(self, placed: Placed) -> Array:
        """A copy. Raises ValueError, PenstockError for what is none."""
        return self.outputs.get(placed, copied=True)

    def end(self, *, kindly: bool = False, dying: bool = False) -> str:
        """Kill it, after a moment to close its model if asked kindly. How it ended, in words; `dying` = it hung up already."""
        if kindly and self.ready and self.alive:
            self._let_close()
        ended = not self.alive or (dying and self._ends_within(_DYING_S))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # also what it started itself
        status = self._process.wait()
        self._free()
        return _in_words(status) if ended else "was ended"

    def _ends_within(self, seconds: float) -> bool:
        descriptor = os.pidfd_open(self._process.pid)
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            return bool(poll.poll(seconds * 1000))
        finally:
            os.close(descriptor)

    def _let_close(self) -> None:
        """It hangs up when its model is closed."""
        try:
            send(self._link, Message(Word.CLOSE))
            receive(self._link, _CLOSE_S)
        except TimeoutError:
            _log.warning("model_close_cut_short", process=self._launch.where)
        except Lost:
            return

    def _free(self) -> None:
        self._link.close()
        os.close(self._lifeline)
        self.inputs.close()
        self.outputs.close()


def _environment(ours: Mapping[str, str], threads: int) -> dict[str, str]:
    """A short list: no keys, tokens or settings of the worker's."""
    passed = {name: ours[name] for name in _PASSED_ON if name in ours}
    root = str(Path(worker.__file__).resolve().parent.parent)
    counts = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "OPENBLAS", "MKL")}
    return passed | counts | {"PYTHONPATH": root, "PYTHONIOENCODING": "utf-8:backslashreplace"}


def _in_words(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def _tell_output(process: subprocess.Popen[bytes], where: str) -> None:
    """What it prints, line by line into our log, until it ends."""
    stream = process.stdout
    if stream is None:  # for the type checker: it was asked for
        return
    threading.Thread(target=_tell_lines, args=(stream, where), name=f"output-{process.pid}", daemon=True).start()


def _tell_lines(stream: IO[bytes], where: str) -> None:
    """Bounded: long lines are cut, and what exceeds so many a second is counted instead."""
    second, told, left_out = 0, 0, 0
    with stream:
        for raw in iter(lambda: stream.readline(_MAX_LINE_BYTES), b""):
            now = int(time.monotonic())
            if now != second:
                if left_out:
                    _log.warning("model_output_left_out", process=where, lines=left_out)
                second, told, left_out = now, 0, 0
            told += 1
            if told > _LINES_PER_S:
                left_out += 1
                continue
            line = raw.decode(errors="backslashreplace").rstrip()
            if line:
                _log.info("model_output", process=where, line="".join(each if each.isprintable() else " " for each in line))
