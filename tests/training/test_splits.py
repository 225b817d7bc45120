"""The held-out lists, and the sample subjects."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from PIL import Image

from bootpig_rt.training.emoji import load_drawings, load_sources
from bootpig_rt.training.scenes import SCENES
from bootpig_rt.training.splits import Splits, load_splits
from bootpig_rt.training.world3d.catalogue import load_catalogue

ROOT = Path(__file__).parents[2]


def test_the_held_out_lists_are_disjoint_and_name_known_things() -> None:
    splits = load_splits()
    styles = {source.style for source in load_sources()}
    drawings = load_drawings(sorted(styles))
    assert len(splits.concepts) == 40
    assert len(splits.identities) == 120
    assert len({concept for concept, _ in splits.identities}) == 120
    assert not splits.concepts & {concept for concept, _ in splits.identities}
    assert {style for _, style in splits.identities} == styles
    assert not splits.concepts & {concept for concept, _ in splits.combinations}
    assert {scene for _, scene in splits.combinations} == set(SCENES)
    assert splits.concepts <= {drawing.concept for drawing in drawings}
    assert splits.identities <= {(drawing.concept, drawing.style) for drawing in drawings}


def test_every_identity_is_in_one_split() -> None:
    splits = Splits(frozenset({"frog"}), frozenset({("dog", "noto")}), frozenset())
    assert splits.split_of("frog", "noto") == "held_out_concept"
    assert splits.split_of("dog", "noto") == "held_out_identity"
    assert splits.split_of("dog", "twemoji") == "train"


def test_held_out_scenes_are_gathered_for_each_concept() -> None:
    pairs = frozenset({("dog", "beach"), ("dog", "city"), ("cat", "beach")})
    scenes = Splits(frozenset(), frozenset(), pairs).held_out_scenes()
    assert scenes == {"dog": frozenset({"beach", "city"}), "cat": frozenset({"beach"})}


def test_the_sample_subjects_are_held_out_attributed_and_clear() -> None:
    folder = ROOT / "bootpig_rt" / "assets" / "subjects"
    entries = json.loads((folder / "subjects.json").read_text(encoding="utf-8"))
    attribution = (ROOT / "ATTRIBUTION.md").read_text(encoding="utf-8")
    drawings = [entry for entry in entries if "style" in entry]
    splits = Counter(load_splits().split_of(e["concept"], e["style"]) for e in drawings)
    assert splits == Counter({"held_out_concept": 3, "held_out_identity": 3})
    split_of = {model.key: model.split for model in load_catalogue()}
    models = [entry for entry in entries if "model" in entry]
    assert Counter(split_of[entry["model"]] for entry in models) == Counter(
        {"held_out_concept": 1, "held_out_identity": 3}
    )
    assert len(entries) == len(drawings) + len(models)
    for entry in entries:
        what = entry.get("style", "model")
        assert f"| `{entry['file']}` | {what} | {entry['author']} |" in attribution
        assert entry["reference_prompt"].endswith(entry["noun"])
        assert entry["split"] in ("held_out_concept", "held_out_identity")
        for name in (entry["file"], *entry.get("more_files", ())):
            with Image.open(folder / name) as image:
                assert image.mode == "RGBA"
                assert image.size == (256, 256)
                box = image.getchannel("A").getbbox()
            assert box is not None
            assert max(box[2] - box[0], box[3] - box[1]) in (234, 235, 236)
