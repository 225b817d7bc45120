"""The held-out lists, and the sample subjects."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from PIL import Image

from bootpig_rt.training.emoji import load_drawings, load_sources
from bootpig_rt.training.scenes import SCENES
from bootpig_rt.training.splits import Splits, load_splits

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
    splits = Counter(load_splits().split_of(e["concept"], e["style"]) for e in entries)
    assert splits == Counter({"held_out_concept": 3, "held_out_identity": 3})
    for entry in entries:
        assert f"| `{entry['file']}` | {entry['style']} | {entry['author']} |" in attribution
        assert entry["reference_prompt"].endswith(entry["noun"])
        with Image.open(folder / entry["file"]) as image:
            assert image.mode == "RGBA"
            assert image.size == (256, 256)
            box = image.getchannel("A").getbbox()
        assert box is not None
        assert max(box[2] - box[0], box[3] - box[1]) in (234, 235, 236)
