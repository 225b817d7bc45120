"""`bootpig-rt import-data`: make training shards of somebody else's samples."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bootpig_rt.training.importing.candidate import Source
    from bootpig_rt.training.importing.cut import Cut

NAME = "import-data"
HELP = "make training shards of triplets in a folder, of WebDataset tars or of parquet files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("path", type=Path, help="folder or file with the samples")
    parser.add_argument(
        "--from",
        dest="kind",
        required=True,
        choices=["folder", "webdataset", "parquet"],
        help="what it is: a folder of triplets, tar files, or parquet files such as Subjects200K",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the shards")
    parser.add_argument(
        "--licence",
        required=True,
        metavar="TEXT",
        help="under which the pictures may be used, such as 'CC BY 4.0'; goes into the manifest",
    )
    parser.add_argument(
        "--attribution",
        default="",
        metavar="TEXT",
        help="who made them and where they are from; goes into the manifest",
    )
    parser.add_argument("--size-px", type=int, default=512, help="side of a picture (default: 512)")
    parser.add_argument(
        "--cut-out",
        default="",
        metavar="HOW",
        help="find the subject where there is no mask, and cut it out of references: grabcut, an "
        "ONNX file, or a TOML file of `bootstrap` whose table [masks] says how",
    )
    parser.add_argument(
        "--needs-mask",
        action="store_true",
        help="refuse targets without a mask; by default all of such a picture counts as subject",
    )
    parser.add_argument(
        "--subject-share",
        type=float,
        metavar="SHARE",
        help="longest side of the subject in a reference; default: as trained pairs expect it",
    )
    parser.add_argument(
        "--map",
        dest="roles",
        action="append",
        default=[],
        metavar="ROLE=NAME",
        help="which member of a tar, or column of a parquet file, is the target, mask, reference, "
        "caption or subject: target=jpg, caption=json:prompt; give it again for more",
    )
    group = parser.add_argument_group("parquet with two pictures in one (Subjects200K)")
    group.add_argument(
        "--min-quality",
        type=int,
        default=5,
        metavar="N",
        help="least of the three marks of a row, 0 to take all (default: 5)",
    )
    group.add_argument("--collection", default="", help="take the rows of this collection alone")
    group.add_argument(
        "--one-way",
        action="store_true",
        help="one sample of a row, the left picture as target; by default either is it once",
    )
    parser.add_argument(
        "--max-samples", type=int, default=0, metavar="N", help="stop after as many (default: all)"
    )
    parser.add_argument(
        "--shard-size", type=int, default=1000, help="samples a file (default: 1000)"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--json", action="store_true", help="print the manifest's summary as JSON")


def run(args: argparse.Namespace) -> int:
    """Write the shards and a contact sheet; a second run goes on where the first stopped."""
    from tqdm import tqdm

    from bootpig_rt.training.compose import REFERENCE_LENGTH
    from bootpig_rt.training.contact import write_contact_sheet
    from bootpig_rt.training.importing.fit import Fit
    from bootpig_rt.training.importing.run import ImportConfig, import_samples
    from bootpig_rt.training.importing.stream import Progress

    share = REFERENCE_LENGTH if args.subject_share is None else args.subject_share
    remover, cut = open_cutter(args.cut_out, share)
    config = ImportConfig(
        Fit(args.size_px, remover, args.needs_mask, cut is not None, share),
        args.licence,
        args.attribution,
        args.shard_size,
        args.max_samples,
        cut,
    )
    with tqdm(unit="sample", total=args.max_samples or None, disable=None) as bar:

        def on_progress(progress: Progress) -> None:
            bar.update(progress.samples - bar.n)
            bar.set_postfix(refused=progress.refused, refresh=False)

        manifest = import_samples(
            args.output,
            open_source(args),
            config,
            num_workers=args.workers,
            on_progress=on_progress,
        )
    sheet = write_contact_sheet(args.output, args.output / "contact.png")
    if args.json:
        summary = {key: manifest[key] for key in ("samples", "rejects", "source")}
        told = {"folder": str(args.output), "shards": len(manifest["shards"]), "sheet": str(sheet)}
        print(json.dumps(summary | told))
        return 0
    print("\n".join(summary_lines(manifest, args.output, sheet)))
    return 0


def open_cutter(how: str, subject_share: float) -> tuple[str, Cut | None]:
    """The background remover, or the stage of the bootstrap, that `--cut-out` names.

    Raises:
        ParameterError, ConfigError: Neither of these.
        BackendUnavailable: A package is missing.
    """
    from bootpig_rt.images.background import load_remover

    if not how.endswith(".toml"):
        if how:
            load_remover(how)  # says now what is wrong with it
        return how, None
    from functools import partial

    from bootpig_rt.training.bootstrap.config import load_bootstrap_config
    from bootpig_rt.training.bootstrap.masks import MasksStage
    from bootpig_rt.training.importing.cut import Cut

    config = load_bootstrap_config(Path(how), ["output=unused"])
    return "", Cut(partial(MasksStage, config), config.to_dict()["masks"], subject_share)


def open_source(args: argparse.Namespace) -> Source:
    """The source that the options name.

    Raises:
        ConfigError: It has no samples, or an option is for another kind of source.
    """
    from bootpig_rt.errors import ConfigError
    from bootpig_rt.training.importing.candidate import parse_roles
    from bootpig_rt.training.importing.folder import FolderSource
    from bootpig_rt.training.importing.parquet_rows import PairRules, ParquetSource
    from bootpig_rt.training.importing.tars import TarSource

    roles = parse_roles(args.roles)
    if args.kind == "folder":
        if roles:
            raise ConfigError("--map is for webdataset and parquet; a folder's files have names")
        return FolderSource(args.path)
    if args.kind == "webdataset":
        return TarSource(args.path, roles)
    rules = PairRules(args.min_quality, args.collection, not args.one_way)
    return ParquetSource(args.path, roles, rules)


def summary_lines(manifest: dict[str, Any], folder: Path, sheet: Path) -> list[str]:
    """What a person reads at the end, with a hint where references show their background."""
    rejects = ", ".join(f"{k} {v}" for k, v in manifest["rejects"].items()) or "none"
    lines = [f"{manifest['samples']} samples in {folder}; refused: {rejects}"]
    counts = manifest["source"]["counts"]
    if whole := counts.get("mask_none", 0):
        lines.append(
            f"{whole} targets have no mask, so all of the picture counts as subject; --cut-out "
            "finds it"
        )
    if whole := counts.get("references_with_background", 0):
        lines.append(
            f"{whole} of {counts['references']} references show their background, which a pair "
            "learns to copy; --cut-out takes it away"
        )
    return [*lines, f"Look at {sheet} before you train."]
