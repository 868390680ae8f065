"""Settings every process shares: from the command line, else `PENSTOCK_…` in the environment, else the default.

Owns the common fields. Each service's `config.py` adds its own by subclassing. Nothing is read at import.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict

from runtime.errors import InvalidArgument

AUTO = "auto"
"""A region that is found by the process's own address."""

Port = Annotated[int, Field(ge=0, le=65535)]


class ServiceSettings(BaseSettings):
    """What every service needs to know to be part of a mesh."""

    model_config = SettingsConfigDict(env_prefix="PENSTOCK_", frozen=True, extra="forbid", cli_kebab_case=True)

    identity_dir: Path = Field(description="folder with this node's keys and certificate")
    region: str = Field(default="local", pattern=r"^[a-z0-9-]{1,32}$")
    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: Port = Field(default=0, description="inner port (mTLS); 0 picks a free one")
    advertise: str = Field(default="", description="host:port others reach this process at; default: what it listens on")
    etcd_endpoints: str = Field(default="127.0.0.1:2379", description="comma-separated host:port")
    metrics_port: Port | None = Field(default=None, description="Prometheus endpoint; none: off; 0 picks a free one")
    otlp_endpoint: str | None = Field(default=None, description="OTLP/gRPC endpoint for traces; none: off")
    log_level: str = Field(default="info", pattern=r"^(debug|info|warning|error)$")
    drain_grace_s: float = Field(default=10.0, ge=0)
    ready_file: Path | None = Field(
        default=None, description="JSON of the bound ports is written here once this process answers"
    )

    @field_validator("region")
    @classmethod
    def _region(cls, region: str) -> str:
        if region == AUTO:
            raise ValueError(f"{AUTO!r} is for workers and gateways, which go by their address; name the region")
        return region


class LocatedSettings(ServiceSettings):
    """Of those that may find out by an address in which region they, or their callers, are."""

    region: str = Field(
        default="local",
        pattern=r"^[a-z0-9-]{1,32}$",
        description=f"where this process is; {AUTO}: by --public-address, else by the IP address in --advertise",
    )
    public_address: str = Field(default="", description="this machine's IP address as the world sees it, for --region auto")
    geolocation_database: Path | None = Field(
        default=None, description="MMDB file of countries, such as GeoLite2-Country.mmdb; gateways take a new one over"
    )
    region_overrides: str = Field(
        default="", description="network=region,… that come before the file, such as 10.1.0.0/16=europe,2001:db8::/32=asia"
    )

    @field_validator("region")
    @classmethod
    def _region(cls, region: str) -> str:
        return region


S = TypeVar("S", bound=ServiceSettings)


def read_settings(kind: type[S], argv: Sequence[str] | None) -> S:
    """The settings from these words (none: the process's own), the environment and the defaults. Raises InvalidArgument."""
    try:
        return CliApp.run(kind, cli_args=list(sys.argv[1:] if argv is None else argv))
    except ValidationError as error:
        faults = [f"--{_option(fault['loc'])}: {_sentence(fault['msg'])}" for fault in error.errors(include_url=False)]
        raise InvalidArgument(f"{'; '.join(faults)}. --help lists the settings") from None


def _option(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location).replace("_", "-") or "settings"


def _sentence(message: str) -> str:
    return "is needed" if message == "Field required" else message[:1].lower() + message[1:]
