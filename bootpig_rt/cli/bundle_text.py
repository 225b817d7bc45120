"""What several commands about bundles share: which folder is meant, and what is printed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bootpig_rt.bundle.manifest import Identity, Manifest, ParityReport, Profile


def bundle_folder(given: Path | None) -> Path:
    """The folder that was named, or the one inside the package."""
    if given is not None:
        return given
    from bootpig_rt.bundle.shipped import default_model

    return default_model()


def takes(profile: Profile) -> str:
    """What graphs or engines were built for."""
    low, usual, high = profile.resolution_px
    return (
        f"takes      pictures of {low} to {high} px (usually {usual}), {profile.max_batch} at "
        f"once, {profile.max_references} references, {profile.max_steps} steps"
    )


def lora_lines(manifest: Manifest) -> list[str]:
    """The LoRAs that are in the weights."""
    return [
        f"LoRA       {lora.name} at {lora.scale:g}, sha256 {lora.sha256}"
        for lora in manifest.pair.loras
    ]


def control_lines(manifest: Manifest) -> list[str]:
    """The controls that it has graphs for."""
    return [
        f"control    {control.kind}, {control.fingerprint[:12]}" for control in manifest.controls
    ]


def size_text(size_bytes: int) -> str:
    """A size as GB, MB or kB."""
    if size_bytes >= 1e9:
        return f"{size_bytes / 1e9:.2f} GB"
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.0f} kB"


def all_parity_lines(manifest: Manifest) -> list[str]:
    """What the parity gate found, for each precision that the bundle can be computed in."""
    lines = parity_lines(manifest.parity)
    for variant in manifest.variants:
        lines += ["", f"in {variant.precision}:", *parity_lines(variant.parity)]
        lines += identity_lines(variant.identity)
    return lines


def identity_lines(identity: Identity | None) -> list[str]:
    """What judges found of a precision; nothing where they were not asked."""
    if identity is None:
        return []
    low, high = identity.low_points, identity.high_points
    line = f"identity beside float32: {identity.change_points:+.1f} points ({low:+.1f} to "
    line += f"{high:+.1f}) over {identity.pictures} pictures"
    return [line if identity.passed else f"{line}  FAILED: auto does not choose it"]


def parity_lines(report: ParityReport) -> list[str]:
    """What the parity gate found, as a table."""
    head = f"parity with torch: {report.status}"
    if report.backend:
        head += f" ({report.backend} on {report.device})"
    lines = [head]
    if report.reason:
        lines.append(f"  {report.reason}")
    if report.results:
        lines.append(
            f"  {'output':<34} {'relative':>9} {'limit':>8} {'largest':>9} {'PSNR':>8} {'limit':>6}"
        )
    for result in report.results:
        psnr = "" if result.psnr_limit_db is None else "equal"
        if result.psnr_db is not None:
            psnr = f"{result.psnr_db:.1f}"
        limit = "" if result.psnr_limit_db is None else f"{result.psnr_limit_db:.0f}"
        lines.append(
            f"  {result.name:<34} {_number(result.relative_error):>9} "
            f"{result.relative_limit:>8.0e} {_number(result.largest_error):>9} {psnr:>8} "
            f"{limit:>6}{'' if result.passed else '  FAILED'}"
        )
    return lines


def _number(value: float | None) -> str:
    return "NaN" if value is None else f"{value:.1e}"
