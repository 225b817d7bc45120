"""API keys in their file: who a token belongs to, and what happens when the file changes."""

from __future__ import annotations

import hmac
import json
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bootpig_rt.errors import ConfigError, ParameterError, StorageError
from bootpig_rt.server.guard.key_changes import add_key, revoke_keys
from bootpig_rt.server.guard.keys import (
    NO_QUOTA,
    TOKEN_PREFIX,
    KeyFile,
    Principal,
    Quota,
    read_keys,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_a_token_is_found_and_its_neighbours_are_not(path: Path) -> None:
    quota = Quota(max_waiting=4, subject_bytes=0, images_per_minute=60)
    _, token = add_key(path, "alice", quota=quota)
    _, other = add_key(path, "ops", role="admin")
    keys = KeyFile.load(path)
    assert keys.find(token) == Principal("alice", "user", quota)
    assert keys.find(other) == Principal("ops", "admin", NO_QUOTA)
    for wrong in ("", token[:-1], token + "A", token.swapcase(), "\ud800", "é", token * 50):
        assert keys.find(wrong) is None


def test_the_file_holds_no_token_and_is_for_its_owner_alone(path: Path) -> None:
    _, token = add_key(path, "alice")
    assert token.startswith(TOKEN_PREFIX)
    assert len(token) > 40
    assert token not in path.read_text()
    assert token.removeprefix(TOKEN_PREFIX) not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == [path.name]  # neither lock nor temporary file


def test_equal_tokens_have_other_hashes_in_another_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secrets.token_urlsafe", lambda size: "A" * 43)
    first, token = add_key(path, "alice")
    second, again = add_key(path.with_name("other.json"), "alice")
    assert token == again
    assert first.hash != second.hash


def test_every_key_is_compared_wherever_the_match_is(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = [add_key(path, f"tenant-{number}")[1] for number in range(5)]
    keys = KeyFile.load(path)
    compared: list[str] = []
    compare = hmac.compare_digest

    def count(a: str, b: str) -> bool:
        compared.append(b)
        return compare(a, b)

    monkeypatch.setattr(hmac, "compare_digest", count)
    for token in [*tokens, "unknown"]:
        compared.clear()
        keys.find(token)
        assert compared == [key.hash for key in keys.keys]
    compared.clear()
    keys.find("x" * 100_000)  # too long for a key, and to be hashed for a stranger
    assert compared == []


def test_a_key_that_was_revoked_is_refused_by_a_server_that_runs(path: Path) -> None:
    _, old = add_key(path, "alice")
    keys = KeyFile.load(path)
    _, new = add_key(path, "alice")
    assert keys.find(old) == keys.find(new) == Principal("alice", "user")
    revoke_keys(path, next(key.id for key in keys.keys))
    assert keys.find(old) is None
    assert keys.find(new) is not None


@pytest.mark.parametrize("harm", ["damaged", "open to others", "gone"])
def test_a_file_that_went_bad_keeps_the_keys_and_is_logged_once(
    path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, token = add_key(path, "alice")
    keys = KeyFile.load(path)
    kept = path.read_bytes()
    if harm == "damaged":
        path.write_bytes(kept[:-9])
    elif harm == "gone":
        path.unlink()
    else:
        path.chmod(0o644)
    for _ in range(3):
        assert keys.find(token) is not None
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    path.unlink(missing_ok=True)
    path.touch(0o600)
    path.write_bytes(kept)
    revoke_keys(path, "alice")
    assert keys.find(token) is None


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o620, 0o666])
def test_a_file_that_others_may_read_or_change_is_refused(path: Path, mode: int) -> None:
    add_key(path, "alice")
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        KeyFile.load(path)


def test_a_file_that_the_group_may_read_is_taken_as_a_mounted_secret_needs_it(path: Path) -> None:
    _, token = add_key(path, "alice")
    path.chmod(0o440)
    link = path.with_name("link")
    link.symlink_to(path)
    assert KeyFile.load(link).find(token) is not None


def change(key: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["keys"][0].update({key: value})


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (change("role", "root"), "role"),
        (change("name", "../x"), "name"),
        (change("name", "alice\n"), "name"),
        (change("hash", "00"), "hash"),
        (change("salt", None), "salt"),
        (change("quota", {"max_waiting": 0}), "max_waiting"),
        (change("colour", "red"), "colour"),
        (lambda content: content.update(format=2), "format"),
        (lambda content: content.pop("keys"), "keys"),
        (lambda content: content["keys"].append(content["keys"][0]), "one id"),
        (
            lambda content: content["keys"].append(
                content["keys"][0] | {"id": "00000000", "role": "admin"}
            ),
            "differ in role",
        ),
    ],
)
def test_a_damaged_file_is_refused_and_the_fault_named(
    path: Path, harm: Callable[[dict[str, Any]], object], message: str
) -> None:
    add_key(path, "alice")
    content = json.loads(path.read_text())
    harm(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        read_keys(path)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b"{", b"\xff", b"[" * 10_000, b" " * (2 << 20)),
        *(b'{"format": 1, "keys": [{"id": "\xff"}]}', b'{"a\nb": 1}', b'{"\xff": 1}'),
    ],
)
def test_what_is_no_key_file_is_refused(path: Path, content: bytes) -> None:
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_keys(path)
    assert str(caught.value).isprintable()
    good = b'{"format": 1, "keys": []}'
    path.write_bytes(good)
    keys = KeyFile.load(path)
    path.write_bytes(content)
    assert keys.find("anything") is None  # a request is answered, whatever the file became


def test_a_file_that_is_not_there_names_the_command_that_makes_it(path: Path) -> None:
    with pytest.raises(ConfigError, match="keys add"):
        KeyFile.load(path)
    with pytest.raises(ConfigError, match="keys add"):
        revoke_keys(path, "alice")
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("name", ["", "a b", "../x", "a\n", "é", "-a", ".a", "a" * 65, "a/b"])
def test_a_name_that_could_harm_a_log_or_a_path_is_refused(path: Path, name: str) -> None:
    with pytest.raises(ParameterError, match="name of a key"):
        add_key(path, name)
    assert not path.exists()


def test_keys_of_a_tenant_have_one_role_and_one_quota(path: Path) -> None:
    quota = Quota(max_waiting=2)
    add_key(path, "alice", role="admin", quota=quota)
    second, _ = add_key(path, "alice")
    assert (second.role, second.quota) == ("admin", quota)
    with pytest.raises(ParameterError, match="role admin"):
        add_key(path, "alice", role="user")
    with pytest.raises(ParameterError, match="other settings"):
        add_key(path, "alice", quota=Quota(max_waiting=3))
    assert len(read_keys(path)) == 2


def test_revoking_a_tenant_takes_all_its_keys_and_no_others(path: Path) -> None:
    for name in ("alice", "bob", "alice"):
        add_key(path, name)
    assert [key.name for key in revoke_keys(path, "alice")] == ["alice", "alice"]
    assert [key.name for key in read_keys(path)] == ["bob"]
    with pytest.raises(ParameterError, match="no key 'alice'"):
        revoke_keys(path, "alice")


def test_keys_that_are_added_at_once_are_all_kept(path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: add_key(path, f"t{number}"), range(16)))
    keys = KeyFile.load(path)
    assert [keys.find(token) for _, token in found] == [
        Principal(f"t{number}", "user") for number in range(16)
    ]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write"):
        add_key(tmp_path / "no" / "keys.json", "alice")


def test_a_file_without_keys_is_warned_of(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_key(path, "alice")
    revoke_keys(path, "alice")
    assert KeyFile.load(path).find("") is None
    assert "holds no key" in caplog.text
