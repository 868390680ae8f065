"""Where an address is, by a real MMDB file that the test writes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from runtime.errors import FailedPrecondition, InvalidArgument
from runtime.geolocation import LOOK_AGAIN_S, Geolocation, overrides_of
from runtime.ids import Region
from runtime.regions import _COUNTRIES, BY_COUNTRY, EUROPE, MIDDLE_EAST, NORTH_AMERICA, OCEANIA, REGIONS, region_of
from tests.support.manual_clock import ManualClock

HOME = Region("local")


def database(file: Path, **networks: tuple[str, str]) -> Path:
    """Country and continent by network."""
    writer = MMDBWriter(6, ipv4_compatible=True, database_type="GeoLite2-Country")
    for network, (country, continent) in networks.items():
        record = {"country": {"iso_code": country}, "continent": {"code": continent}}
        writer.insert_network(IPSet([network]), record)
    writer.to_db_file(str(file))
    return file


def known(tmp_path: Path) -> Path:
    return database(
        tmp_path / "country.mmdb",
        **{
            "81.2.69.0/24": ("GB", "EU"),
            "8.8.8.0/24": ("US", "NA"),
            "2a02:8000::/24": ("DE", "EU"),
            "41.1.1.0/24": ("XX", "AF"),
        },
    )


@pytest.mark.parametrize(
    ("address", "region"),
    [
        ("81.2.69.160", "europe"),
        ("::ffff:81.2.69.160", "europe"),
        ("8.8.8.8", "north-america"),
        ("2a02:8000::1", "europe"),
        ("41.1.1.1", "africa"),  # the country is none that we know: by its continent
        ("1.1.1.1", None),
        ("127.0.0.1", "local"),
        ("10.3.4.5", "local"),
        ("fe80::1", "local"),
        ("192.0.2.1", "local"),
    ],
)
def test_an_address_is_looked_up(tmp_path: Path, address: str, region: str | None) -> None:
    located = Geolocation(HOME, ManualClock(), known(tmp_path))
    assert located.region_of(address) == region


def test_overrides_come_first_and_the_narrowest_of_them(tmp_path: Path) -> None:
    overrides = overrides_of("10.0.0.0/8=europe, 10.1.0.0/16=asia,8.8.8.8/32=oceania,::/0=africa")
    located = Geolocation(HOME, ManualClock(), known(tmp_path), overrides)
    assert [located.region_of(each) for each in ("10.9.9.9", "10.1.2.3", "8.8.8.8", "8.8.8.9", "2a02:8000::1")] == [
        "europe",
        "asia",
        "oceania",
        "north-america",
        "africa",
    ]


def test_without_a_file_only_private_addresses_are_known() -> None:
    located = Geolocation(HOME, ManualClock())
    assert located.region_of("10.0.0.1") == HOME
    assert located.region_of("81.2.69.160") is None


def test_without_a_home_private_addresses_are_nowhere() -> None:
    assert Geolocation(None, ManualClock()).region_of("10.0.0.1") is None


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("content", [b"nothing of the kind", b"", None])
async def test_a_new_file_is_taken_over_and_a_broken_one_is_not(tmp_path: Path, content: bytes | None) -> None:
    clock, file = ManualClock(), known(tmp_path)
    located = Geolocation(HOME, clock, file)
    running = asyncio.create_task(located.run())
    try:
        moved = database(tmp_path / "new.mmdb", **{"81.2.69.0/24": ("AU", "OC")})
        os.replace(moved, file)
        assert located.region_of("81.2.69.160") == EUROPE
        await clock.advance(LOOK_AGAIN_S)
        await until(lambda: located.editions == 2)
        assert located.region_of("81.2.69.160") == OCEANIA
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        await asyncio.to_thread(located.look_again)
        assert (located.region_of("81.2.69.160"), located.editions) == (OCEANIA, 2)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def test_a_file_that_is_as_it_was_is_not_read_again(tmp_path: Path) -> None:
    located = Geolocation(HOME, ManualClock(), known(tmp_path))
    located.look_again()
    assert located.editions == 1


def test_a_file_of_ipv4_alone_knows_no_ipv6(tmp_path: Path) -> None:
    writer = MMDBWriter(4, database_type="Country")
    writer.insert_network(IPSet(["81.2.69.0/24"]), {"country": {"iso_code": "GB"}})
    writer.to_db_file(str(tmp_path / "four.mmdb"))
    located = Geolocation(HOME, ManualClock(), tmp_path / "four.mmdb")
    assert located.region_of("81.2.69.160") == EUROPE
    assert located.region_of("2a02:8000::1") is None


def test_records_of_another_shape_tell_nothing(tmp_path: Path) -> None:
    writer = MMDBWriter(6, ipv4_compatible=True, database_type="Odd")
    records: dict[str, Any] = {"81.2.69.0/24": "GB", "8.8.8.0/24": {"country": "US"}, "9.9.9.0/24": {"country": {}}}
    for network, record in records.items():
        writer.insert_network(IPSet([network]), record)
    writer.to_db_file(str(tmp_path / "odd.mmdb"))
    located = Geolocation(HOME, ManualClock(), tmp_path / "odd.mmdb")
    assert [located.region_of(each) for each in ("81.2.69.1", "8.8.8.8", "9.9.9.9")] == [None, None, None]


@pytest.mark.parametrize("content", [None, b"", b"not an mmdb"])
def test_a_file_that_cannot_be_read_is_said_so(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "country.mmdb"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(FailedPrecondition, match=r"country\.mmdb"):
        Geolocation(HOME, ManualClock(), file)


@pytest.mark.parametrize("address", ["", "somewhere", "1.2.3", "1.2.3.4:80", "::g"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(InvalidArgument):
        Geolocation(HOME, ManualClock()).region_of(address)


@pytest.mark.parametrize(
    "text", ["europe", "10.0.0.0/8", "10.0.0.0/8=", "10.0.0.1/8=europe", "x=y", "10.0.0.0/8=Europe", "=europe"]
)
def test_overrides_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        overrides_of(text)


def test_every_country_lies_in_one_of_seven_regions() -> None:
    assert len(BY_COUNTRY) == sum(len(codes.split()) for codes in _COUNTRIES.values()) == 249, "ISO 3166-1 has 249"
    assert set(BY_COUNTRY.values()) == set(REGIONS)
    assert len(REGIONS) == 7


@pytest.mark.parametrize(
    ("country", "continent", "region"),
    [("ae", "AS", MIDDLE_EAST), ("ca", "", NORTH_AMERICA), ("", "EU", EUROPE), ("ZZ", "", None), ("", "", None)],
)
def test_country_before_continent(country: str, continent: str, region: Region | None) -> None:
    assert region_of(country, continent) == region
