"""A bundle of the pair that training stage `distill` wrote, built once and kept."""

from __future__ import annotations

from pathlib import Path

from bootpig_rt.bundle.bundle import is_bundle
from bootpig_rt.errors import CheckpointError
from bootpig_rt.export.build import build_engine
from bootpig_rt.export.build_options import build_options, size_multiple_px
from bootpig_rt.models.load import load_pair


def student_bundle(folder: Path, work: Path) -> Path:
    """The folder itself where it is a bundle, else one that is built from the pair in it.

    Args:
        folder: A pair or a bundle.
        work: Where the bundle is kept between runs, by the pair's fingerprint.

    Raises:
        CheckpointError: There is no pair.
        ParityError: The graphs differ from torch.
    """
    if is_bundle(folder):
        return folder
    if not folder.is_dir():
        raise CheckpointError(
            f"no pair in {folder}; train one with `bootpig-rt train "
            "training/configs/distill.toml`, or name its folder with --student"
        )
    pair = load_pair(folder)
    built = work / "students" / pair.fingerprint[:16]
    if not is_bundle(built):
        built.parent.mkdir(parents=True, exist_ok=True)
        options = build_options(
            pair.config,
            size_multiple_px=size_multiple_px(folder, folder),
            merges=(pair.config.merge,),
        )
        build_engine(folder, built, options)
    return built
