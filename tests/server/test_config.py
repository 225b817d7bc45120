"""Settings of a service: one description, three sources, errors that say which and what to do."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootpig_rt.errors import ConfigError, ParameterError
from bootpig_rt.server.config import (
    ENV_PREFIX,
    GROUPS,
    add_serve_arguments,
    options_of,
    read_config,
    to_toml,
)
from bootpig_rt.server.option_values import descriptions
from bootpig_rt.server.options import ServerOptions
from bootpig_rt.server.units import parse_seconds, parse_size, size_text

NAMES = [field.name for field in fields(ServerOptions)]


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(ENV_PREFIX)]:
        monkeypatch.delenv(name)


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    add_serve_arguments(parser)
    return parser


@pytest.fixture
def options(parser: argparse.ArgumentParser) -> Callable[..., ServerOptions]:
    """The options that some words give."""

    def read(*words: str) -> ServerOptions:
        return options_of(parser.parse_args(words))

    return read


@pytest.fixture
def toml(tmp_path: Path) -> Callable[[str], str]:
    """Writes a configuration and returns its path."""

    def write(text: str) -> str:
        path = tmp_path / "serve.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_described_once_and_has_a_flag(
    name: str, parser: argparse.ArgumentParser
) -> None:
    text = descriptions()[name]
    assert text.endswith(".")
    told = {word: one.help for one in parser._actions for word in one.option_strings}
    shown = (told[f"--{name.replace('_', '-')}"] or "").replace("%%", "%")
    assert shown.startswith(text.rstrip("."))


def test_the_groups_of_the_help_begin_with_options_that_there_are() -> None:
    assert set(GROUPS) <= set(NAMES)


def test_nothing_said_is_the_defaults(options: Callable[..., ServerOptions]) -> None:
    assert options() == ServerOptions()


def test_the_model_is_named_with_and_without_its_flag(
    options: Callable[..., ServerOptions],
) -> None:
    assert options("pair").model == options("--model", "pair").model == "pair"


def test_flags_go_before_variables_and_these_before_the_file(
    options: Callable[..., ServerOptions],
    toml: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = toml("max_batch = 2\nmax_waiting = 3\nmax_images = 4\n")
    monkeypatch.setenv(f"{ENV_PREFIX}MAX_WAITING", "30")
    monkeypatch.setenv(f"{ENV_PREFIX}MAX_IMAGES", "40")
    found = options("--config", path, "--max-images", "50")
    assert (found.max_batch, found.max_waiting, found.max_images) == (2, 30, 50)


def test_all_kinds_of_values_are_read_from_a_file(toml: Callable[[str], str]) -> None:
    text = """
        max_body_bytes = "64MiB"
        tenant_subject_bytes = 1024
        drain_s = "2m"
        body_timeout_s = 5
        default_deadline_s = "none"
        page = false
        safety_threshold = 0.5
        warmup_batches = [1, 4]
        allowed_hosts = ["a.example", "b.example"]
        log_format = "json"
        [models]
        small = "/pairs/small"
        "large one" = "/pairs/large"
    """
    assert ServerOptions(**read_config(toml(text))) == ServerOptions(
        max_body_bytes=64 << 20,
        tenant_subject_bytes=1024,
        drain_s=120.0,
        body_timeout_s=5.0,
        default_deadline_s=None,
        page=False,
        safety_threshold=0.5,
        warmup_batches=(1, 4),
        allowed_hosts=("a.example", "b.example"),
        log_format="json",
        models={"small": "/pairs/small", "large one": "/pairs/large"},
    )


def test_all_kinds_of_values_are_read_from_flags(options: Callable[..., ServerOptions]) -> None:
    words = """--max-body-bytes 1GiB --drain-s 250ms --default-deadline-s none --no-page
        --safety-threshold 0.25 --warmup-batches 1,2 --warmup-batches 8 --log-format text
        --models small=/a=b,large=/c --insecure --keys keys.json""".split()
    found = options(*words)
    assert found.max_body_bytes == 1 << 30
    assert (found.drain_s, found.default_deadline_s) == (0.25, None)
    assert (found.page, found.insecure) == (False, True)
    assert found.warmup_batches == (1, 2, 8)
    assert found.models == {"small": "/a=b", "large": "/c"}
    assert (found.safety_threshold, found.log_format, found.keys) == (0.25, "text", "keys.json")


def test_a_flag_takes_back_what_a_file_set(
    options: Callable[..., ServerOptions], toml: Callable[[str], str]
) -> None:
    path = toml('keys = "keys.json"\ninsecure = true\n')
    found = options("--config", path, "--keys", "", "--no-insecure")
    assert (found.keys, found.insecure) == (None, False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_bacth = 8", r"unknown key 'max_bacth'; did you mean max_batch\?"),
        ("zzz = 8", r"unknown key 'zzz'; see `bootpig-rt serve --help`"),
        ('max_batch = "eight"', "^max_batch in '.*' is 'eight', expected a whole number$"),
        ("max_batch = 8.5", "max_batch .* is 8.5, expected a whole number"),
        ("max_batch = true", "max_batch .* is True, expected a whole number"),
        ("threads = []", r'threads .* is \[\], expected a whole number, or "none"'),
        ("page = 1", "page .* is 1, expected true or false"),
        ('max_body_bytes = "64 potatoes"', 'expected a size such as 1048576 or "64MiB"'),
        ("max_body_bytes = 1.5", 'expected a size such as 1048576 or "64MiB"'),
        ('drain_s = "-3s"', "drain_s .* is '-3s', expected a time such as 30 or \"30s\""),
        ('log_format = "xml"', "log_format .* is 'xml', expected one of: auto, json, text"),
        ('warmup_batches = ["one"]', "expected a list of whole numbers"),
        ("[models]\nsmall = 3", "expected a table of names and folders"),
        ('models = "small"', "expected a table of names and folders"),
        ("max_batch = ", "is no TOML file"),
        ("a = " + "[" * 10_000, "is no TOML file"),
        ("max_batch = " + "9" * 5000, "is no TOML file"),
        ("a" * 9000 + " = 1", "unknown key 'aaa.{90,100}; see"),
    ],
)
def test_what_a_file_has_wrong_is_told_in_one_line(
    text: str, message: str, toml: Callable[[str], str]
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_config(toml(text))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-batch", "eight"], "--max-batch is 'eight', expected a whole number"),
        (["--max-batch", "none"], "--max-batch is 'none', expected a whole number"),
        (["--models", "small"], r"--models is \['small'\], expected NAME=FOLDER"),
        (["--config", "/nowhere.toml"], "cannot read '/nowhere.toml': no such file"),
    ],
)
def test_a_wrong_flag_is_told_in_one_line(
    words: list[str], message: str, options: Callable[..., ServerOptions]
) -> None:
    with pytest.raises(ConfigError, match=message):
        options(*words)


def test_a_value_out_of_range_is_refused_wherever_it_comes_from(
    options: Callable[..., ServerOptions], toml: Callable[[str], str]
) -> None:
    for words in (["--port", "99999"], ["--config", toml("port = 99999")]):
        with pytest.raises(ParameterError, match="port is 99999, expected 0..65535"):
            options(*words)


def test_an_unknown_or_wrong_variable_is_told_in_one_line(
    options: Callable[..., ServerOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{ENV_PREFIX}PAGE", "maybe")
    with pytest.raises(ConfigError, match=f"{ENV_PREFIX}PAGE is 'maybe', expected true or false"):
        options()
    monkeypatch.delenv(f"{ENV_PREFIX}PAGE")
    monkeypatch.setenv(f"{ENV_PREFIX}MAX_BACH", "8")
    with pytest.raises(ConfigError, match="MAX_BACH is no option; did you mean max_batch?"):
        options()


def test_variables_that_kubernetes_makes_for_a_service_of_our_name_are_no_options(
    options: Callable[..., ServerOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOOTPIG_RT_PORT", "tcp://10.0.0.1:80")
    monkeypatch.setenv("BOOTPIG_RT_SERVICE_HOST", "10.0.0.1")
    assert options() == ServerOptions()


def test_printed_options_are_a_file_that_gives_them_again(toml: Callable[[str], str]) -> None:
    options = ServerOptions(
        models={'a "b"\n\x7f': "C:\\pairs\\子犬 🐶"},
        default_deadline_s=None,
        max_table_bytes=1 << 30,
        allowed_origins=("https://a.example",),
        keys="keys.json",
        page=False,
        drain_s=0.5,
    )
    text = to_toml(options)
    assert ServerOptions(**read_config(toml(text))) == options
    assert 'max_table_bytes = "1GiB"' in text
    for name, told in descriptions().items():
        assert f"# {told}" in text
        assert name in text


def test_passwords_in_addresses_are_not_printed() -> None:
    text = to_toml(replace(ServerOptions(), store="s3://me:secret@host/tables"))
    assert "secret" not in text
    assert "s3://***@host/tables" in text


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_any_text_survives_being_printed(text: str) -> None:
    import tomllib

    told = tomllib.loads(to_toml(ServerOptions(contact=f"x{text}")))
    if "://" not in text:
        assert told["contact"] == f"x{text}"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("64MiB", 64 << 20),
        ("64 mib", 64 << 20),
        ("1.5GB", 1_500_000_000),
        ("0", 0),
        ("10B", 10),
        ("MiB", None),
        ("-1", None),
        ("1e9", None),
        ("1 XiB", None),
        ("٣", None),
        ("", None),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int | None) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30),
        ("30s", 30),
        ("1.5m", 90),
        ("2 h", 7200),
        ("1d", 86400),
        ("250ms", 0.25),
        ("nan", None),
        ("-1s", None),
        ("1y", None),
        ("9" * 5000, None),
        ("", None),
    ],
)
def test_times_are_read_as_people_write_them(text: str, seconds: Any) -> None:
    assert parse_seconds(text) == seconds


@given(st.integers(0, 1 << 60))
def test_a_size_that_is_shown_is_read_again(size: int) -> None:
    assert parse_size(str(size_text(size))) == size
