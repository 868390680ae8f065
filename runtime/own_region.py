"""In which region a process is: as its settings say, or by its own address.

Decides by what is on this machine: overrides and the geolocation file. Asks no name server, and nobody else.
"""

from __future__ import annotations

from typing import TypeVar

from runtime.clock import Clock
from runtime.config import AUTO, LocatedSettings
from runtime.errors import FailedPrecondition, InvalidArgument
from runtime.geolocation import Geolocation, overrides_of, parsed
from runtime.ids import Region

S = TypeVar("S", bound=LocatedSettings)


def geolocation_of(settings: LocatedSettings, home: Region | None, clock: Clock) -> Geolocation:
    """As the settings say. Raises InvalidArgument, FailedPrecondition."""
    try:
        overrides = overrides_of(settings.region_overrides)
    except InvalidArgument as error:
        raise InvalidArgument(f"--region-overrides: {error.message}") from error
    return Geolocation(home, clock, settings.geolocation_database, overrides)


def located(settings: S, clock: Clock) -> S:
    """The settings, with the region that `auto` comes to. Raises InvalidArgument, FailedPrecondition."""
    if settings.region != AUTO:
        return settings
    if settings.geolocation_database is None and not settings.region_overrides:
        raise FailedPrecondition(
            "--region auto has nothing to look an address up in; pass --geolocation-database FILE.mmdb, --region-overrides, or"
            " name the region"
        )
    address = _own_address(settings)
    found = geolocation_of(settings, None, clock).region_of(address)
    if found is None:
        raise FailedPrecondition(
            f"nothing tells in which region {address} is{_why(address)}; add its network to --region-overrides, pass another"
            " --public-address, or name the region"
        )
    return settings.model_copy(update={"region": found})


def _own_address(settings: LocatedSettings) -> str:
    """Raises InvalidArgument, FailedPrecondition."""
    option = "--public-address" if settings.public_address else "--advertise"
    address = settings.public_address or settings.advertise.rpartition(":")[0].strip("[]")
    if not address:
        raise FailedPrecondition("--region auto needs an address to go by; pass --public-address IP, or name the region")
    try:
        parsed(address)
    except InvalidArgument:
        raise InvalidArgument(
            f"{option} names {address[:128]!r}, which is no IP address: --region auto asks no name server; pass"
            " --public-address IP, or name the region"
        ) from None
    return address


def _why(address: str) -> str:
    return "" if parsed(address).is_global else ", a private address"
