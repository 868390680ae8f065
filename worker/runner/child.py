"""The other side of a runner: a process that holds one model and answers one caller over inherited descriptors.

Started by `worker.runner.process` alone. Never outlives it: the kernel kills this process when the runner's end of the lifeline
closes, also in the middle of code that holds the GIL. What the model prints goes to the runner's log.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import select
import signal
import socket
import sys
import traceback

from runtime.errors import PenstockError
from worker.engine import EngineFailed
from worker.runner.host import Hosted, Opening, last_line, open_code
from worker.runner.wire import Lost, Message, Region, Word, receive, send


def main(link: int, lifeline: int, inputs: int, outputs: int) -> None:
    die_with(lifeline)
    with contextlib.suppress(Lost):
        serve(socket.socket(fileno=link), Region(inputs), Region(outputs))


def die_with(lifeline: int) -> None:
    """Be killed by the kernel as soon as the other end of this pipe is closed."""
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(lifeline, select.POLLIN | select.POLLHUP)
    if poll.poll(0):  # closed before the kernel was asked
        os._exit(1)


def serve(link: socket.socket, inputs: Region, outputs: Region) -> None:
    """Open what the first message says, then run what comes, one after the other. Raises Lost when the runner hangs up."""
    opening = Opening.from_text(receive(link, None).text)
    limit(opening.memory_limit_bytes)
    try:
        hosted = _open_engine(opening) if opening.engine_spec else open_code(opening)
    except Exception as error:
        send(link, _error(error))
        return
    send(link, Message(Word.DONE))
    while (message := receive(link, None)).word is not Word.CLOSE:
        send(link, _answer(hosted, message, inputs, outputs))
    hosted.close()


def _open_engine(opening: Opening) -> Hosted:
    from worker.runner.engine_host import open_engine_here  # most models bring their own code, and need no engine

    return open_engine_here(opening)


def limit(memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def _answer(hosted: Hosted, message: Message, inputs: Region, outputs: Region) -> Message:
    try:
        given = hosted.execute({each.name: inputs.get(each, copied=False) for each in message.tensors})
        return Message(Word.DONE, tensors=outputs.put(given))
    except Exception as error:
        return _error(error)


def _error(error: Exception) -> Message:
    if not isinstance(error, PenstockError):
        traceback.print_exception(error)
        error = EngineFailed(f"the model's process failed: {last_line(error)}")
    return Message(Word.ERROR, json.dumps((int(error.code), error.reason, error.message)))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:5]))
