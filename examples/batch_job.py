"""A batch job: a list of requests, a line of JSON each, to a folder of pictures.

    python examples/batch_job.py jobs.jsonl -o pictures

A line is `{"name": "owl-snow", "prompt": "...", "references": ["owl.png"],
"reference_prompt": "a photo of an owl", "seed": 1}`; further keys are those of `Request`. Each
picture is `NAME.png` and holds what it was made from. Run it again and it draws what is missing; a
line that fails is told and stops nobody.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bootpig_rt import BootPIGError, Pipeline, Request, Subject
from bootpig_rt.images.picture import save_png


def requests(
    pipe: Pipeline, lines: list[dict[str, Any]], failed: list[str]
) -> Iterator[tuple[str, Request]]:
    """What is to be drawn; each subject is encoded once, when its first line is read."""
    subjects: dict[Any, Subject] = {}
    for line in lines:
        values = dict(line)
        name = values.pop("name")
        try:
            images, words = values.pop("references"), values.pop("reference_prompt")
            key = (*images, words)
            if key not in subjects:
                subjects[key] = pipe.encode_subject(images, words)
            yield name, Request(subject=subjects[key], **values)
        except (BootPIGError, KeyError, TypeError) as error:  # a key is missing, or unknown
            failed.append(f"{name}: {error}")


def main() -> int:
    """Draw; the exit code is 1 where a line failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("jobs", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", help="a pair or a bundle; the small one by default")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in args.jobs.read_text().splitlines() if line.strip()]
    missing = [line for line in lines if not (args.output / f"{line['name']}.png").exists()]
    failed: list[str] = []
    names: list[str] = []

    with Pipeline(args.model) as pipe:

        def stream() -> Iterator[Request]:
            for name, request in requests(pipe, missing, failed):
                names.append(name)
                yield request

        for number, result in enumerate(pipe.map(stream(), on_error="return")):
            if isinstance(result, Exception):
                failed.append(f"{names[number]}: {result}")
                continue
            path = args.output / f"{names[number]}.png"
            save_png(result.images[0], path, result.parameters[0].to_dict())
            print(path)
    for text in failed:
        print(f"failed: {text}", file=sys.stderr)
    print(f"{len(missing) - len(failed)} drawn, {len(lines) - len(missing)} there already")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
