"""What is counted and traced of a text model's generations. Plain additions on the loop; decides nothing.

An execution is a step of the batch and its rows are the generations in it. A request's compute time is that of all the steps it
took part in; its responses are its pieces.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from worker.engine import Piece
from worker.generation.stepper import Execution, Ticket
from worker.spans import GenerationTimes, trace_generation
from worker.statistics import CopyStatistics, Failure, Timing
from worker.types import CallContext


class GenerationRecords:
    """Writes into a copy's statistics. Every request ends here exactly once: in `arrived` with its last piece, or as failed."""

    def __init__(self, statistics: CopyStatistics, *, model: str, version: str) -> None:
        self._statistics = statistics
        self._model, self._version = model, version

    def executed(self, executions: Sequence[Execution]) -> None:
        wall_ms = int(time.time() * 1000)
        for execution in executions:
            # Requests are charged when they end, with all of their steps.
            self._statistics.executed(execution.rows, 0, Timing(0, execution.infer_ns, 0), wall_ms=wall_ms)

    def arrived(self, ticket: Ticket, piece: Piece) -> None:
        """A piece for a reader who is still there."""
        now_ns = time.monotonic_ns()
        statistics = self._statistics
        if not ticket.first_ns:
            ticket.first_ns = now_ns
            statistics.first_response.observe((now_ns - ticket.arrived_ns) / 1e6)
        statistics.responded(ticket.responses, now_ns - (ticket.last_ns or ticket.began_ns), empty=not piece.text)
        ticket.responses += 1
        ticket.last_ns = now_ns
        if piece.finish is not None:
            statistics.success.add(now_ns - ticket.arrived_ns)
            statistics.prompt_tokens += piece.prompt_tokens
            statistics.completion_tokens += piece.completion_tokens

    def released(self, ticket: Ticket) -> None:
        """It has left the batch, if it ever was in it."""
        if not ticket.began_ns:
            return
        self._statistics.queue.add(max(0, ticket.began_ns - ticket.arrived_ns))
        if ticket.ended:
            self._statistics.compute_input.add(0)
            self._statistics.compute_infer.add(ticket.infer_ns)
            self._statistics.compute_output.add(0)

    def failed(self, reason: Failure, ticket: Ticket) -> None:
        now_ns = time.monotonic_ns()
        self._statistics.failed(reason, now_ns - ticket.arrived_ns)
        if ticket.began_ns:
            self._statistics.response_failed(ticket.responses, reason, now_ns - (ticket.last_ns or ticket.began_ns))

    def refused(self, reason: Failure, arrived_ns: int) -> None:
        """It never got as far as to wait for a place."""
        self._statistics.failed(reason, time.monotonic_ns() - arrived_ns)

    def read(self, ticket: Ticket, call: CallContext, last: Piece) -> None:
        """All of it was read."""
        if call.traceparent:
            trace_generation(
                call,
                self._model,
                self._version,
                GenerationTimes(ticket.arrived_ns, ticket.began_ns, ticket.first_ns, ticket.last_ns),
                prompt_tokens=last.prompt_tokens,
                completion_tokens=last.completion_tokens,
            )
