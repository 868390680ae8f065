"""The scheduler's settings."""

from __future__ import annotations

from runtime.config import ServiceSettings


class SchedulerSettings(ServiceSettings):
    """Nothing beyond what every service needs: `region` is where a placement goes that names none."""
