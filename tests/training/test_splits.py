"""The held-out lists, how they are chosen, and the sample subjects."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bootpig_rt.errors import StorageError
from bootpig_rt.training.emoji import (
    Drawing,
    load_rules,
    load_sources,
)
from bootpig_rt.training.raster import Pixels
from bootpig_rt.training.scenes import SCENES
from bootpig_rt.training.splits import (
    Splits,
    choose_combinations,
    choose_held_out,
    load_splits,
)

ROOT = Path(__file__).parents[2]


def test_the_held_out_lists_are_disjoint_and_name_known_things() -> None:
    splits, rules = load_splits(), load_rules()
    styles = {source.style for source in load_sources()}
    assert len(splits.concepts) == 40
    assert len(splits.identities) == 120
    assert len({concept for concept, _ in splits.identities}) == 120
    assert not splits.concepts & {concept for concept, _ in splits.identities}
    assert {style for _, style in splits.identities} == styles
    assert not splits.concepts & {concept for concept, _ in splits.combinations}
    assert {scene for _, scene in splits.combinations} == set(SCENES)
    held_out = splits.concepts | {concept for concept, _ in splits.identities}
    assert not held_out & (rules.exclude | rules.never_held_out)


def test_every_identity_is_in_one_split() -> None:
    splits = Splits(frozenset({"frog"}), frozenset({("dog", "noto")}), frozenset())
    assert splits.split_of("frog", "noto") == "held_out_concept"
    assert splits.split_of("dog", "noto") == "held_out_identity"
    assert splits.split_of("dog", "twemoji") == "train"


def test_held_out_scenes_are_gathered_for_each_concept() -> None:
    pairs = frozenset({("dog", "beach"), ("dog", "city"), ("cat", "beach")})
    scenes = Splits(frozenset(), frozenset(), pairs).held_out_scenes()
    assert scenes == {"dog": frozenset({"beach", "city"}), "cat": frozenset({"beach"})}


@pytest.fixture
def world() -> tuple[list[Drawing], Pixels]:
    """Thirty concepts in five clearly different styles; the last two look alike in each style."""
    rng = np.random.default_rng(0)
    drawings: list[Drawing] = []
    pictures: list[Pixels] = []
    for index in range(30):
        for style in "abcde":
            category = "Food & Drink" if index % 2 else "Objects"
            drawings.append(Drawing(f"thing{index}", style, "", "", category))
            if index == 29:
                pictures.append(pictures[-5])
                continue
            blocks = rng.integers(0, 256, (6, 6, 4), dtype=np.uint8)
            blocks[..., 3] = 255
            pictures.append(blocks.repeat(16, axis=0).repeat(16, axis=1))
    return drawings, np.stack(pictures)


def test_the_choice_is_the_same_for_the_same_seed_and_another_for_another(
    world: tuple[list[Drawing], Pixels],
) -> None:
    def choose(seed: int) -> tuple[list[str], list[tuple[str, str]]]:
        return choose_held_out(*world, seed=seed, num_concepts=6, num_identities=12)

    assert choose(1) == choose(1)
    assert choose(1) != choose(2)


def test_chosen_identities_are_spread_disjoint_and_unlike_their_neighbours(
    world: tuple[list[Drawing], Pixels],
) -> None:
    concepts, identities = choose_held_out(
        *world, num_concepts=6, num_identities=10, unfit=["thing3"]
    )
    assert len(concepts) == 6
    assert sum(int(concept[5:]) % 2 for concept in concepts) == 3
    assert Counter(style for _, style in identities) == Counter(dict.fromkeys("abcde", 2))
    named = concepts + [concept for concept, _ in identities]
    assert len(set(named)) == 16
    assert not {"thing3", "thing28", "thing29"} & set(named)


def test_concepts_with_few_styles_or_a_shared_word_are_not_held_out(
    make_world: Callable[[list[str], int], tuple[list[Drawing], Pixels]],
) -> None:
    few = make_world(["cup", "hat"], 4)
    assert choose_held_out(*few) == ([], [])
    concepts, _ = choose_held_out(*make_world(["cup", "red-hat", "hat"], 5), num_concepts=3)
    assert concepts == ["cup"]


@pytest.fixture
def make_world() -> Callable[[list[str], int], tuple[list[Drawing], Pixels]]:
    def make(names: list[str], num_styles: int) -> tuple[list[Drawing], Pixels]:
        rng = np.random.default_rng(1)
        drawings = [
            Drawing(name, style, "", "", "Objects")
            for name in names
            for style in "abcdef"[:num_styles]
        ]
        blocks = rng.integers(0, 256, (len(drawings), 6, 6, 4), dtype=np.uint8)
        blocks[..., 3] = 255
        return drawings, blocks.repeat(16, axis=1).repeat(16, axis=2)

    return make


def test_held_out_combinations_are_unique_and_even_over_scenes() -> None:
    concepts, scenes = [f"thing{i}" for i in range(20)], ["beach", "city", "space", "snow"]
    pairs = choose_combinations(concepts, scenes, seed=3, num_pairs=30)
    assert pairs == choose_combinations(reversed(concepts), reversed(scenes), seed=3, num_pairs=30)
    assert len(set(pairs)) == 30
    per_concept = Counter(concept for concept, _ in pairs)
    per_scene = Counter(scene for _, scene in pairs)
    assert set(per_concept.values()) == {1, 2}
    assert max(per_scene.values()) - min(per_scene.values()) <= 2


def test_a_damaged_list_is_named(tmp_path: Path) -> None:
    (tmp_path / "held_out_concepts.json").write_text("{")
    with pytest.raises(StorageError, match=r"held_out_concepts\.json"):
        load_splits(tmp_path)


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
