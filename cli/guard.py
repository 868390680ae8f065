"""Starts one child of `penstock up` so that it cannot outlive it: kill -9 of the parent ends the child too.

Run as `python -I -S guard.py PARENT_PID COMMAND …`, by path, so that it imports next to nothing. It takes a session of its own
(Ctrl-C at the terminal reaches `up` alone, which then stops everything in order), asks the kernel for a signal when its parent
dies, and becomes the command. Source: prctl(2) PR_SET_PDEATHSIG, kept over execve.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the kernel was asked
            sys.exit(1)
    os.execv(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main()
