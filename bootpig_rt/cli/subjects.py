"""`bootpig-rt subjects ls|show|rm`: what a store of subjects holds.

`ls` and `rm` read the headers of files; `show` checks one file in full.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bootpig_rt.errors import CheckpointError, ParameterError

if TYPE_CHECKING:
    from bootpig_rt.storage.folder import StoreFolder

NAME = "subjects"
HELP = "list, show and remove the subjects of a store"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("action", choices=("ls", "show", "rm"), help="what to do")
    parser.add_argument("name", nargs="?", help="of a subject; for show also a file")
    parser.add_argument(
        "--store", metavar="FOLDER", help="the store; default: $BOOTPIG_RT_STORE, if it is set"
    )
    parser.add_argument("--preview", metavar="FILE", help="with show: write the preview, a PNG")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """List, show or remove."""
    if args.action != "ls" and args.name is None:
        raise ParameterError(f"`subjects {args.action}` needs the name of a subject")
    if args.action == "ls":
        return _list(_folder(args), is_json=args.json)
    if args.action == "show":
        return _show(args)
    freed = _folder(args).remove_subject(args.name)
    print(json.dumps({"freed_bytes": freed}) if args.json else f"{freed} bytes freed")
    return 0


def _folder(args: argparse.Namespace) -> StoreFolder:
    from bootpig_rt.storage.folder import ENVIRONMENT, StoreFolder, default_folder

    path = Path(args.store) if args.store is not None else default_folder()
    if path is None:
        raise ParameterError(f"no store; give --store FOLDER or set {ENVIRONMENT}")
    if not path.is_dir():
        raise ParameterError(f"no store at {str(path)!r}; encode-subject --store makes one")
    return StoreFolder(path)


def _list(folder: StoreFolder, *, is_json: bool) -> int:
    entries: list[dict[str, Any]] = []
    for name in folder.subject_names():
        try:
            entries.append({"name": name, **folder.subject_facts(name).to_dict()})
        except CheckpointError as error:  # one bad file does not hide the others
            entries.append({"name": name, "error": str(error)})
    if is_json:
        print(json.dumps({"subjects": entries, "table_bytes": folder.size_bytes()}, indent=2))
        return 0
    for entry in entries:
        what = entry.get("error") or (
            f"{entry['num_references']} references, {entry['form']}, {entry['reference_prompt']!r}"
        )
        print(f"{entry['name']}: {what}")
    print(f"{len(entries)} subjects, {folder.size_bytes()} bytes of tables")
    return 0


def _show(args: argparse.Namespace) -> int:
    from bootpig_rt.images.picture import save_png
    from bootpig_rt.reference.subject import Subject
    from bootpig_rt.reference.subject_file import MAX_FILE_BYTES, read_facts

    is_file = Path(args.name).is_file()
    path = Path(args.name) if is_file else _folder(args).found_subject(args.name)
    subject = Subject.load(path)  # checks the whole file, not just the header
    facts = read_facts(path, max_bytes=MAX_FILE_BYTES).to_dict()
    if args.preview is not None:
        images = subject.reference_images()
        if not images:
            raise ParameterError("the subject has no preview")
        made_from = {"subject": subject.fingerprint}
        save_png(images[0], Path(args.preview), made_from, is_generated=False)
    if args.json:
        print(json.dumps(facts, indent=2))
        return 0
    for name, value in facts.items():  # the file may be anybody's
        is_plain = isinstance(value, str) and value.isprintable()
        print(f"{name}: {value if is_plain else repr(value)}")
    return 0
