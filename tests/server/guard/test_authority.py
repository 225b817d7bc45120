"""Hosts and origins: what is read, what is equal, what is allowed."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bootpig_rt.errors import ParameterError
from bootpig_rt.server.guard.authority import (
    Authority,
    Origin,
    is_loopback,
    is_same_origin,
    parse_authority,
    parse_origin,
)
from bootpig_rt.server.guard.hosts import HostRules, bind_check

repeatable = settings(deadline=None, max_examples=50, derandomize=True)

names = st.from_regex(r"[a-z][a-z0-9-]{0,9}(\.[a-z][a-z0-9-]{0,9}){0,3}", fullmatch=True)
addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))
ports = st.one_of(st.none(), st.integers(0, 65535))


def written(host: str, port: int | None) -> str:
    """As a browser writes it."""
    return (f"[{host}]" if ":" in host else host) + ("" if port is None else f":{port}")


@repeatable
@given(names, ports)
def test_a_name_is_read_as_written_in_any_case_and_with_a_last_dot(
    name: str, port: int | None
) -> None:
    for form in (name, name.upper(), name + "."):
        assert parse_authority(written(form, port)) == Authority(name, port)


@repeatable
@given(addresses, ports)
def test_an_address_is_read_in_every_form_of_it(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int | None
) -> None:
    usual = parse_authority(written(str(address), port))
    assert usual is not None
    assert usual.port == port
    assert parse_authority(written(address.exploded, port)) == usual
    assert usual.host == str(getattr(address, "ipv4_mapped", None) or address)


@repeatable
@given(st.text())
def test_any_text_is_read_or_is_none(text: str) -> None:
    found = parse_authority(text)
    assert found is None or parse_authority(written(*found)) == found
    parse_origin(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", ":80", "a:b", "a:65536", "a:-1", "a:+1", "a:1:2", "a b", "a/b", "a@b", "a#b", "a?b"),
        *("::1", "[::1", "[]", "[1.2.3.4]", "[::1]x", "[fe80::1%25eth0]", ".", "a,b", "é", "a\n"),
        *("localhost:\uff18", "a:\u0661"),  # digits of other scripts
    ],
)
def test_what_is_no_host_is_none(text: str) -> None:
    assert parse_authority(text) is None


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST.", "127.0.0.1", "127.8.8.8", "::1", "[::1]", "::ffff:127.0.0.1"],
)
def test_loopback_is_known_by_all_its_names(host: str) -> None:
    assert is_loopback(host)
    bind_check(host, has_keys=False, insecure=False)


@pytest.mark.parametrize(
    "host",
    ["", "0.0.0.0", "::", "10.0.0.1", "localhost.example.org", "127.0.0.1.example.org", "pc"],
)
def test_another_address_than_loopback_needs_keys_or_the_will(host: str) -> None:
    assert not is_loopback(host)
    bind_check(host, has_keys=True, insecure=False)
    bind_check(host, has_keys=False, insecure=True)
    with pytest.raises(ParameterError, match=r"keys add .* --insecure"):
        bind_check(host, has_keys=False, insecure=False)


@repeatable
@given(names, names, ports)
def test_a_host_is_allowed_by_its_name_whatever_the_port(
    name: str, other: str, port: int | None
) -> None:
    rules = HostRules.of([name.upper()])
    found = parse_authority(written(other, port))
    assert found is not None
    assert rules.allows(found.host) == (other == name)
    assert rules.allows(name)


@repeatable
@given(names, names)
def test_a_star_allows_what_is_below_a_name_and_not_what_ends_like_it(name: str, part: str) -> None:
    rules = HostRules.of([f"*.{name}"])
    assert rules.allows(f"{part}.{name}")
    assert not rules.allows(name)
    assert not rules.allows(part + name)
    assert not rules.allows(f"{name}.{part}") or f"{name}.{part}".endswith("." + name)


@repeatable
@given(st.lists(names, max_size=3), names)
def test_more_entries_allow_what_each_of_them_allows(entries: list[str], host: str) -> None:
    alone = any(HostRules.of([entry]).allows(host) for entry in entries)
    assert HostRules.of(entries).allows(host) == alone


def test_addresses_may_be_allowed_with_and_without_brackets() -> None:
    assert HostRules.of(["fd00::1"]) == HostRules.of(["[fd00:0::1]"])
    assert HostRules.of(["192.168.1.5"]).allows("192.168.1.5")
    assert HostRules.of(["*"]).allows("anything")


@pytest.mark.parametrize("entry", ["", "http://a", "a:80", "*a", "a.*", "*.", "a b", "**", "é"])
def test_an_entry_that_allows_nothing_is_refused(entry: str) -> None:
    with pytest.raises(ParameterError, match="allowed host"):
        HostRules.of([entry])


@repeatable
@given(st.sampled_from(["http", "https"]), names, ports, names, ports)
def test_only_a_page_of_this_host_and_port_is_the_servers_own(
    scheme: str, name: str, port: int | None, other: str, other_port: int | None
) -> None:
    origin = parse_origin(f"{scheme}://{written(name, port)}")
    assert origin is not None
    default = {"http": 80, "https": 443}[scheme]
    expected = name == other and (port or default) == (other_port or default)
    assert is_same_origin(origin, Authority(other, other_port)) == expected


@pytest.mark.parametrize("text", ["", "null", "https://", "://a", "a", "https://a/b", "1x://a"])
def test_what_is_no_origin_is_none(text: str) -> None:
    assert parse_origin(text) is None


def test_a_page_that_is_not_from_the_web_is_never_the_servers_own() -> None:
    assert parse_origin("chrome-extension://abc") == Origin("chrome-extension", "abc", None)
    assert not is_same_origin(Origin("file", "localhost", None), Authority("localhost", None))
