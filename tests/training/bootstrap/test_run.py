"""A whole run: shards that a trainer reads, resumed, refused, locked, and looked at."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bootpig_rt.cli.main import main
from bootpig_rt.errors import ConfigError, InputError, StorageError
from bootpig_rt.training.bootstrap import ask, pictures
from bootpig_rt.training.bootstrap.assemble import first_of_their_kind
from bootpig_rt.training.bootstrap.run import bootstrap, describe
from bootpig_rt.training.bootstrap.stage import Item, Outcome, View
from bootpig_rt.training.compose import REFERENCE_LENGTH
from bootpig_rt.training.folder_claim import LOCK
from bootpig_rt.training.samples import Samples
from bootpig_rt.training.shards import read_manifest, read_samples

SIZE_PX = 64
DRAWN: list[int] = []
COPY, TOUCHING, BUSY = 3, 5, 7
"""Items whose picture is that of another, touches the border, has no plain background."""


class Discs:
    """A source of pictures whose subject is known: discs, of which a few are as named above."""

    name = "pictures"
    batch_size = 3

    def __init__(self, draw_disc: Any, fail_at: int = -1) -> None:
        self._draw, self._fail_at = draw_disc, fail_at

    def __call__(self, items: Sequence[Item]) -> list[tuple[Outcome, ...]]:
        found: list[tuple[Outcome, ...]] = []
        for item in items:
            if item.index == self._fail_at:
                raise KeyboardInterrupt
            DRAWN.append(item.index)
            views = tuple(View(self._picture(item.index, half)) for half in range(1 + item.is_pair))
            found.append((replace(item, views=views, prompt=item.caption),))
        return found

    def _picture(self, index: int, half: int) -> Any:
        rng = np.random.default_rng((0 if index == COPY else index, half))
        if index == BUSY:
            return rng.integers(0, 256, (SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
        centre = (0.2, 0.5) if index == TOUCHING else tuple(rng.uniform(0.38, 0.62, 2))
        colour = tuple(int(c) for c in rng.integers(0, 180, 3))
        radius = float(rng.uniform(0.2, 0.3))
        return self._draw(centre=centre, radius=radius, colour=colour, seed=int(rng.integers(99)))[
            0
        ]


@pytest.fixture(autouse=True)
def fail_at(monkeypatch: pytest.MonkeyPatch, draw_disc: Any) -> list[int]:
    """Discs in place of a model; the item in this list is where Ctrl-C comes.

    A question is answered with forty captions in place of a thousand, of which few are used.
    """
    at: list[int] = []
    DRAWN.clear()
    monkeypatch.setattr(ask, "GRAMMAR_PER_QUESTION", 40)
    monkeypatch.setattr(
        pictures, "make_pictures", lambda config: Discs(draw_disc, at[0] if at else -1)
    )
    return at


@pytest.fixture
def config(bootstrap_config: Any) -> Any:
    return bootstrap_config(captions={"source": "world", "count": 12}, shard_size=5)


def tree(folder: Path) -> dict[str, bytes]:
    """The shards and their manifest."""
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.tar"))} | {
        "manifest.json": (folder / "manifest.json").read_bytes()
    }


REJECTS = {
    "filters.border": 1,
    "masks.no_plain_background": 1,
    "shards.near_duplicate": 1,
}


def test_a_run_makes_shards_that_a_trainer_reads(config: Any) -> None:
    outcome = bootstrap(config)
    folder = config.output_folder
    assert outcome["samples"] == 9
    assert (outcome["captions"], outcome["pictures"], outcome["shards"]) == (12, 12, 2)
    rejects = {k: n for k, n in outcome["rejects"].items() if not k.startswith("captions")}
    assert rejects == REJECTS
    samples = list(read_samples(folder))
    assert [sample.index for sample in samples] == list(range(9))
    kept = [k for k in range(12) if k not in (COPY, TOUCHING, BUSY)]
    assert [sample.record["item"] for sample in samples] == kept
    for sample in samples:
        assert sample.target.shape == (SIZE_PX, SIZE_PX, 3)
        assert set(np.unique(sample.mask)) == {0, 255}
        assert sample.caption == f"{sample.reference_prompt}, " + (
            f"{sample.record['position']} {sample.record['scene']}"
        )
        assert sample.reference_prompt.endswith(sample.record["noun"])
        (reference,) = sample.references
        # The subject of the reference has the colour of the target's.
        inside = sample.target[sample.mask > 0].mean(axis=0)
        assert np.abs(reference[32, 32].astype(float) - inside).max() < 12
        assert (reference[0] == 255).all()
        assert 0.05 < sample.record["scores"]["area"] < 0.7
    loaded = Samples(folder, folder.with_name("index"))
    assert loaded.sizes_px.tolist() == [[SIZE_PX, SIZE_PX]] * 9


def test_the_manifest_says_what_the_samples_are_and_where_they_come_from(
    bootstrap_config: Any, tiny_pair_folder: Path
) -> None:
    settings = {"source": "pair", "model": str(tiny_pair_folder), "batch_size": 3}
    config = bootstrap_config(captions={"source": "world", "count": 6}, pictures=settings)
    bootstrap(config)
    manifest = read_manifest(config.output_folder)
    assert manifest["settings"]["captions"]["count"] == 6
    assert manifest["settings"]["filters"]["border_px"] == 25
    source = manifest["sources"]["pictures.model"]
    assert source["name"] == str(tiny_pair_folder)
    assert source["is"].startswith("sha256:")
    assert manifest["settings"]["pictures"]["model"] == source["is"]
    assert not {"output", "work", "device"} & set(manifest["settings"])
    assert manifest["samples"] == sum(shard["samples"] for shard in manifest["shards"])


def test_a_second_run_draws_nothing_and_a_lost_shard_is_written_again(config: Any) -> None:
    bootstrap(config)
    before = tree(config.output_folder)
    assert sorted(DRAWN) == list(range(12))
    (config.output_folder / "shard-00001.tar").unlink()
    bootstrap(config)
    assert len(DRAWN) == 12
    assert tree(config.output_folder) == before


def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(
    config: Any, bootstrap_config: Any, fail_at: list[int], tmp_path: Path
) -> None:
    fail_at.append(9)
    with pytest.raises(KeyboardInterrupt):
        bootstrap(config)
    assert not (config.output_folder / "manifest.json").exists()
    fail_at.clear()
    DRAWN.clear()
    bootstrap(config)
    assert sorted(DRAWN) == [8, 9, 10, 11]
    other = bootstrap_config(
        captions={"source": "world", "count": 12}, shard_size=5, output=str(tmp_path / "other")
    )
    bootstrap(other)
    assert tree(other.output_folder) == tree(config.output_folder)


def test_batches_and_workers_change_no_sample(config: Any, tmp_path: Path) -> None:
    from msgspec import structs

    bootstrap(config)
    other = structs.replace(
        config,
        output=str(tmp_path / "other"),
        masks=structs.replace(config.masks, batch_size=1),
        filters=structs.replace(config.filters, batch_size=5),
    )
    bootstrap(other)
    assert tree(other.output_folder) == tree(config.output_folder)


def test_other_limits_draw_nothing_again_where_the_work_is_kept(
    config: Any, tmp_path: Path
) -> None:
    from msgspec import structs

    bootstrap(config)
    changed = structs.replace(config, filters=structs.replace(config.filters, border_px=0))
    with pytest.raises(ConfigError, match=r"other settings; choose another output, with work=.*"):
        bootstrap(changed)
    other = structs.replace(changed, output=str(tmp_path / "two"), work=str(config.work_folder))
    outcome = bootstrap(other)
    assert outcome["samples"] == 10
    assert len(DRAWN) == 12


def test_more_captions_begin_with_the_same_ones(config: Any, tmp_path: Path) -> None:
    from msgspec import structs

    bootstrap(config)
    more = structs.replace(
        config,
        output=str(tmp_path / "two"),
        work=str(config.work_folder),
        captions=structs.replace(config.captions, count=14),
    )
    DRAWN.clear()
    assert bootstrap(more)["pictures"] == 14
    assert sorted(DRAWN) == [12, 13]


def test_another_model_in_the_same_folder_draws_anew(
    bootstrap_config: Any, tiny_pair_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_pair_folder, folder)
    config = bootstrap_config(pictures={"source": "pair", "model": str(folder)})
    bootstrap(config)
    DRAWN.clear()
    moved = tmp_path / "moved"
    folder.rename(moved)
    from msgspec import structs

    bootstrap(structs.replace(config, pictures=structs.replace(config.pictures, model=str(moved))))
    assert DRAWN == []
    (moved / "pair.json").write_text((moved / "pair.json").read_text() + "\n")
    other = structs.replace(config, output=str(tmp_path / "b"), work=str(config.work_folder))
    other = structs.replace(other, pictures=structs.replace(config.pictures, model=str(moved)))
    bootstrap(other)
    assert len(DRAWN) == 8


def test_pairs_have_the_other_half_as_reference(bootstrap_config: Any) -> None:
    pairs = {"share": 1.0, "encoder": "phash", "floor": 0.0, "ceiling": 0.999}
    config = bootstrap_config(captions={"source": "world", "count": 12}, pairs=pairs)
    outcome = bootstrap(config)
    samples = list(read_samples(config.output_folder))
    assert samples
    assert outcome["rejects"].get("triplets.other_subject", 0) + len(samples) <= 12
    for sample in samples:
        assert sample.record["is_pair"]
        assert 0.0 <= sample.record["scores"]["similarity"] <= 0.999
        inside = sample.target[sample.mask > 0].mean(axis=0)
        assert np.abs(sample.references[0][32, 32].astype(float) - inside).max() > 12


def test_the_number_of_samples_may_be_bounded(config: Any) -> None:
    from msgspec import structs

    outcome = bootstrap(structs.replace(config, max_samples=2))
    assert outcome["samples"] == 2
    assert outcome["rejects"]["shards.over_max_samples"] == 7


def test_a_data_set_of_one_sample_is_one(bootstrap_config: Any) -> None:
    config = bootstrap_config(captions={"source": "world", "count": 1})
    assert bootstrap(config)["samples"] == 1
    folder = config.output_folder
    assert len(Samples(folder, folder.with_name("index"))) == 1


def test_people_see_accepted_samples_and_rejects_by_reason(config: Any) -> None:
    outcome = bootstrap(config)
    names = {Path(path).name for path in outcome["sheets"]}
    assert names == {"accepted.png", "masks-no_plain_background.png", "filters-border.png"}
    for path in outcome["sheets"]:
        image = Image.open(path)
        assert min(image.size) >= 160
        some = image.convert("RGB").resize((64, 64), Image.Resampling.NEAREST)
        assert len(some.getcolors(64 * 64) or []) > 10


def test_a_stage_that_rejects_everything_is_an_error_with_sheets_to_look_at(
    bootstrap_config: Any,
) -> None:
    config = bootstrap_config(filters={"min_area": 0.6})
    with pytest.raises(InputError, match=r"'filters' rejected every item \(area .*sheets.*change"):
        bootstrap(config)
    assert (config.output_folder / "sheets" / "filters-area.png").exists()
    assert not (config.output_folder / "manifest.json").exists()


def test_a_full_disk_is_named_and_costs_nothing_that_was_made(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tarfile.TarFile.addfile

    def addfile(tar: Any, info: Any, stream: Any) -> None:
        if info.name.endswith("mask0.png") and info.name.startswith("0000000006"):
            raise OSError(errno.ENOSPC, "No space left on device")
        inner(tar, info, stream)

    monkeypatch.setattr(tarfile.TarFile, "addfile", addfile)
    with pytest.raises(StorageError, match="cannot write .*masks.*free some space"):
        bootstrap(config)
    monkeypatch.undo()
    # `undo` takes the discs away too: nothing is drawn again.
    assert bootstrap(config)["samples"] == 9
    assert len(DRAWN) == 12


def test_two_runs_in_one_output_are_one_too_many(config: Any) -> None:
    config.output_folder.mkdir()
    code = "import sys; from filelock import FileLock; lock = FileLock(sys.argv[1]); "
    code += "lock.acquire(); print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(config.output_folder / LOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StorageError, match="another run is writing .*; wait for it"):
            bootstrap(config)
        holder.kill()
    assert bootstrap(config)["samples"] == 9  # the lock went with its process


def test_an_output_that_is_a_file_is_named(bootstrap_config: Any, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(StorageError, match="cannot write in .*out"):
        bootstrap(bootstrap_config())


def test_what_would_be_done_is_told_and_nothing_is_made(config: Any) -> None:
    told = describe(config)
    assert not config.output_folder.exists()
    assert (told["captions"], told["pictures"], told["parts"]) == (12, 12, 3)
    assert [stage["parts_there"] for stage in told["stages"]] == [0] * 5
    bootstrap(config)
    assert [stage["parts_there"] for stage in describe(config)["stages"]] == [1, 3, 3, 3, 3]


def test_near_duplicates_leave_the_first_of_their_kind() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2500, 32))
    rows[100], rows[1500], rows[2400] = rows[7], rows[7], rows[2300]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    kept = first_of_their_kind(rows.astype(np.float32), 0.95)
    assert np.flatnonzero(~kept).tolist() == [100, 1500, 2400]
    # What is like a duplicate alone stays.
    chain = np.array([[1, 0], [0.96, 0.28], [0.8432, 0.5376]], np.float32)
    assert first_of_their_kind(chain, 0.95).tolist() == [True, False, True]


# --- the command


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "bootstrap.toml"
    path.write_text(
        f'output = "{tmp_path / "out"}"\nsize_px = 64\npart_size = 4\n'
        '[captions]\nsource = "world"\ncount = 6\n[pictures]\nsource = "pair"\n'
        '[masks]\nsource = "plain"\n'
    )
    return path


def test_the_command_tells_what_it_made(
    toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bootstrap", str(toml), "filters.border_px=0", "--device", "cpu", "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["samples"] == 5
    assert outcome["folder"] == str(tmp_path / "out")
    assert main(["bootstrap", str(toml), "filters.border_px=0"]) == 0
    said = capsys.readouterr().out
    assert "5 samples of 6 pictures and 6 captions in" in said
    assert "near_duplicate 1" in said
    assert "look at" in said


def test_the_command_plans_without_making(
    toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bootstrap", str(toml), "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["config"]["captions"]["count"] == 6
    assert [stage["name"] for stage in told["stages"]] == [
        "captions", "pictures", "masks", "filters", "triplets"
    ]  # fmt: skip
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["captions.source=llm", "captions.model=none"],
        ["pictures.source=diffusers", "pictures.model=none"],
        ["masks.source=sam", "masks.model=none", "masks.finder=centre"],
        ["filters.clip=none"],
        ["filters.duplicates=none-such"],
        ["pairs.share=0.5", "pairs.encoder=none"],
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_model_that_is_missing_is_named_before_anything_is_asked(
    toml: Path,
    tmp_path: Path,
    words: list[str],
    dry: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["bootstrap", str(toml), *words, *dry]) == 2
    assert "none" in (said := capsys.readouterr().err)
    assert "is no folder, expected one in the hub's layout" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["captions.source=llm"], "[captions] model is empty, expected a value (a folder)"),
        (["captions.source=endpoint"], "[captions] url is empty"),
        (["captions.source=file"], "[captions] file is empty"),
        (["pictures.source=diffusers"], "[pictures] model is empty, expected a value (a diff"),
        (["masks.source=sam", "masks.model=x"], "[masks] finder_model is empty"),
        (["masks.source=onnx"], "[masks] model is empty, expected a value (a .onnx file)"),
        (["captions.source=poet"], "Invalid enum value 'poet' - at `$.captions.source`"),
        (["size_px=4"], "at `$.size_px`"),
        (["colour=red"], "unknown field `colour`"),
        (["output=''"], "output is empty"),
        (["work=there", "output=there"], "work and output are both there"),
        (["--device", "gpu"], "device is 'gpu', expected auto, cpu or cuda:N"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(
    toml: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.undo()
    assert main(["bootstrap", str(toml), *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_the_config_of_the_repository_is_read(root: Path) -> None:
    from bootpig_rt.training.bootstrap.config import load_bootstrap_config

    config = load_bootstrap_config(root / "training" / "configs" / "bootstrap.toml", [])
    assert config.masks.finder == "grounding_dino"
    assert config.size_px == 512
    world = load_bootstrap_config(root / "training" / "configs" / "bootstrap-world.toml", [])
    assert world.triplets.fill == REFERENCE_LENGTH  # as in the samples of the small world
