"""`penstock jobs …`: submit, list, show, watch, cancel; dead letters: list, show, replay."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cli import options

State = Literal["queued", "running", "succeeded", "dead", "cancelled"]
Tenant = Annotated[str, typer.Option(help="only this tenant's")]
Limit = Annotated[int, typer.Option(min=1, max=10_000, help="rows at most")]
Output = Annotated[Path | None, typer.Option(help="write the answer's bytes into this file")]
app = typer.Typer(no_args_is_help=True, help="Work that nobody waits for, and what became of it.")
dead = typer.Typer(no_args_is_help=True, help="Jobs that were laid aside: no attempt is left, or none can help.")
app.add_typer(dead, name="dead")


@app.command()
def submit(
    file: Annotated[str, typer.Argument(help="JSON of the call; - reads stdin")],
    path: Annotated[
        str, typer.Option(help="OpenAI path, such as /v1/chat/completions [default: FILE is a KServe ModelInferRequest]")
    ] = "",
    tenant: Annotated[str, typer.Option(help="on whose behalf")] = "default",
    idempotency_key: Annotated[str, typer.Option(help="submitted twice with the same key, it is one job")] = "",
    priority: Annotated[int, typer.Option(min=0, max=1000, help="0 = most urgent; one more is a minute's patience")] = 0,
    max_attempts: Annotated[int, typer.Option(min=0, max=100, help="0 = the scheduler's own")] = 0,
    delay_s: Annotated[float, typer.Option(min=0, help="not before so long from now")] = 0,
    timeout_s: Annotated[float, typer.Option(min=0, help="laid aside where it is not done by then; 0 = never")] = 0,
    keep_days: Annotated[float, typer.Option(min=0, max=30, help="kept after its end; 0 = the scheduler's own")] = 0,
    watch: Annotated[bool, typer.Option(help="follow it until it has ended")] = False,
    data: options.Data = None,
) -> None:
    """Submit a job."""
    from cli.jobs import NewJob, submit_job
    from cli.profile import read_profile
    from cli.run import run

    wanted = NewJob(file, path, tenant, idempotency_key, priority, max_attempts, delay_s, timeout_s, keep_days)

    async def work() -> None:
        await submit_job(read_profile(data), wanted, watch=watch)

    run(work())


@app.command("list")
def list_jobs(
    tenant: Tenant = "",
    state: Annotated[State | None, typer.Option(help="only those in this state")] = None,
    batch: Annotated[str, typer.Option(help="only this batch's lines")] = "",
    limit: Limit = 100,
    data: options.Data = None,
) -> None:
    """Show jobs, newest first."""
    from cli.jobs import show_jobs
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        await show_jobs(read_profile(data), tenant=tenant, state=state or "", batch_id=batch, limit=limit)

    run(work())


@app.command()
def show(job_id: str, output: Output = None, data: options.Data = None) -> None:
    """Show a job, every attempt at it, and its answer."""
    from cli.jobs import show_job
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        await show_job(read_profile(data), job_id, output)

    run(work())


@app.command()
def watch(job_id: str, data: options.Data = None) -> None:
    """Follow a job until it has ended."""
    from cli.jobs import watch_job
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        await watch_job(read_profile(data), job_id)

    run(work())


@app.command()
def cancel(job_id: str, data: options.Data = None) -> None:
    """Cancel a job; one that has ended stays as it is."""
    from cli.jobs import cancel_job
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        await cancel_job(read_profile(data), job_id)

    run(work())


@dead.command("list")
def list_dead(
    tenant: Tenant = "",
    model: Annotated[str, typer.Option(help="only those of this model")] = "",
    limit: Limit = 100,
    data: options.Data = None,
) -> None:
    """Show dead letters, newest first."""
    from cli.jobs import show_dead_letters
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        await show_dead_letters(read_profile(data), tenant=tenant, model=model, limit=limit)

    run(work())


@dead.command("show")
def show_dead(job_id: str, output: Output = None, data: options.Data = None) -> None:
    """Show a dead letter with its whole history."""
    show(job_id, output, data)


@dead.command()
def replay(
    job_ids: Annotated[list[str] | None, typer.Argument(help="which")] = None,
    tenant: Tenant = "",
    model: Annotated[str, typer.Option(help="only those of this model")] = "",
    every: Annotated[bool, typer.Option("--all", help="all of them, or of the tenant and model")] = False,
    data: options.Data = None,
) -> None:
    """Make dead letters jobs again, with all their attempts anew."""
    from cli.jobs import replay_jobs
    from cli.profile import read_profile
    from cli.run import run

    if bool(job_ids) == every:
        raise typer.BadParameter("name the jobs, or pass --all")

    async def work() -> None:
        await replay_jobs(read_profile(data), job_ids or [], tenant=tenant, model=model)

    run(work())
