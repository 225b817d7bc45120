"""`bootpig-rt keys`, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bootpig_rt.cli.main import main
from bootpig_rt.server.guard.keys import KeyFile, Principal, Quota


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
    """Runs `keys` in an empty folder and returns its code and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["keys", *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_add_prints_the_token_alone_and_the_server_knows_it(cli: Any) -> None:
    words = ["--role", "admin", "--max-waiting", "4", "--subject-bytes", "1000"]
    code, out, err = cli("add", "keys.json", "alice", *words, "--images-per-minute", "30")
    assert code == 0
    token = out.strip()
    assert " " not in token
    assert token not in err
    quota = Quota(max_waiting=4, subject_bytes=1000, images_per_minute=30)
    assert KeyFile.load("keys.json").find(token) == Principal("alice", "admin", quota)


def test_list_shows_keys_without_their_hashes(cli: Any) -> None:
    cli("add", "keys.json", "alice", "--max-waiting", "4")
    cli("add", "keys.json", "bob", "--json")
    _, out, _ = cli("list", "keys.json")
    alice, bob = out.splitlines()
    assert "alice: user" in alice
    assert "max_waiting 4" in alice
    assert "bob" in bob
    _, out, _ = cli("list", "keys.json", "--json")
    entries = json.loads(out)["keys"]
    assert [set(entry) for entry in entries] == [{"id", "name", "role", "created_at", "quota"}] * 2


def test_revoke_by_id_leaves_the_tenant_its_other_key(cli: Any) -> None:
    first = json.loads(cli("add", "keys.json", "alice", "--json")[1])
    second = json.loads(cli("add", "keys.json", "alice", "--json")[1])
    code, out, _ = cli("revoke", "keys.json", first["id"])
    assert code == 0
    assert first["id"] in out
    keys = KeyFile.load("keys.json")
    assert keys.find(first["token"]) is None
    assert keys.find(second["token"]) == Principal("alice", "user")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["add", "keys.json"], "takes the name"),
        (["revoke", "keys.json"], "takes the name"),
        (["list", "keys.json", "alice"], "takes no name"),
        (["list", "keys.json"], "keys add"),
        (["revoke", "keys.json", "alice"], "keys add"),
        (["revoke", "keys.json", "alice", "--role", "user"], "for `keys add`"),
        (["add", "keys.json", "a b"], "name of a key"),
        (["add", "keys.json", "alice", "--max-waiting", "0"], "max_waiting is 0"),
        (["add", "keys.json", "alice", "--role", "root"], "root"),
        (["add", "no/keys.json", "alice"], "cannot write"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_file(cli: Any, words: list[str], message: str) -> None:
    code, out, err = cli(*words)
    assert code in (1, 2)
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1
    assert list(Path.cwd().iterdir()) == []
