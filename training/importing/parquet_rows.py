"""Parquet files: a picture with the same subject twice in each row, or a column for each part.

Layout `pairs` is that of Subjects200K: `image` (a struct with `bytes`) holds two square pictures
side by side, `description` their texts and the subject, `quality_assessment` marks from 0 to 5,
`collection` a name. Each row is two candidates: either picture is a target once. Layout `columns`
has a column for target, caption and whatever else is known, named by `roles`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bootpig_rt.errors import BackendUnavailable, ConfigError, InputError
from bootpig_rt.training.importing.candidate import (
    MAX_TEXT_CHARS,
    Candidate,
    Found,
    Half,
    Place,
    Refused,
    Role,
    SourceFiles,
    describe_files,
    subject_of,
)

Layout = Literal["pairs", "columns"]

QUALITIES = ("compositeStructure", "objectConsistency", "imageQuality")
PAIR_COLUMNS = ("image", "description")
BATCH_ROWS = 16

USUAL: dict[Role, tuple[str, ...]] = {
    "target": ("target", "target_image", "image"),
    "mask": ("mask", "target_mask"),
    "reference": ("references", "reference", "reference_image", "source_image", "condition"),
    "caption": ("caption", "text", "prompt", "target_prompt"),
    "subject": ("subject", "item", "class", "noun"),
}


@dataclass(frozen=True)
class PairRules:
    """Which rows of layout `pairs` are taken.

    Each mark of `quality_assessment` is at least `min_quality` (0 takes rows without marks);
    `collection` takes rows of that name only, "" all; `both_ways` makes two candidates of a row.
    """

    min_quality: int = 5
    collection: str = ""
    both_ways: bool = True


class ParquetSource:
    """Parquet files of a folder, or one file.

    Args:
        path: A folder with `*.parquet` at any depth, or a file.
        roles: Columns of layout `columns`; a dot leads into a struct.
        rules: Which rows of layout `pairs` are taken.

    Raises:
        BackendUnavailable: pyarrow is not installed.
        ConfigError: There is no parquet file, or it lacks columns; both say what there is.
        InputError: A file is damaged.
    """

    def __init__(
        self,
        path: Path,
        roles: Mapping[Role, str] | None = None,
        rules: PairRules | None = None,
    ) -> None:
        self.folder = path if path.is_dir() else path.parent
        self.files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        if not self.files or not self.files[0].is_file():
            raise ConfigError(f"{path} is no parquet file and holds none; check the path")
        self.roles, self.rules = dict(roles or {}), rules or PairRules()
        self._parquet = _pyarrow_parquet()
        self.layout, self.columns = self._look_at(self.files[0])

    def describe(self) -> SourceFiles:
        """The files; see `Source`."""
        rules = self.rules
        told = {"layout": str(self.layout)} | {str(k): v for k, v in self.columns.items()}
        if self.layout == "pairs":
            told |= {
                "min_quality": str(rules.min_quality),
                "collection": rules.collection,
                "both_ways": str(rules.both_ways),
            }
        return describe_files("parquet", self.folder, self.files, **told)

    def read(self, start: Place) -> Iterator[Found]:
        """Candidates from a place on, a few rows in memory at a time; see `Source`."""
        for file in range(start.file, len(self.files)):
            path = self.files[file]
            layout, columns = self._look_at(path)
            if (layout, columns) != (self.layout, self.columns):
                raise ConfigError(
                    f"{path} has other columns than {self.files[0]}; import them one by one, each "
                    "into a folder of its own"
                )
            each = self._of_pair if layout == "pairs" else self._of_columns
            at = start.number if file == start.file else 0
            a_row = 2 if layout == "pairs" and self.rules.both_ways else 1
            shown = path.relative_to(self.folder).as_posix()
            for row, values in self._rows(path, at // a_row):
                for which, found in enumerate(each(f"{shown}:{row}", values)):
                    number = row * a_row + which
                    if number >= at:
                        yield Found(found, Place(file, number + 1))

    def _rows(self, path: Path, first: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Rows from a number on; row groups before it are not read."""
        tops = {column.partition(".")[0] for column in self._wanted()}
        try:
            with self._parquet.ParquetFile(path) as file:
                there = set(file.schema_arrow.names)
                row, groups = 0, list[int]()
                for group in range(file.num_row_groups):
                    count = file.metadata.row_group(group).num_rows
                    if row + count <= first and not groups:
                        row += count
                    else:
                        groups.append(group)
                batches = file.iter_batches(
                    BATCH_ROWS, row_groups=groups, columns=sorted(tops & there)
                )
                for batch in batches if groups else ():
                    for values in batch.to_pylist():
                        if row >= first:
                            yield row, values
                        row += 1
        except (OSError, ValueError) as error:  # pyarrow's errors are of these
            raise _damaged(path, error) from error

    def _wanted(self) -> list[str]:
        if self.layout == "pairs":
            return [*PAIR_COLUMNS, "quality_assessment", "collection"]
        return list(self.columns.values())

    def _look_at(self, path: Path) -> tuple[Layout, dict[Role, str]]:
        """Layout of a file, and its columns by role."""
        try:
            schema = self._parquet.read_schema(path)
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from error
        names = list(_flat_names(schema))
        pair_texts = {"description.description_0", "description.description_1"}
        if not self.roles and {"image", *pair_texts} <= set(names):
            return "pairs", {}
        columns = {}
        for role, usual in USUAL.items():
            named = self.roles.get(role)
            found = next((name for name in ([named] if named else usual) if name in names), None)
            if found is None and (named or role in ("target", "caption")):
                raise ConfigError(
                    f"{path} has no column {named or ' or '.join(usual)!r} for the {role}; it has: "
                    f"{', '.join(names)}. Say which with --map {role}=COLUMN"
                )
            if found is not None:
                columns[role] = found
        return "columns", columns

    def _of_pair(self, name: str, row: dict[str, Any]) -> Iterator[Candidate | Refused]:
        halves: tuple[Half, ...] = ("left", "right") if self.rules.both_ways else ("left",)
        refused = self._refused(name, row)
        for which, half in enumerate(halves):
            if refused is not None:
                yield refused
                continue
            told = row["description"]
            texts = [str(told.get(f"description_{each}") or "").strip() for each in (0, 1)]
            if not texts[which]:
                yield Refused(name, "no_caption", f"description_{which} is empty")
                continue
            yield Candidate(
                f"{name}:{half}",
                row["image"]["bytes"],
                texts[which][:MAX_TEXT_CHARS],
                str(told.get("item") or "").strip() or subject_of(texts[which]),
                half=half,
                other_caption=texts[1 - which][:MAX_TEXT_CHARS],
            )

    def _refused(self, name: str, row: dict[str, Any]) -> Refused | None:
        """Why a row of layout `pairs` is not taken; None where it is."""
        rules = self.rules
        if rules.collection and row.get("collection") != rules.collection:
            return Refused(name, "other_collection", f"it is of {row.get('collection')}")
        marks = row.get("quality_assessment") or {}
        if rules.min_quality > 0:
            if any(not isinstance(marks.get(key), int | float) for key in QUALITIES):
                return Refused(name, "no_quality", "it has no marks")
            for key in QUALITIES:
                if marks[key] < rules.min_quality:
                    return Refused(name, "low_quality", f"{key} is {marks[key]}")
        told = row.get("description") or {}
        if not told or told.get("description_valid") is False:
            return Refused(name, "invalid_description", "the set itself says so")
        if not isinstance((row.get("image") or {}).get("bytes"), bytes):
            return Refused(name, "no_target", "image.bytes is empty")
        return None

    def _of_columns(self, name: str, row: dict[str, Any]) -> Iterator[Candidate | Refused]:
        target = _picture(_at(row, self.columns["target"]))
        caption = _at(row, self.columns["caption"])
        if target is None:
            yield Refused(name, "no_target", f"{self.columns['target']} holds no picture")
            return
        if not isinstance(caption, str) or not caption.strip():
            yield Refused(name, "no_caption", f"{self.columns['caption']} is empty")
            return
        listed = _at(row, self.columns.get("reference", ""))
        pictures = [_picture(one) for one in (listed if isinstance(listed, list) else [listed])]
        subject = _at(row, self.columns.get("subject", ""))
        caption = caption.strip()[:MAX_TEXT_CHARS]
        yield Candidate(
            name,
            target,
            caption,
            subject.strip() if isinstance(subject, str) else subject_of(caption),
            _picture(_at(row, self.columns.get("mask", ""))),
            tuple(one for one in pictures if one is not None),
        )


def _pyarrow_parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise BackendUnavailable(
            "parquet files need pyarrow, which is not installed; pip install 'bootpig-rt[import]'"
        ) from error
    return pyarrow.parquet


def _flat_names(fields: Any, before: str = "") -> Iterator[str]:
    """Names of columns, those inside of structs with dots."""
    for field in fields:
        name = before + field.name
        yield name
        if str(field.type).startswith("struct<"):
            yield from _flat_names(field.type, f"{name}.")


def _at(row: Any, path: str) -> Any:
    """A value of a row, by a column's name with dots; None where there is none."""
    if not path:
        return None
    for key in path.split("."):
        row = row.get(key) if isinstance(row, dict) else None
    return row


def _picture(value: Any) -> bytes | None:
    """Bytes of a picture: as they are, or in a struct as the hub's images."""
    if isinstance(value, dict):
        value = value.get("bytes")
    return value if isinstance(value, bytes) and value else None


def _damaged(path: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:200]
    return InputError(
        f"cannot read {path} ({reason}); copy it again, then run the same command again: it goes "
        "on where it stopped"
    )
