"""`bootpig-rt keys add|list|revoke FILE`: the API keys of a server.

A token is printed once, when it is made: the file holds its hash alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from bootpig_rt.errors import ParameterError

if TYPE_CHECKING:
    from bootpig_rt.server.guard.keys import ApiKey

NAME = "keys"
HELP = "make, list and revoke the API keys of a server"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("action", choices=("add", "list", "revoke"), help="what to do")
    parser.add_argument("file", metavar="FILE", help="the file of keys; add makes it")
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="of the tenant; for revoke also the id of a key"
    )
    group = parser.add_argument_group("with add, for a tenant without a key")
    group.add_argument("--role", choices=("user", "admin"), help="default: user")
    group.add_argument(
        "--max-waiting", type=int, metavar="N", help="pictures that wait or run at once"
    )
    group.add_argument("--subject-bytes", type=int, metavar="BYTES", help="of kept subjects")
    group.add_argument(
        "--images-per-minute", type=int, metavar="N", help="pictures begun within a minute"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Add, list or revoke."""
    if (args.name is None) != (args.action == "list"):
        wants = "no name" if args.action == "list" else "the name of a tenant"
        raise ParameterError(f"`keys {args.action} FILE` takes {wants}")
    rights = (args.role, args.max_waiting, args.subject_bytes, args.images_per_minute)
    if args.action != "add" and rights != (None, None, None, None):
        raise ParameterError("a role and quotas are for `keys add`")
    actions = {"add": _add, "list": _list, "revoke": _revoke}
    actions[args.action](args)
    return 0


def _add(args: argparse.Namespace) -> None:
    from bootpig_rt.checks import check_int
    from bootpig_rt.server.guard.key_changes import add_key
    from bootpig_rt.server.guard.keys import Quota

    given = {
        "max_waiting": (args.max_waiting, 1),
        "subject_bytes": (args.subject_bytes, 0),
        "images_per_minute": (args.images_per_minute, 1),
    }
    limits = {
        name: check_int(name, value, low, 2**63 - 1)
        for name, (value, low) in given.items()
        if value is not None
    }
    quota = Quota(**limits) if limits else None
    key, token = add_key(args.file, args.name, role=args.role, quota=quota)
    if args.json:
        print(json.dumps({**_facts(key), "token": token}, indent=2))
        return
    print(token)  # alone on stdout, so that a script can take it
    print(f"{_line(key)}; the token is shown this once", file=sys.stderr)


def _list(args: argparse.Namespace) -> None:
    from bootpig_rt.server.guard.keys import read_keys

    _show(args, [*read_keys(args.file)])


def _revoke(args: argparse.Namespace) -> None:
    from bootpig_rt.server.guard.key_changes import revoke_keys

    _show(args, revoke_keys(args.file, args.name))


def _show(args: argparse.Namespace, keys: list[ApiKey]) -> None:
    if args.json:
        print(json.dumps({"keys": [_facts(key) for key in keys]}, indent=2))
        return
    done = "revoked " if args.action == "revoke" else ""
    for key in keys:
        print(done + _line(key))


def _facts(key: ApiKey) -> dict[str, Any]:
    """What may be shown of a key: not its hash."""
    return {
        "id": key.id,
        "name": key.name,
        "role": key.role,
        "created_at": key.created_at,
        "quota": _limits(key),
    }


def _limits(key: ApiKey) -> dict[str, int]:
    from msgspec import structs

    return {name: value for name, value in structs.asdict(key.quota).items() if value is not None}


def _line(key: ApiKey) -> str:
    limits = "".join(f", {name} {value}" for name, value in _limits(key).items())
    return f"{key.id} {key.name}: {key.role}, made {key.created_at}{limits}"
