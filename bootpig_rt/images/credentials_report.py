"""What the manifest of a picture says, taken out of what the reader of c2pa gives.

The picture may be anybody's, and so may be every value in its manifest: none has a type that can be
relied on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bootpig_rt.images.credentials_manifest import GENERATION_LABEL


@dataclass(frozen=True)
class CredentialsReport:
    """What the manifest of a picture says, as c2pa checked it.

    Attributes:
        state: `Trusted`, `Valid` (whole, but signed by somebody whom no list names), or `Invalid`.
        signer: Name in the certificate.
        source_types: Digital source types of its actions.
        generation: Contents of our own assertion; empty in manifests of others.
        ingredients: Relationship of each ingredient that has a manifest of its own, by label.
    """

    state: str
    signer: str
    source_types: tuple[str, ...]
    generation: Mapping[str, Any]
    ingredients: Mapping[str, str]


def report_of(store: Any) -> CredentialsReport:
    """A report of what the reader of c2pa gives; what it passes on may be anything."""
    manifests = _dict(_dict(store).get("manifests"))
    manifest = _dict(manifests.get(str(_dict(store).get("active_manifest"))))
    found = {str(one.get("label")): one.get("data") for one in _dicts(manifest.get("assertions"))}
    actions = [
        action
        for label, contents in found.items()
        if label.startswith("c2pa.actions")
        for action in _dicts(_dict(contents).get("actions"))
    ]
    return CredentialsReport(
        state=str(_dict(store).get("validation_state", "Invalid")) if manifest else "Invalid",
        signer=str(_dict(manifest.get("signature_info")).get("common_name", "")),
        source_types=tuple(
            str(each["digitalSourceType"]) for each in actions if "digitalSourceType" in each
        ),
        generation=_dict(found.get(GENERATION_LABEL)),
        ingredients={
            str(one["active_manifest"]): str(one.get("relationship", ""))
            for one in _dicts(manifest.get("ingredients"))
            if "active_manifest" in one
        },
    )


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
