"""Where in the world an address is: overrides first, then the MMDB file, private addresses at home.

The one file that knows MaxMind's database format (any country or city database in it will do). Looks at the file again once a
minute, where that is run, and takes a new one over whole; one that cannot be read leaves the last good one in place. Never asks
anybody.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import maxminddb
import structlog

from runtime.clock import Clock
from runtime.errors import FailedPrecondition, InvalidArgument
from runtime.ids import Region
from runtime.regions import region_of

LOOK_AGAIN_S = 60.0
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_REGION = re.compile(r"[a-z0-9-]{1,32}")
_log = structlog.get_logger("penstock.geolocation")


class Geolocation:
    """Looks addresses up, on one thread; `look_again` may be called on another."""

    def __init__(
        self,
        home: Region | None,
        clock: Clock,
        database: Path | None = None,
        overrides: Mapping[Network, Region] | None = None,
    ) -> None:
        """`home`: the region of addresses that belong to nowhere. Raises FailedPrecondition where the file cannot be read."""
        self._home, self._clock, self._path = home, clock, database
        self._overrides = sorted((overrides or {}).items(), key=lambda pair: pair[0].prefixlen, reverse=True)
        self._stamp: tuple[int, int, int] | None = None
        self._reader: maxminddb.Reader | None = None
        self.editions = 0
        """Grows with each file that is taken over: what was looked up before may be wrong now."""
        if database is not None:
            self._open(database)

    def region_of(self, address: str) -> Region | None:
        """The region of an address; None where nobody knows. Raises InvalidArgument on what is no IP address."""
        ip = parsed(address)
        for network, region in self._overrides:  # the narrowest first
            if ip.version == network.version and ip in network:
                return region
        if not ip.is_global:
            return self._home
        return None if self._reader is None else _region_in(_record(self._reader, ip))

    async def run(self) -> None:
        """Look at the file again and again, until cancelled. Reading it holds nobody up."""
        while True:
            await self._clock.sleep(LOOK_AGAIN_S)
            await asyncio.to_thread(self.look_again)

    def look_again(self) -> None:
        """Take a new file over, if there is one that can be read."""
        if self._path is None:
            return
        with suppress(OSError):
            if _stamp(self._path) == self._stamp:
                return
        try:
            self._open(self._path)
            _log.info("geolocation_reread", file=str(self._path))
        except FailedPrecondition as error:
            _log.warning("geolocation_kept", why=error.message)

    def _open(self, path: Path) -> None:
        try:
            stamp = _stamp(path)
            reader = maxminddb.open_database(path, maxminddb.MODE_MEMORY)
        except (OSError, maxminddb.InvalidDatabaseError, ValueError) as error:
            raise FailedPrecondition(
                f"cannot read the geolocation file {path}: {error}; give a country database in MMDB format"
            ) from error
        # The one before is not closed: another thread may be looking something up in it. It is memory and no more.
        self._reader, self._stamp = reader, stamp
        self.editions += 1


def parsed(address: str) -> Address:
    """An IPv4-mapped address is the IPv4 one. Raises InvalidArgument."""
    try:
        ip = ipaddress.ip_address(address.strip())
    except ValueError as error:
        raise InvalidArgument(f"{address[:64]!r} is no IP address") from error
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return mapped or ip


def overrides_of(text: str) -> dict[Network, Region]:
    """From "10.1.0.0/16=europe,2001:db8::/32=asia". Raises InvalidArgument."""
    overrides: dict[Network, Region] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        network, _, region = (each.strip() for each in part.partition("="))
        if not _REGION.fullmatch(region):
            raise InvalidArgument(
                f"{part[:128]!r} names no region; write network=region, such as 10.1.0.0/16=europe, in lower-case letters,"
                " digits and '-'"
            )
        try:
            overrides[ipaddress.ip_network(network)] = Region(region)
        except ValueError as error:
            raise InvalidArgument(f"{part[:128]!r} is no network=region: {error}") from error
    return overrides


def _record(reader: maxminddb.Reader, ip: Address) -> object:
    try:
        return reader.get(ip)
    except ValueError:  # IPv6, and the file has IPv4 alone
        return None
    except maxminddb.InvalidDatabaseError as error:
        _log.warning("geolocation_damaged", why=str(error))
        return None


def _region_in(record: object) -> Region | None:
    if not isinstance(record, dict):
        return None
    return region_of(
        _code(record, "country", "iso_code") or _code(record, "registered_country", "iso_code"),
        _code(record, "continent", "code"),
    )


def _code(record: dict[str, object], part: str, name: str) -> str:
    found = record.get(part)
    code = found.get(name) if isinstance(found, dict) else None
    return code if isinstance(code, str) else ""


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino
