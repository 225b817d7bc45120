"""What a manifest of C2PA claims of a generated picture, before it is signed.

Prompts stay out of it: it is made to be shown to everyone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from bootpig_rt import __version__
from bootpig_rt.images.marks import GENERATED

GENERATION_LABEL = "org.bootpig-rt.generation"
"""Our own assertion: pairs, subjects and the digests of reference images."""

SOFTWARE = {"name": "bootpig-rt", "version": __version__}


@dataclass(frozen=True)
class ReferenceOrigin:
    """What is kept of a reference image for the manifests of pictures made from it.

    Attributes:
        sha256: Of the file, in hexadecimal.
        archive: The manifest that the file brought along, as an ingredient; None if it had none.
    """

    sha256: str
    archive: bytes | None = field(default=None, repr=False)


def manifest_of(
    parameters: Mapping[str, Any],
    references: Sequence[ReferenceOrigin],
    ingredients: Sequence[str],
) -> dict[str, Any]:
    """The claims about one picture, or about a sheet of several."""
    pictures = [parameters, *parameters.get("pictures", ())]
    models = {p["model_fingerprint"]: p.get("model") for p in pictures if "model_fingerprint" in p}
    subjects = dict.fromkeys(p.get("subject_fingerprint") for p in pictures)
    created: dict[str, Any] = {
        "action": "c2pa.created",
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "softwareAgent": SOFTWARE,
        "digitalSourceType": GENERATED,
    }
    if ingredients:
        created["parameters"] = {"ingredientIds": list(ingredients)}
    generation = {
        "models": [{"name": name, "fingerprint": key} for key, name in models.items()],
        "subjects": [subject for subject in subjects if subject is not None],
        "references": [{"alg": "sha256", "hash": one.sha256} for one in references],
    }
    return {
        "claim_generator_info": [SOFTWARE],
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [created]}},
            {"label": GENERATION_LABEL, "data": generation},
        ],
    }
