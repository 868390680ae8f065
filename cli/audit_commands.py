"""`penstock audit`."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import options


def audit(
    action: Annotated[str, typer.Option(help="what was done, or its start: key. finds all that was done with keys")] = "",
    subject: Annotated[str, typer.Option(help="what it was done to, such as a key's id or digits/3")] = "",
    actor: Annotated[str, typer.Option(help="id of the node, user or key that did it")] = "",
    tenant: Annotated[str, typer.Option(help="only this tenant's")] = "",
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="entries to show, the newest ones")] = 100,
    data: options.Data = None,
) -> None:
    """Show who did what, what was refused and what was found altered; newest first."""
    from cli.audit import AuditQuestion, show_audit
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        await show_audit(read_profile(data), AuditQuestion(action, subject, actor, tenant, limit))

    run(work())
