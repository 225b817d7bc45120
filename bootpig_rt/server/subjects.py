"""SubjectLibrary: subjects that callers keep on the server, each its tenant's alone.

What is kept are the reference images as the model sees them. From these a subject is encoded for
whichever model is asked for, so that one subject serves several models, and a model that was loaded
again. A subject that came as a file has no images, and serves the pair that encoded it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from bootpig_rt.errors import StorageError, SubjectMismatch
from bootpig_rt.images.credentials_manifest import ReferenceOrigin
from bootpig_rt.reference.subject import Subject
from bootpig_rt.server.engine_client import EngineClient
from bootpig_rt.server.errors import ApiError
from bootpig_rt.server.guard.keys import Principal
from bootpig_rt.server.subject_folder import SubjectFolder, SubjectRecord, png_bytes

logger = logging.getLogger(__name__)

_MAX_EXPLICIT = 4096
"""Subjects of one tenant: listing them must stay cheap."""


@dataclass(eq=False)
class KeptSubject(SubjectRecord):
    """A subject in the library.

    Attributes:
        has_table: A picture of it was drawn here, so its reference table is likely there.
        encoded: By fingerprint of the pair.
    """

    has_table: bool = False
    encoded: dict[str, Subject] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def size_bytes(self) -> int:
        """Host memory, as far as it counts."""
        pictures = sum(3 * one.width * one.height for one in self.prepared)
        manifests = sum(len(one.archive or b"") for one in self.origins)
        return pictures + manifests + sum(_subject_bytes(one) for one in self.subjects())

    @property
    def expires_at(self) -> float:
        """Unix seconds."""
        return self.used_at + self.ttl_s

    def preview(self) -> Image.Image:
        """The references as the model sees them, side by side."""
        images = list(self.prepared) or (self.file.reference_images() if self.file else [])
        side = max((one.height for one in images), default=1)
        strip = Image.new("RGB", (max(1, sum(one.width for one in images)), side), "white")
        left = 0
        for one in images:
            strip.paste(one, (left, 0))
            left += one.width
        return strip

    def subjects(self) -> list[Subject]:
        """As models read it, each once."""
        file = [] if self.file is None else [self.file]
        return list({one.fingerprint: one for one in [*self.encoded.values(), *file]}.values())

    def know(self, subject: Subject) -> bool:
        """Note by which fingerprint a pair knows it, and whether that is news."""
        is_new = subject.fingerprint not in self.fingerprints
        if is_new:
            self.fingerprints = (*self.fingerprints, subject.fingerprint)
        return is_new

    def to_dict(self) -> dict[str, Any]:
        """As the API shows it."""
        first = self.prepared[0] if self.prepared else self.preview()
        return {
            "id": self.id,
            "object": "subject",
            "model": self.model,
            "reference_prompt": self.reference_prompt,
            "noise_seed": self.noise_seed,
            "num_references": self.num_references,
            "fingerprints": [one.fingerprint for one in self.subjects()],
            "created_at": int(self.created_at),
            "expires_at": int(self.expires_at),
            "bytes": self.size_bytes,
            "has_table": self.has_table,
            "preview": data_url(first),
        }


class SubjectLibrary:
    """Subjects by id. Used from the thread of the event loop alone.

    Args:
        tenant_bytes: Host memory for the subjects of one tenant.
        ttl_s: How long one is kept after its last use, where its maker says nothing.
        folder: Keeps them over restarts.
    """

    def __init__(self, *, tenant_bytes: int, ttl_s: float, folder: SubjectFolder | None) -> None:
        """Start empty, but for what lies in the folder."""
        self._tenant_bytes, self._ttl_s, self._folder = tenant_bytes, ttl_s, folder
        self._kept: dict[tuple[str, str], KeptSubject] = {}
        self._gone: set[tuple[str, str]] = set()

    def read_folder(self) -> None:
        """Take up what an earlier run kept."""
        found = {}
        for record in self._folder.records() if self._folder is not None else ():
            kept = KeptSubject(**vars(record))
            found[kept.tenant, kept.id] = kept
        self._kept = self._kept | found  # a new one: this may run on a thread, while others look

    def add(
        self,
        principal: Principal,
        client: EngineClient,
        prepared: Sequence[Image.Image],
        subject: Subject,
        origins: tuple[ReferenceOrigin, ...] = (),
        *,
        ttl_s: float | None,
        is_explicit: bool,
    ) -> KeptSubject:
        """Keep a subject; one with the same content is the same, and lives longer.

        Args:
            principal: Whose it is.
            client: That encoded it.
            prepared: References as the model sees them; none for a file.
            subject: Encoded from them, or read from the file.
            origins: Of the reference images, for signed manifests.
            ttl_s: How long it is kept after its last use; None for the usual time.
            is_explicit: It was asked to be kept.

        Raises:
            ApiError: 429: the tenant has no room left for it.
        """
        tenant = principal.name
        id = subject_id(tenant, subject, prepared)
        now = time.time()
        kept = self._kept.get((tenant, id))
        if kept is None:
            kept = KeptSubject(
                id=id,
                tenant=tenant,
                model=client.facts.name,
                reference_prompt=subject.reference_prompt,
                noise_seed=subject.noise_seed,
                prepared=tuple(prepared),
                file=None if prepared else subject,
                num_references=subject.num_references,
                created_at=now,
                ttl_s=self._ttl_s if ttl_s is None else ttl_s,
                used_at=now,
                is_explicit=is_explicit,
                origins=origins,
            )
            kept.encoded[subject.pair_fingerprint] = subject
            quota = principal.quota.subject_bytes
            most = self._tenant_bytes if quota is None else min(quota, self._tenant_bytes)
            self._make_room(tenant, kept.size_bytes, most)
            self._kept[tenant, id] = kept
        kept.know(subject)
        self._use(kept)
        kept.is_explicit |= is_explicit
        if ttl_s is not None:
            kept.ttl_s = ttl_s
        return kept

    def save(self, kept: KeptSubject) -> None:
        """Write one to the folder, if there is one. May take milliseconds.

        Raises:
            StorageError: It cannot be written.
        """
        if self._folder is not None:
            self._folder.write(kept)
            if (kept.tenant, kept.id) not in self._kept:  # it was deleted meanwhile
                self._folder.remove(kept.id)

    def get(self, tenant: str, id: str) -> KeptSubject:
        """A subject of a tenant.

        Raises:
            ApiError: 404: none of that id, or another tenant's.
        """
        self.drop_expired()
        kept = self._kept.get((tenant, id))
        if kept is None:
            text = "no such subject; it was deleted, it expired, or it never was"
            raise ApiError(404, "subject_not_found", text, param="subject_id")
        return kept

    async def subject_for(self, kept: KeptSubject, client: EngineClient) -> Subject:
        """A kept subject as a model reads it; encoded now where it was not yet.

        Raises:
            ApiError: 409: it came as a file, and is another pair's.
            InputError: Its references are none to this model.
        """
        self._use(kept)
        async with kept.lock:
            found = kept.encoded.get(client.facts.fingerprint)
            if found is not None:
                return found
            if kept.file is not None:
                try:
                    client.check_subject(kept.file)
                except SubjectMismatch:
                    text = "the subject's file was made with another model than the one asked for"
                    raise ApiError(409, "subject_mismatch", text, param="subject_id") from None
                return kept.file
            prepared: Sequence[Image.Image] = kept.prepared
            side = client.facts.size_px
            if any(one.size != (side, side) for one in prepared):
                prepared = await client.prepare(list(prepared))
            subject = await client.encode(
                prepared, kept.reference_prompt, noise_seed=kept.noise_seed
            )
            kept.encoded[client.facts.fingerprint] = subject
            self._trim(kept)
            if kept.know(subject) and self._folder is not None and self._folder.holds(kept.id):
                try:
                    await asyncio.to_thread(self.save, kept)
                except StorageError as error:  # after a restart its tables would stay
                    logger.warning("the subject %s was not written again: %s", kept.id, error)
            return subject

    def of_tenant(self, tenant: str) -> list[KeptSubject]:
        """All of a tenant, newest first."""
        self.drop_expired()
        mine = [one for (owner, _), one in self._kept.items() if owner == tenant]
        return sorted(mine, key=lambda one: (-one.created_at, one.id))

    def remove(self, kept: KeptSubject) -> None:
        """Forget a subject, here and in the folder; its tables are another's. May be called twice.

        See `take_gone`.
        """
        if self._kept.pop((kept.tenant, kept.id), None) is not None:
            self._gone |= {(kept.tenant, one) for one in kept.fingerprints}
        if self._folder is not None:
            self._folder.remove(kept.id)

    def take_gone(self) -> set[tuple[str, str]]:
        """Tenants and fingerprints of what was removed, whose tables have to go; each told once."""
        gone, self._gone = self._gone, set()
        return gone - {
            (kept.tenant, one) for kept in self._kept.values() for one in kept.fingerprints
        }

    def put_gone(self, gone: Iterable[tuple[str, str]]) -> None:
        """Tables that could not be forgotten yet: `take_gone` tells of them again."""
        self._gone |= set(gone)

    def keep_only(self, fingerprints: Iterable[str]) -> None:
        """Drop what was encoded for pairs that are gone."""
        wanted = set(fingerprints)
        for kept in self._kept.values():
            kept.encoded = {one: s for one, s in kept.encoded.items() if one in wanted}

    def drop_expired(self) -> None:
        """Forget those whose time is over."""
        now = time.time()
        for kept in [one for one in self._kept.values() if one.expires_at <= now]:
            self.remove(kept)

    @property
    def count(self) -> int:
        """Subjects of all tenants."""
        return len(self._kept)

    @property
    def size_bytes(self) -> int:
        """Host memory that they take."""
        return sum(one.size_bytes for one in self._kept.values())

    def _use(self, kept: KeptSubject) -> None:
        """It lives longer, over a restart too."""
        kept.used_at = time.time()
        if self._folder is not None:
            self._folder.touch(kept.id, kept.used_at)

    def _trim(self, used: KeptSubject) -> None:
        """Where a tenant has too much, drop what can be encoded again, longest unused first."""
        mine = [one for one in self._kept.values() if one.tenant == used.tenant]
        too_much = sum(one.size_bytes for one in mine) - self._tenant_bytes
        for one in sorted(mine, key=lambda one: one.used_at):
            if too_much <= 0:
                break
            if one is not used and one.prepared:
                too_much -= one.size_bytes
                one.encoded = {}
                too_much += one.size_bytes

    def _make_room(self, tenant: str, size_bytes: int, most_bytes: int) -> None:
        """Drop what nobody asked to keep, least recently used first."""
        mine = self.of_tenant(tenant)
        used = sum(one.size_bytes for one in mine)
        giving_way = sorted(
            (one for one in mine if not one.is_explicit), key=lambda one: -one.used_at
        )
        while used + size_bytes > most_bytes or len(mine) >= _MAX_EXPLICIT:
            if not giving_way:
                text = f"no room for another subject ({used} bytes are kept); delete some"
                raise ApiError(429, "subject_quota", text)
            oldest = giving_way.pop()
            used -= oldest.size_bytes
            mine.remove(oldest)
            self.remove(oldest)


def subject_id(tenant: str, subject: Subject, prepared: Sequence[Image.Image]) -> str:
    """Of what a subject shows and whose it is, whichever pair encoded it."""
    digest = hashlib.sha256()
    for part in (tenant, subject.reference_prompt, str(subject.noise_seed)):
        digest.update(hashlib.sha256(part.encode()).digest())
    digest.update((subject.pixels_sha256 if prepared else subject.fingerprint).encode())
    return f"sub_{digest.hexdigest()[:24]}"


def data_url(image: Image.Image) -> str:
    """A picture as a `data:` URL of a PNG."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode()


def _subject_bytes(subject: Subject) -> int:
    arrays = (subject.pixels, subject.latents, subject.prompt_states, subject.preview)
    tables = sum(one.size_bytes for one in subject.tables)
    return tables + sum(one.nbytes for one in arrays if one is not None)
