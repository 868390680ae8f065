"""The scheduler's settings."""

from __future__ import annotations

from pydantic_settings import SettingsConfigDict

from runtime.config import ServiceSettings


class SchedulerSettings(ServiceSettings):
    """Nothing beyond what every service needs: `region` is where a placement goes that names none."""

    model_config = SettingsConfigDict(cli_kebab_case=True, cli_prog_name="penstock scheduler")
