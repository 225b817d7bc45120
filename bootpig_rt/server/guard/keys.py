"""API keys: a file of salted hashes, and which tenant a token belongs to.

A token is 256 random bits that `key_changes.py` makes, so nobody can guess one and no dictionary
helps with its hash. A slow hash (scrypt, bcrypt), which passwords need, would protect nothing here
and would cost every request tens of milliseconds: one SHA-256 over salt and token is right.

The file is JSON, for its owner (and its group) alone, and replaced all at once. A server sees a
change with the next request. Knows nothing of HTTP.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import stat
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias, get_args

import msgspec
from msgspec import Meta, Struct

from bootpig_rt.errors import ConfigError, describe_os_error, one_line

logger = logging.getLogger(__name__)

Role: TypeAlias = Literal["user", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)

TOKEN_PREFIX = "bprt_"
"""What every token begins with, so that scanners of logs and repositories find one that leaked."""

MAX_TOKEN_CHARS = 200
MAX_KEYS = 2000
MAX_FILE_BYTES = 2 << 20
_FORBIDDEN_MODE = stat.S_IRWXO | stat.S_IWGRP

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"
"""Of a tenant: safe in a log, a metric and a file name."""


class Quota(Struct, frozen=True, forbid_unknown_fields=True):
    """What one tenant may have; None is no limit but the server's own.

    Attributes:
        max_waiting: Pictures that wait or run at once.
        subject_bytes: Bytes of kept subjects.
        images_per_minute: Pictures begun within a minute.
    """

    max_waiting: Annotated[int, Meta(ge=1)] | None = None
    subject_bytes: Annotated[int, Meta(ge=0)] | None = None
    images_per_minute: Annotated[int, Meta(ge=1)] | None = None


NO_QUOTA = Quota()


class ApiKey(Struct, frozen=True, forbid_unknown_fields=True):
    """One key, as the file holds it.

    Attributes:
        id: Tells the keys of a tenant apart; no secret.
        name: Of the tenant. A tenant may hold several keys, so that one can replace another.
        role: The same for all keys of a tenant.
        salt: 16 random bytes in hex.
        hash: SHA-256 of salt and token, in hex.
        created_at: UTC, as ISO 8601.
        quota: The same for all keys of a tenant.
    """

    id: Annotated[str, Meta(pattern=r"^[0-9a-f]{8}\Z")]
    name: Annotated[str, Meta(pattern=NAME_PATTERN)]
    role: Role
    salt: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
    hash: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    created_at: str
    quota: Quota = NO_QUOTA


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal[1]
    keys: tuple[ApiKey, ...]


@dataclass(frozen=True)
class Principal:
    """Who asks.

    Attributes:
        name: Of the tenant; empty on a server without keys.
        role: What the tenant may do.
        quota: What the tenant may have.
    """

    name: str
    role: Role
    quota: Quota = NO_QUOTA


class KeyFile:
    """The keys of a server, always those that its file holds now.

    Safe to use from several threads. Made by `load`.

    Args:
        path: Of the file.
        keys: What it holds.
        stamp: Of the file when it was read.
    """

    def __init__(self, path: Path, keys: Sequence[ApiKey], stamp: _Stamp) -> None:
        self._path = path
        self._keys = tuple(keys)
        self._stamp: _Stamp | None = stamp
        self._lock = threading.Lock()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> KeyFile:
        """Read and check a file of keys.

        Raises:
            ConfigError: No such file, one that others may read or change, or one that is damaged.
        """
        keys, stamp = _read(Path(path))
        if not keys:
            logger.warning("%s holds no key: every request that needs one is refused", path)
        return cls(Path(path), keys, stamp)

    @property
    def keys(self) -> tuple[ApiKey, ...]:
        """All keys that are valid now."""
        self._reload_if_changed()
        return self._keys

    def find(self, token: str) -> Principal | None:
        """Who holds `token`; None for nobody.

        Every key is compared in full, so that the time tells nothing of where a match is.
        """
        keys = self.keys
        if len(token) > MAX_TOKEN_CHARS:  # none of ours; hashing it would be work for a stranger
            return None
        given = token.encode("utf-8", "surrogatepass")
        found: ApiKey | None = None
        for key in keys:
            is_match = hmac.compare_digest(token_hash(key.salt, given), key.hash)
            found = key if is_match else found
        return None if found is None else Principal(found.name, found.role, found.quota)

    def _reload_if_changed(self) -> None:
        """Read the file again if it is another; a bad one is logged, and the old keys stay."""
        with self._lock:
            try:
                stamp = _stamp(os.stat(self._path))
            except OSError as error:
                if self._stamp is not None:  # once, not with every request
                    reason = describe_os_error(error)
                    logger.error("the key file is gone, the keys read last stay: %s", reason)
                self._stamp = None
                return
            if stamp == self._stamp:
                return
            self._stamp = stamp
            try:
                self._keys, self._stamp = _read(self._path)
            except ConfigError as error:
                logger.error("the key file changed and the keys read before stay: %s", error)
            else:
                logger.info("read %d keys from %s", len(self._keys), self._path)


def read_keys(path: str | os.PathLike[str]) -> tuple[ApiKey, ...]:
    """What a file of keys holds.

    Raises:
        ConfigError: As for `KeyFile.load`.
    """
    return _read(Path(path))[0]


_Stamp: TypeAlias = tuple[int, int, int, int]


def _stamp(info: os.stat_result) -> _Stamp:
    """Changes with the file's content, and with its permissions."""
    return info.st_ino, info.st_mtime_ns, info.st_ctime_ns, info.st_size


