"""Tables in a tier of a store: whose they are, what they take, and how they come up."""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from typing import TypeAlias

from bootpig_rt.backends.base import Backend
from bootpig_rt.backends.host_table import table_bytes
from bootpig_rt.errors import SubjectMismatch
from bootpig_rt.reference.reference_table import ReferenceKey, ReferenceTable
from bootpig_rt.reference.subject import Subject

logger = logging.getLogger(__name__)

Address: TypeAlias = tuple[str, str, ReferenceKey]
"""Tenant, backend and device, key."""

Kept: TypeAlias = "tuple[ReferenceTable, weakref.ref[Backend]]"
"""A table, and who can copy it. The store keeps no pipeline alive."""


def address_of(tenant: str, backend: Backend, key: ReferenceKey) -> Address:
    """Where a table lies."""
    return tenant, f"{backend.name} {backend.device}", key


def uploaded(saved: ReferenceTable, backend: Backend, *, is_resident: bool) -> ReferenceTable:
    """A saved table for a backend.

    Raises:
        SubjectMismatch: It has other layers than the pair.
    """
    shapes = tuple((heads, tokens, dim) for *_, heads, tokens, dim in saved.data.shapes())
    if backend.spec.reference_shapes and shapes != backend.spec.reference_shapes:
        raise SubjectMismatch(
            f"a saved reference table has layers (H, M, D) {shapes[:2]}..., expected "
            f"{backend.spec.reference_shapes[:2]}...; encode the subject again"
        )
    size_bytes, lying = saved.size_bytes, backend.spec.resident_dtype
    if is_resident and lying is not None:  # however it was kept, the device holds it in this type
        entries, references = saved.data.shapes()[0][:2]
        size_bytes = table_bytes(
            shapes, num_entries=entries, num_references=references, dtype=lying
        )
    data = backend.upload_table(saved.data, is_resident=is_resident)
    return ReferenceTable(saved.key, data, size_bytes, is_resident)


def brought_along(subject: Subject, key: ReferenceKey) -> ReferenceTable | None:
    """The table among those of a subject's file; why the others are not it, the log says."""
    for saved in subject.tables:
        if saved.key == key:
            return saved
    for saved in subject.tables:
        difference = saved.key.difference(key)
        logger.info("a table of %.12s is not used: it %s", subject.fingerprint, difference)
    return None


def overflow(tier: OrderedDict[Address, Kept], limit: int) -> list[tuple[Address, Kept]]:
    """Take the least recently used tables out until the rest fits."""
    total, taken = bytes_held(tier), []
    while total > limit:
        address, kept = tier.popitem(last=False)
        total -= kept[0].size_bytes
        taken.append((address, kept))
    return taken


def bytes_held(tier: OrderedDict[Address, Kept]) -> int:
    """Of all tables of a tier."""
    return sum(table.size_bytes for table, _ in tier.values())
