"""The scheduler's settings."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from placement.copies.switch import MOVE_LIMIT_S
from placement.types import Strategy
from runtime.config import Port, ServiceSettings
from runtime.errors import FailedPrecondition
from scheduler.jobs.types import DAY_MS, JobLimits

_WILDCARDS = ("", "0.0.0.0", "::")


class SchedulerSettings(ServiceSettings):
    """`region` is where a placement goes that names none."""

    model_config = SettingsConfigDict(cli_kebab_case=True, cli_prog_name="penstock scheduler")

    registry_address: str = Field(
        default="127.0.0.1:50051", description="host:port of the registry, which is told when an alias may move"
    )
    regions: str = Field(
        default="",
        description="comma-separated regions that this scheduler leads, or stands by for; default: all that no scheduler names",
    )
    lease_ttl_s: int = Field(
        default=5, ge=2, le=300, description="another scheduler leads this long after the leader was last heard of"
    )
    strategy: Strategy = Field(default=Strategy.AFFINITY, description="how workers are chosen where no rule says otherwise")
    jobs_database: str = Field(
        default="",
        repr=False,
        description="SQLite file, or a URL such as postgresql://user@host/name, for jobs, files and batches; none: off",
    )
    jobs_visibility_s: float = Field(
        default=30.0, ge=1, le=3_600, description="a gateway that does not extend its claim on a job for so long has lost it"
    )
    jobs_max_attempts: int = Field(default=5, ge=1, le=100, description="of a job, before it is laid aside as a dead letter")
    jobs_keep_days: float = Field(default=7.0, gt=0, le=30, description="how long jobs and answers are kept after their end")
    jobs_per_tenant: int = Field(default=100_000, gt=0, description="jobs of one tenant that have not ended")
    jobs_bytes_per_tenant: int = Field(
        default=10 * 1024**3, gt=0, description="of calls, answers and files of one tenant that are stored"
    )
    picker_host: str = Field(default="127.0.0.1", description="address of the endpoint picker")
    picker_port: Port | None = Field(
        default=None,
        description="plaintext port on which an Envoy before workers asks for endpoints (ext_proc); none: off",
    )
    alias_move_limit_s: float = Field(
        default=MOVE_LIMIT_S, gt=0, description="how long a version may take to get warm before an alias moves to it"
    )


def job_limits(settings: SchedulerSettings) -> JobLimits:
    return JobLimits(
        visibility_ms=int(settings.jobs_visibility_s * 1_000),
        keep_ms=int(settings.jobs_keep_days * DAY_MS),
        open_jobs=settings.jobs_per_tenant,
        stored_bytes=settings.jobs_bytes_per_tenant,
    )


def own_address(settings: SchedulerSettings, port: int) -> str:
    """Where gateways reach this scheduler when it leads. Raises FailedPrecondition where nobody could."""
    if settings.host in _WILDCARDS and not settings.advertise:
        raise FailedPrecondition(f"others cannot call {settings.host or 'an empty host'}; pass --advertise HOST:PORT")
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return settings.advertise or f"{host}:{port}"
