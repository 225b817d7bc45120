"""Joining icon sets by concept."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from bootpig_rt.errors import StorageError
from bootpig_rt.training.emoji import (
    ConceptRules,
    Drawing,
    IconSet,
    join_concepts,
    load_sources,
    read_icon_set,
)

ROOT = Path(__file__).parents[2]
RULES = ConceptRules(("Food & Drink",), frozenset({"sign"}), {}, {"red-apple": "apple"})


def icon_set(
    style: str,
    icons: list[str],
    *,
    aliases: dict[str, str] | None = None,
    chars: dict[str, str] | None = None,
    categories: dict[str, list[str]] | None = None,
) -> IconSet:
    return IconSet(
        style=style,
        icons=dict.fromkeys(icons, "<path/>"),
        boxes=dict.fromkeys(icons, (0.0, 0.0, 32.0, 32.0)),
        aliases=aliases or {},
        icon_of_char=chars or {},
        categories=categories or {"Food & Drink": icons},
    )


def found(drawings: list[Drawing]) -> dict[tuple[str, str], str]:
    return {(d.concept, d.style): d.icon for d in drawings}


def test_a_concept_is_found_by_code_point_alias_dashless_name_and_face() -> None:
    noto = icon_set("noto", ["hot-dog", "bear"], chars={"1f32d": "hot-dog", "1f43b": "bear"})
    by_char = icon_set("char", ["sausage-bun"], chars={"1f32d": "sausage-bun"})
    by_alias = icon_set("alias", ["sausage-bun", "other"], aliases={"hot-dog": "other"})
    squeezed = icon_set("squeezed", ["hotdog"])
    face = icon_set("face", ["bear-face"])
    joined = found(join_concepts([noto, by_char, by_alias, squeezed, face], RULES, min_styles=2))
    assert joined == {
        ("hot-dog", "noto"): "hot-dog",
        ("hot-dog", "char"): "sausage-bun",
        ("hot-dog", "alias"): "other",
        ("hot-dog", "squeezed"): "hotdog",
        ("bear", "noto"): "bear",
        ("bear", "face"): "bear-face",
    }


def test_rules_override_a_match_and_can_deny_one() -> None:
    noto = icon_set("noto", ["cat", "dog"])
    other = icon_set("other", ["cat", "catside", "dog"])
    rules = ConceptRules(
        ("Food & Drink",), frozenset(), {"other": {"cat": "catside", "dog": ""}}, {}
    )
    joined = found(join_concepts([noto, other], rules, min_styles=1))
    assert joined[("cat", "other")] == "catside"
    assert ("dog", "other") not in joined


def test_excluded_concepts_other_categories_and_rare_concepts_are_left_out() -> None:
    categories = {"Food & Drink": ["pie", "sign", "rare"], "Flags": ["flag"]}
    noto = icon_set("noto", ["pie", "sign", "rare", "flag"], categories=categories)
    other = icon_set("other", ["pie", "sign", "flag"])
    assert {d.concept for d in join_concepts([noto, other], RULES, min_styles=2)} == {"pie"}


def test_an_icon_is_never_given_to_two_concepts() -> None:
    noto = icon_set("noto", ["bear", "bear-face"])
    other = icon_set("other", ["bear-face"])
    joined = found(join_concepts([noto, other], RULES, min_styles=1))
    assert joined[("bear-face", "other")] == "bear-face"
    assert ("bear", "other") not in joined


def test_the_noun_is_the_name_with_spaces_unless_the_rules_say_otherwise() -> None:
    drawings = join_concepts([icon_set("noto", ["hot-dog", "red-apple"])], RULES, min_styles=1)
    assert {d.concept: d.noun for d in drawings} == {"hot-dog": "hot dog", "red-apple": "apple"}


def test_the_join_needs_the_naming_style() -> None:
    with pytest.raises(StorageError, match="noto"):
        join_concepts([icon_set("other", ["pie"])], RULES)


def test_a_set_is_read_with_its_boxes_and_without_mirrored_aliases(tmp_path: Path) -> None:
    icons_json = {
        "icons": {"pie": {"body": "<g/>"}, "wide": {"body": "<g/>", "width": 48}},
        "aliases": {"tart": {"parent": "pie"}, "turned": {"parent": "pie", "rotate": 1}},
        "width": 32,
        "height": 32,
    }
    files = {
        "icons.json": icons_json,
        "metadata.json": {"categories": {"Food & Drink": ["pie"]}},
        "chars.json": {"1f967-fe0f": "pie"},
        "index.js": "not read",
    }
    (tmp_path / "package").mkdir()
    for name, content in files.items():
        (tmp_path / "package" / name).write_text(json.dumps(content))
    with tarfile.open(tmp_path / "noto.tgz", "w:gz") as tar:
        tar.add(tmp_path / "package", "package")
    icons = read_icon_set(tmp_path / "noto.tgz", "noto")
    assert icons.find("tart") == "pie"
    assert icons.find("turned") is None
    assert icons.icon_of_char == {"1f967": "pie"}
    assert 'viewBox="0 0 48 32"' in icons.svg("wide")


def test_the_pinned_sources_are_complete_and_attributed() -> None:
    sources = load_sources()
    assert len({source.style for source in sources}) == len(sources) == 6
    assert not {"openmoji", "emojione-v1"} & {source.style for source in sources}
    text = (ROOT / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for source in sources:
        assert len(bytes.fromhex(source.sha256)) == 32
        assert f"`{source.package}` {source.version}" in text
        assert source.licence in text
        assert source.licence_url in text
        assert source.author in text
