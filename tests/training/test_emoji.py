"""The table of drawings, and the packages that they come from."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from bootpig_rt.errors import StorageError
from bootpig_rt.training.emoji import load_drawings, load_sources, read_svgs

ROOT = Path(__file__).parents[2]


def test_every_concept_is_drawn_in_five_styles_or_more_and_no_icon_twice_in_one() -> None:
    drawings = load_drawings([source.style for source in load_sources()])
    assert min(Counter(drawing.concept for drawing in drawings).values()) == 5
    icons = [(drawing.style, drawing.icon) for drawing in drawings]
    assert len(set(icons)) == len(icons)
    concepts = {drawing.concept: drawing for drawing in drawings}
    assert len(concepts) == 472
    assert concepts["hot-dog"].noun == "hot dog"
    assert concepts["automobile"].noun == "car"
    order = [(drawing.category, drawing.concept) for drawing in drawings]
    assert order == sorted(order)


def test_icons_are_read_as_documents_with_their_boxes(tmp_path: Path) -> None:
    icons = {
        "icons": {"pie": {"body": "<g/>"}, "wide": {"body": "<b/>", "width": 48, "top": -2}},
        "width": 32,
        "height": 32,
    }
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "icons.json").write_text(json.dumps(icons))
    (tmp_path / "package" / "index.js").write_text("not read")
    with tarfile.open(tmp_path / "noto.tgz", "w:gz") as tar:
        tar.add(tmp_path / "package", "package")
    wide, pie = read_svgs(tmp_path / "noto.tgz", ["wide", "pie"])
    assert 'width="48" height="32" viewBox="0 -2 48 32"><b/></svg>' in wide
    assert 'viewBox="0 0 32 32"><g/></svg>' in pie
    with pytest.raises(StorageError, match=r"lacks a drawing .*'tart'.*fetch-data"):
        read_svgs(tmp_path / "noto.tgz", ["tart"])


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
