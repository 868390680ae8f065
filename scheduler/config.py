"""The scheduler's settings."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from placement.switch import MOVE_LIMIT_S
from runtime.config import ServiceSettings


class SchedulerSettings(ServiceSettings):
    """`region` is where a placement goes that names none."""

    model_config = SettingsConfigDict(cli_kebab_case=True, cli_prog_name="penstock scheduler")

    registry_address: str = Field(
        default="127.0.0.1:50051", description="host:port of the registry, which is told when an alias may move"
    )
    alias_move_limit_s: float = Field(
        default=MOVE_LIMIT_S, gt=0, description="how long a version may take to get warm before an alias moves to it"
    )
