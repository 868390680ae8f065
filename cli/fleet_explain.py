"""`penstock fleet explain`: where a request would go, candidate by candidate."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from rich.table import Table
from rich.text import Text

from cli.profile import Profile
from cli.tables import console, table


async def show_explanation(profile: Profile, request: scheduler_pb2.ExplainRequest, limit: int) -> None:
    """What was decided, and a row per candidate."""
    async with profile.scheduler_channel() as scheduler:
        told = await scheduler_pb2_grpc.FleetServiceStub(scheduler).Explain(request)
    out = console()
    for line in summary(request.model, told):
        out.print(Text(line))
    if told.candidates:
        out.print(rows(told.candidates[:limit]))
    if (more := len(told.candidates) - limit) > 0:
        out.print(Text(f"and {more} more; --limit {len(told.candidates)} shows them"))


def summary(model: str, told: scheduler_pb2.ExplainResponse) -> list[str]:
    """The decision, by which rules, and what the shadow would have done."""
    if told.worker_id:
        lines = [f"{model} {told.version} → {told.worker_id}: {told.why}"]
    else:
        lines = [f"{model} → nobody: {told.refusal}"]
    lines.append(f"strategy {told.strategy}, by {', '.join(told.rules) or 'no rule'}")
    if told.shadow_strategy:
        lines.append(f"shadow {told.shadow_strategy} → {told.shadow_worker_id or 'nobody'}")
    return lines


def rows(candidates: Sequence[scheduler_pb2.Candidate]) -> Table:
    """A column for each part of a score that any of them has: its value, and what it adds."""
    names = list(dict.fromkeys(part.name for each in candidates for part in each.parts))
    made = table("worker", "region", "score", *names, "why")
    for each in candidates:
        parts = {part.name: part for part in each.parts}
        cells = [_cell(parts.get(name)) for name in names]
        score = "" if each.excluded_by else f"{each.score + 0.0:.3g}"
        made.add_row(each.worker_id, each.region, score, *cells, Text(each.excluded_by or each.verdict))
    return made


def _cell(part: scheduler_pb2.ScorePart | None) -> str:
    if part is None:
        return ""
    return f"{part.value:.3g}" if not part.weight else f"{part.value:.3g} → {part.weight * part.value + 0.0:+.3g}"
