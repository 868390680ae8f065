"""Which hosts may be called: patterns, spellings of addresses, and addresses that nobody may call."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.remote.upstream_hosts import HostRefused, allows, is_loopback, origin_of, parse_pattern


@pytest.mark.parametrize(
    ("url", "host", "port", "plain_http"),
    [
        ("https://api.openai.com/v1", "api.openai.com", 443, False),
        ("http://127.0.0.1:8000/v1", "127.0.0.1", 8000, True),
        ("https://API.Example.com.", "api.example.com", 443, False),
        ("http://[::1]:11434/v1", "::1", 11434, True),
        ("https://generativelanguage.googleapis.com/v1beta", "generativelanguage.googleapis.com", 443, False),
    ],
)
def test_where_a_base_url_leads(url: str, host: str, port: int, plain_http: bool) -> None:
    origin = origin_of(url, "m")
    assert (origin.host, origin.port, origin.plain_http) == (host, port, plain_http)


@pytest.mark.parametrize(
    "url",
    [
        *("", "api.openai.com", "ftp://api.openai.com", "https://", "https:///v1", "https://a b.com", "https://a.com/v1?x=1"),
        *("https://a.com/#x", "https://user@a.com", "https://user:pw@a.com", "https://a.com\\@b.com", "https://a.com:0"),
        *("https://a.com:99999", "https://a.com\n", "https://ä.com", "https://-a.com", "https://a..com", "HTTPS://a.com"),
        *(
            "http://2130706433",
            "http://127.1",
            "http://0x7f.1",
            "http://0177.0.0.1",
            "http://a.0x1",
            "http://[::1",
            "http://1.2",
        ),
    ],
)
def test_what_is_no_plain_address_is_refused(url: str) -> None:
    with pytest.raises(HostRefused, match="model 'm'"):
        origin_of(url, "model 'm'")


@pytest.mark.parametrize(
    "host",
    [
        *("169.254.169.254", "[fe80::1]", "[::ffff:169.254.169.254]", "0.0.0.0", "[::]", "224.0.0.1", "255.255.255.255"),
        *("[ff02::1]", "[64:ff9b::a9fe:a9fe]"),
    ],
)
def test_addresses_that_no_upstream_has_are_refused_whatever_is_listed(host: str) -> None:
    with pytest.raises(HostRefused, match="no upstream model is called there"):
        origin_of(f"https://{host}/latest/meta-data", "model 'm'")


@pytest.mark.parametrize(
    ("pattern", "url", "allowed"),
    [
        ("api.openai.com", "https://api.openai.com/v1", True),
        ("API.OpenAI.com", "https://api.openai.com/v1", True),
        ("api.openai.com", "https://xapi.openai.com", False),
        ("api.openai.com", "https://api.openai.com.evil.example", False),
        ("*.openai.com", "https://eu.api.openai.com", True),
        ("*.openai.com", "https://openai.com", False),
        ("*.openai.com", "https://evilopenai.com", False),
        ("gpu-box:8000", "http://gpu-box:8000/v1", True),
        ("gpu-box:8000", "http://gpu-box:8001/v1", False),
        ("http://gpu-box:8000", "http://gpu-box:8000/v1", True),
        ("10.0.0.0/8", "http://10.1.2.3:11434/v1", True),
        ("10.0.0.0/8", "http://11.1.2.3:11434/v1", False),
        ("10.0.0.0/8:8000", "http://10.1.2.3:8000/v1", True),
        ("10.0.0.0/8:8000", "http://10.1.2.3:22/v1", False),
        ("10.0.0.0/8", "http://ten.example", False),
        ("192.168.1.5", "http://192.168.1.5", True),
        ("[fd00::5]:80", "http://[fd00::5]", True),
        ("fd00::/8", "http://[fd12::5]", True),
    ],
)
def test_patterns(pattern: str, url: str, allowed: bool) -> None:
    assert allows(parse_pattern(pattern, "here"), origin_of(url, "m")) is allowed


@pytest.mark.parametrize("pattern", ["*", "*.com", "", "https://a.com/v1", "a*.com", "*.*.com", "a b", "a.com:0", "ftp://a"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(HostRefused, match="upstream_hosts"):
        parse_pattern(pattern, "upstream_hosts")


def test_what_stays_on_this_machine_and_what_stays_in_its_network() -> None:
    loopback = [origin_of(f"http://{host}", "m") for host in ("127.0.0.1", "127.9.9.9", "[::1]", "localhost", "a.localhost")]
    assert all(is_loopback(origin) and origin.private for origin in loopback)
    private = [
        origin_of(f"http://{host}", "m") for host in ("10.0.0.1", "192.168.0.1", "172.16.0.1", "100.64.0.1", "[fd00::1]")
    ]
    assert all(origin.private and not is_loopback(origin) for origin in private)
    public = [origin_of(f"http://{host}", "m") for host in ("8.8.8.8", "gpu-box", "localhost.example", "[2001:4860::1]")]
    assert not any(origin.private or is_loopback(origin) for origin in public)


@settings(deadline=None)
@given(st.ip_addresses(v=4))
def test_an_address_is_one_however_it_is_wrapped(address: ipaddress.IPv4Address) -> None:
    def host_of(text: str) -> object:
        try:
            return origin_of(f"https://{text}", "m").address
        except HostRefused:
            return None

    assert host_of(str(address)) == host_of(f"[::ffff:{address}]")
    assert host_of(str(int(address))) is None
    assert host_of(hex(int(address))) is None