def token_hash(salt: str, token: bytes) -> str:
    """SHA-256 over the bytes of `salt` (hex) and the token, in hex."""
    return hashlib.sha256(bytes.fromhex(salt) + token).hexdigest()


def _read(path: Path) -> tuple[tuple[ApiKey, ...], _Stamp]:
    """The keys and the stamp of the very file that was checked and read."""
    try:
        with open(path, "rb") as stream:
            info = os.fstat(stream.fileno())
            _check_mode(path, info)
            text = stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(
            f"no key file {str(path)!r}; `bootpig-rt keys add {path} NAME` makes it"
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot read the key file: {describe_os_error(error)}") from error
    if len(text) > MAX_FILE_BYTES:
        raise ConfigError(f"key file {str(path)!r} is over {MAX_FILE_BYTES} bytes")
    try:
        keys = msgspec.json.decode(text, type=_File).keys
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # of the syntax, and of the fields
        raise ConfigError(f"key file {str(path)!r} is damaged: {one_line(str(error))}") from error
    _check_keys(path, keys)
    return keys, _stamp(info)


def _check_mode(path: Path, info: os.stat_result) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise ConfigError(f"key file {str(path)!r} is not a plain file")
    if os.name == "posix" and info.st_mode & _FORBIDDEN_MODE:
        raise ConfigError(
            f"key file {str(path)!r} has mode {stat.S_IMODE(info.st_mode):04o}: others than its "
            f"owner may read or change it; `chmod 600 {path}` (in Kubernetes defaultMode: 0440)"
        )


def _check_keys(path: Path, keys: Sequence[ApiKey]) -> None:
    if len(keys) > MAX_KEYS:
        raise ConfigError(f"key file {str(path)!r} has {len(keys)} keys, expected up to {MAX_KEYS}")
    if len({key.id for key in keys}) < len(keys):
        raise ConfigError(f"key file {str(path)!r} has two keys with one id")
    rights = {key.name: (key.role, key.quota) for key in keys}
    for key in keys:
        if rights[key.name] != (key.role, key.quota):
            raise ConfigError(
                f"key file {str(path)!r}: the keys of {key.name!r} differ in role or quota; "
                "make them equal"
            )
