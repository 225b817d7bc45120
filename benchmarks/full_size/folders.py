"""The folders of suite `full-size`, made once by the commands that a user would type, and kept.

A Stable Diffusion folder with random weights, the pair of `init-pair`, a bundle for each engine,
and what the peers read. Each is made in a process of its own, which tells time and memory.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from bootpig_rt.benchmarks.child import run_child
from bootpig_rt.benchmarks.openvino_ways import check_int8, check_openvino, sources_digest
from bootpig_rt.benchmarks.result import Row
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.way import Unavailable, why_not
from bootpig_rt.bundle.model_index import FILE as INDEX_FILE
from bootpig_rt.errors import BootPIGError
from bootpig_rt.files.atomic import atomic_write_text

BUNDLES = {
    "cpu": ("--target", "cpu"),
    "openvino": ("--target", "openvino"),
    "openvino-int8": ("--target", "openvino", "--precision", "int8", "--int8-limit", "0.08"),
}
"""By name: words of `build-engine`. Random weights round worse than trained ones: with the usual
limit more stays wide than in a trained pair, and the times of int8 would be those of float32."""

GROUP = "made once, each in a process of its own"
_MARK = "made.json"
_INT8_S = 3600.0
"""int8 measures parts of a graph; graphs that were finished are kept for the next run."""


@dataclass(frozen=True)
class Folders:
    """Where the parts of the suite lie.

    Attributes:
        base_model: A Stable Diffusion folder with random weights.
        plain: The pair of `init-pair`, with one U-Net: what text to image needs.
        pair: Two U-Nets of the same numbers, whose weights are stored once and loaded twice, as
            those of a trained pair are.
        bundles: By name of `BUNDLES`.
        peer: What OpenVINO GenAI reads.
        rows: What making them took; a row whose `status` is set could not be made.
    """

    base_model: Path
    plain: Path
    pair: Path
    bundles: dict[str, Path]
    peer: Path
    rows: tuple[Row, ...]

    def missing(self, name: str) -> str:
        """Why the folder of a row could not be made; empty where it was."""
        return next(row.status for row in self.rows if row.name == name)


def make_folders(settings: Settings, side_px: int, wanted: Collection[str]) -> Folders:
    """Make what is not there yet.

    Args:
        settings: The work folder, and who is told.
        side_px: Of the pictures.
        wanted: Names of rows, `make cpu` or `make peer`; the pair is always made.

    Raises:
        BootPIGError: The pair could not be made; bundles and peers that cannot be are rows.
    """
    size = "toy" if settings.is_smoke else "sd21"
    root = settings.work / "full-size" / size
    root.mkdir(parents=True, exist_ok=True)
    base, started = root / "base-model", root / "init-pair"
    pair, plain = (root / f"{name}-{side_px}" for name in ("pair", "plain"))
    bundles = {name: root / f"{name}-{side_px}-{sources_digest()}" for name in BUNDLES}
    peer = root / "openvino-genai"
    if not base.is_dir():
        settings.progress("making base-model", 0, 1)
        run_child(["-m", "bootpig_rt.benchmarks.pairs", size, str(base), "base-model"])
    rows = [
        _made(
            settings, "make pair", started, "`init-pair` from a Stable Diffusion folder",
            ["-m", "bootpig_rt", "init-pair", "--base-model", str(base), "-o", "{}", "--json"],
        )
    ]  # fmt: skip
    if rows[0].status:
        raise BootPIGError(rows[0].status)
    for folder, is_shared in ((plain, True), (pair, False)):
        if not folder.is_dir():
            _resized(started, folder, side_px, is_shared=is_shared)
    for name, folder in bundles.items():
        if f"make {name}" in wanted:
            rows.append(_bundle(settings, name, folder, pair, side_px))
    if "make peer" in wanted:
        words = ["-m", "bootpig_rt.benchmarks.full_size.genai", str(base), "{}"]
        rows.append(_made(settings, "make peer", peer, "the base for OpenVINO GenAI", words))
    return Folders(base, plain, pair, bundles, peer, tuple(rows))


def _bundle(settings: Settings, name: str, folder: Path, pair: Path, side_px: int) -> Row:
    """Build one of `BUNDLES`; those of other code are removed, for nobody may measure them."""
    stem = f"{name}-{side_px}-"
    for old in (*folder.parent.glob(f"{stem}*"), *folder.parent.glob(f".{stem}*")):
        if old.is_dir() and folder.name not in old.name:
            shutil.rmtree(old)
    words = BUNDLES[name]
    label = f"`build-engine {' '.join(words)}`"
    try:
        if "openvino" in words:
            check_openvino()
        if "int8" in words:
            check_int8()
    except Unavailable as error:
        return Row(f"make {name}", label, GROUP, status=why_not(error))
    # The parity gate runs at the smallest size: attention over 512 px, written out, is large.
    sides = (side_px,) if side_px <= 256 else (256, side_px, side_px)
    command = ["-m", "bootpig_rt", "build-engine", "--pair", str(pair), *words, "-o", "{}"]
    command += ["--max-batch", "1", "--max-references", "1", "--quiet"]
    command += ["--resolution", ":".join(map(str, sides))]
    limit_s = _INT8_S if "int8" in words else None
    return _made(settings, f"make {name}", folder, label, command, limit_s=limit_s)


def _made(
    settings: Settings,
    name: str,
    folder: Path,
    label: str,
    words: list[str],
    *,
    limit_s: float | None = None,
) -> Row:
    """Run a command that makes a folder, whose path stands for {}; once."""
    mark = folder.with_name(f"{folder.name}.{_MARK}")
    if not (mark.is_file() and folder.is_dir()):
        settings.progress(f"making {folder.name}", 0, 1)
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
        try:
            run = run_child(
                [str(folder) if word == "{}" else word for word in words], timeout_s=limit_s
            )
        except BootPIGError as error:
            return Row(name, label, GROUP, status=status_of(error))
        told = {"wall_ms": run.wall_ms, "peak_bytes": run.peak_bytes, "own_bytes": run.own_bytes}
        atomic_write_text(mark, json.dumps(told))
    told = json.loads(mark.read_text(encoding="utf-8"))
    stored = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Row(name, label, GROUP, (told["wall_ms"],)).with_values(
        peak_bytes=told["peak_bytes"], own_bytes=told.get("own_bytes"), bundle_bytes=float(stored)
    )


def status_of(error: BootPIGError) -> str:
    """As `why_not`, of a process that failed: what it wrote last."""
    said = str(error)
    ended = re.match(r"`.*` ended with code (-?\d+):? ?(.*)", said)
    if ended is not None:
        code, said = int(ended[1]), ended[2]
        if code == -signal.SIGKILL:
            said = "the system ended its process, as it does where memory does not suffice"
        elif code < 0:
            said = f"its process was ended by signal {-code}"
    is_missing = re.search(r"\b(Backend)?Unavailable: |holds no int8", said) is not None
    return f"{'not available' if is_missing else 'failed'}: {said[:200]}"


def _resized(started: Path, pair: Path, side_px: int, *, is_shared: bool) -> None:
    """The pair of `init-pair` at a size; its Reference U-Net apart, as training leaves it."""
    part = pair.with_name(f"{pair.name}-part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(started, part, copy_function=os.link)
    if not is_shared:
        shutil.copytree(part / "base_unet", part / "ref_unet", copy_function=os.link)
    config = json.loads((part / "pair.json").read_text(encoding="utf-8"))
    config |= {"shared_unet": is_shared, "sample_size_px": side_px, "default_solver": "unipc"}
    atomic_write_text(part / "pair.json", json.dumps(config, indent=1))
    (part / INDEX_FILE).unlink(
        missing_ok=True
    )  # of the pair that was started from, whose U-Net is shared
    part.rename(pair)
