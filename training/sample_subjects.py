"""Makes the sample subjects that are shipped: held-out drawings as pictures with a list.

`python -m bootpig_rt.training.sample_subjects DATA OUTPUT` renders them from the icon sets that
`bootpig-rt fetch-data` unpacked into DATA. Half are drawings of concepts that training never shows,
half are styles that it never shows of a concept that it does.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from bootpig_rt.errors import ParameterError
from bootpig_rt.files.atomic import atomic_write_bytes, atomic_write_text
from bootpig_rt.training.captions import class_prompt
from bootpig_rt.training.emoji import join_concepts, load_rules, load_sources, read_icon_set
from bootpig_rt.training.raster import SPRITE_PX, SUBJECT_PX, draw_sprite
from bootpig_rt.training.splits import load_splits

SIDE_PX = 256
SAMPLES = (
    ("frog", "fluent-emoji-flat"),
    ("helicopter", "noto-v1"),
    ("wrapped-gift", "noto"),
    ("owl", "emojione"),
    ("backpack", "fxemoji"),
    ("pizza", "twemoji"),
)


def write_samples(data: Path, output: Path) -> list[dict[str, Any]]:
    """Render the samples and write their list.

    Args:
        data: Folder that `fetch-data` made, with its `icons`.
        output: Existing folder; gets a PNG for each sample and `subjects.json`.

    Returns:
        The entries of the list.

    Raises:
        ParameterError: A sample is not held out, or no icon set draws it.
        StorageError: An icon set is missing, or the folder cannot be written.
    """
    sources = {source.style: source for source in load_sources()}
    sets = {
        style: read_icon_set(data / "icons" / f"{style}-{source.sha256[:12]}", style)
        for style, source in sources.items()
    }
    drawings = {(d.concept, d.style): d for d in join_concepts(list(sets.values()), load_rules())}
    entries: list[dict[str, Any]] = []
    for concept, style in SAMPLES:
        drawing, split = drawings.get((concept, style)), load_splits().split_of(concept, style)
        if drawing is None or split == "train":
            raise ParameterError(
                f"({concept}, {style}) is not a held-out drawing; choose one from training/splits"
            )
        pixels = draw_sprite(
            sets[style].svg(drawing.icon),
            size_px=SIDE_PX,
            long_px=round(SIDE_PX * SUBJECT_PX / SPRITE_PX),
        )
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
        name = f"{drawing.noun.replace(' ', '_')}.png"
        atomic_write_bytes(output / name, buffer.getvalue())
        prompt, source = class_prompt(drawing.noun), sources[style]
        entries.append(
            {
                "file": name,
                "noun": drawing.noun,
                "reference_prompt": prompt,
                "prompt_class": prompt,
                "concept": concept,
                "style": style,
                "split": split,
                "author": source.author,
                "author_url": source.author_url,
                "licence": source.licence,
                "licence_url": source.licence_url,
            }
        )
    atomic_write_text(output / "subjects.json", json.dumps(entries, indent=1) + "\n")
    return entries


if __name__ == "__main__":
    write_samples(Path(sys.argv[1]), Path(sys.argv[2]))
