"""Make and revoke API keys: the file of `keys.py`, changed all at once by one process at a time."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from bootpig_rt.errors import ParameterError, StorageError, describe_os_error
from bootpig_rt.files.atomic import atomic_write_bytes
from bootpig_rt.server.guard.keys import (
    MAX_KEYS,
    NAME_PATTERN,
    NO_QUOTA,
    TOKEN_PREFIX,
    ApiKey,
    Quota,
    Role,
    read_keys,
    token_hash,
)

_LOCK_TIMEOUT_S = 10.0


def add_key(
    path: str | os.PathLike[str],
    name: str,
    *,
    role: Role | None = None,
    quota: Quota | None = None,
) -> tuple[ApiKey, str]:
    """Make a key and write it to the file, which is made if it is not there.

    Args:
        path: Of the file, in a folder that exists.
        name: Of the tenant: 1 to 64 letters, digits, `.`, `_` and `-`.
        role: `user` by default. A tenant that has a key keeps its role and quota.
        quota: No limits by default.

    Returns:
        The key, and its token, which is stored nowhere.

    Raises:
        ParameterError: Not a name, another role or quota than the tenant's, or too many keys.
        ConfigError: A file that cannot be used.
        StorageError: A file that cannot be written.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise ParameterError(
            f"the name of a key is {name!r}, expected 1 to 64 letters, digits, '.', '_', '-'"
        )
    with _changing(Path(path)) as keys:
        others = [key for key in keys if key.name == name]
        for other in others:
            if role not in (None, other.role) or quota not in (None, other.quota):
                raise ParameterError(
                    f"{name!r} has a key with role {other.role} and other settings than those "
                    "given; leave them out to add a second key, or revoke the first"
                )
            role, quota = other.role, other.quota
        if len(keys) >= MAX_KEYS:
            raise ParameterError(f"the file holds {len(keys)} keys, expected fewer than {MAX_KEYS}")
        token = TOKEN_PREFIX + secrets.token_urlsafe(32)
        salt = secrets.token_hex(16)
        key = ApiKey(
            id=_new_id({key.id for key in keys}),
            name=name,
            role=role or "user",
            salt=salt,
            hash=token_hash(salt, token.encode()),
            created_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            quota=quota or NO_QUOTA,
        )
        keys.append(key)
    return key, token


def revoke_keys(path: str | os.PathLike[str], name_or_id: str) -> list[ApiKey]:
    """Take all keys of a tenant, or one by its id, out of the file.

    Returns:
        The keys that were taken out.

    Raises:
        ParameterError: No such key.
        ConfigError: A file that cannot be used.
        StorageError: A file that cannot be written.
    """
    if not Path(path).exists():
        read_keys(path)  # says so
    with _changing(Path(path)) as keys:
        gone = [key for key in keys if key.name == name_or_id] or [
            key for key in keys if key.id == name_or_id
        ]
        if not gone:
            raise ParameterError(f"no key {name_or_id!r} in {os.fspath(path)!r}; list shows them")
        keys[:] = [key for key in keys if key not in gone]
    return gone


def _new_id(taken: set[str]) -> str:
    while (found := secrets.token_hex(4)) in taken:
        pass
    return found


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[list[ApiKey]]:
    """The keys of a file to change; written when the block ends well, one writer at a time."""
    if not path.parent.is_dir():  # a lock would make the folder
        raise StorageError(f"cannot write {str(path)!r}: no folder {str(path.parent)!r}")
    lock = FileLock(path.with_name(path.name + ".lock"), timeout=_LOCK_TIMEOUT_S, mode=0o600)
    try:
        lock.acquire()
    except Timeout as error:
        raise StorageError(
            f"another process has been changing {str(path)!r} for {_LOCK_TIMEOUT_S:g} s; try again"
        ) from error
    except OSError as error:
        raise StorageError(f"cannot write {str(path)!r}: {describe_os_error(error)}") from error
    try:
        keys = list(read_keys(path)) if path.exists() else []
        yield keys
        text = json.dumps({"format": 1, "keys": msgspec.to_builtins(keys)}, indent=2)
        atomic_write_bytes(path, text.encode() + b"\n", new_mode=0o600)
    finally:
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink()  # while it is held: who waits opens a new one
        lock.release()
