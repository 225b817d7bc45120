"""`bootpig-rt generate`: reference images and a prompt in, a PNG out."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bootpig_rt.cli.control_options import add_map_arguments, read_maps
from bootpig_rt.cli.options import (
    add_credentials_arguments,
    add_manner_arguments,
    add_model_arguments,
    add_reference_arguments,
    add_table_arguments,
    be_quiet_if_asked,
    call_progress,
    check_output,
    load_credentials,
    load_pipeline,
    table_options,
)
from bootpig_rt.errors import ParameterError

if TYPE_CHECKING:
    from bootpig_rt.images.content_credentials import ContentCredentials
    from bootpig_rt.images.control import Control
    from bootpig_rt.images.credentials_manifest import ReferenceOrigin
    from bootpig_rt.reference.subject import Subject
    from bootpig_rt.request import GenerationResult
    from bootpig_rt.storage.stats import StoreStats

NAME = "generate"
HELP = "draw the subject of one or more reference images in a new scene"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add_reference_arguments(parser)
    parser.add_argument(
        "--subject",
        metavar="FILE",
        help="what encode-subject wrote, in place of references; or its name in the store",
    )
    parser.add_argument(
        "--prompt",
        metavar="TEXT",
        action="append",
        default=[],
        help='what to draw, "a photo of a dog, on a beach"; give it again for more pictures',
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", default="out.png", help="default: out.png"
    )
    parser.add_argument(
        "--reference-prompt",
        metavar="TEXT",
        help='what the references show, "a photo of a dog"; default: the prompt up to its comma',
    )
    parser.add_argument("--negative-prompt", metavar="TEXT", default="", help="what to avoid")
    parser.add_argument(
        "--omit-prompts", action="store_true", help="write no prompts into the files"
    )
    parser.add_argument("--num-images", type=int, default=1, help="of each prompt (default: 1)")
    parser.add_argument("--seed", type=int, help="picture i has seed + i; random by default")
    group = parser.add_argument_group("sampling (defaults: those of the pair)")
    group.add_argument("--steps", type=int, metavar="N", help="1 to 1000")
    group.add_argument("--image-guidance", type=float, metavar="X", help="pull of the references")
    group.add_argument("--text-guidance", type=float, metavar="X", help="pull of the prompt")
    group.add_argument("--solver", metavar="NAME", help="ddim, dpmpp_2m or unipc")
    group.add_argument(
        "--merge", metavar="NAME", help="of several references: argmax, softmax, mean or concat"
    )
    group.add_argument(
        "--reference-schedule",
        metavar="NAME",
        help="exact, clean, anchor:T, stride:K, window:A-B, or one of the first four +window:A-B",
    )
    group.add_argument(
        "--guidance-interval", metavar="A-B", help="share of the steps with guidance (0-1)"
    )
    group.add_argument(
        "--approximation",
        metavar="NAME",
        default="none",
        help="what steps leave out: none, cache:K, cache:K+window:A-B (default: none)",
    )
    group.add_argument("--width", type=int, metavar="PX", help="of a picture")
    group.add_argument("--height", type=int, metavar="PX", help="of a picture")
    group.add_argument(
        "--sizes",
        metavar="H,W,TOP,LEFT,H,W",
        help="what a pair of Stable Diffusion XL is told of original, crop and target",
    )
    group = parser.add_argument_group("drawing into a picture")
    group.add_argument(
        "--image", metavar="FILE", help="picture to draw into, or from; it gives the size"
    )
    group.add_argument(
        "--mask",
        metavar="FILE",
        help="black and white, of its size: white is drawn, black comes out as it is",
    )
    group.add_argument(
        "--strength",
        type=float,
        metavar="X",
        help="how much of it is drawn anew, over 0 up to 1 (default: 1 with a mask, 0.8 without)",
    )
    group.add_argument(
        "--mask-edge",
        type=int,
        metavar="PX",
        help="pixels inside the mask over which the drawing fades in (default: those of a latent)",
    )
    add_map_arguments(parser)
    add_credentials_arguments(parser)
    add_table_arguments(parser)
    add_model_arguments(parser)
    add_manner_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Draw, write, report."""
    from bootpig_rt.images.background import load_remover
    from bootpig_rt.images.picture import load_image

    be_quiet_if_asked(args)
    output = check_output(args.output)
    controls = read_maps(args)
    settings = _check_before_loading(args, controls)
    tables = table_options(args)
    subject = None if args.subject is None else _subject(args.subject, args.store)
    references = [load_image(file) for file in args.reference]
    credentials = load_credentials(args)
    origins = []
    if credentials is not None:
        given = [] if args.image is None else [args.image]
        origins = [credentials.origin(Path(file).read_bytes()) for file in given + args.reference]
    remover = None if args.remove_background is None else load_remover(args.remove_background)
    start = time.perf_counter()
    pipeline = load_pipeline(args, background_remover=remover, tables=tables)
    load_ms = 1e3 * (time.perf_counter() - start)
    with call_progress(is_shown=not args.quiet) as on_event:
        result = pipeline(
            args.prompt,
            reference_images=references or None,
            subject=subject,
            reference_prompt=args.reference_prompt,
            seed=args.seed,
            image=args.image,
            mask_image=args.mask,
            control_image=controls or None,
            on_event=on_event,
            **settings,
        )
    pipeline.store.flush()
    files = write_pictures(
        result,
        output,
        credentials=credentials,
        references=origins,
        omits_prompts=args.omit_prompts,
    )
    if args.json:
        print(
            json.dumps(_summary(result, files, output, load_ms, pipeline.store.stats()), indent=2)
        )
    elif not args.quiet:
        first = result.parameters[0]
        print(
            f"{output}: {len(result.images)} picture{'s' if len(result.images) > 1 else ''}, "
            f"seed {first.seed}, {first.num_inference_steps} steps of {first.solver}, "
            f"{result.timings.total_ms / 1e3:.2f} s after {load_ms / 1e3:.2f} s of loading"
        )
    return 0


def _subject(name: str, folder: str | None) -> Subject:
    """The subject of a file, or of a name in the store."""
    from bootpig_rt.reference.subject import Subject
    from bootpig_rt.storage.folder import StoreFolder, default_folder

    store = default_folder() if folder is None else Path(folder)
    if store is None or Path(name).is_file():
        return Subject.load(name)
    return StoreFolder(store).load_subject(name)


def _check_before_loading(
    args: argparse.Namespace, controls: tuple[Control, ...]
) -> dict[str, Any]:
    """Refuse what no pair could do, in a moment; the pipeline checks the rest.

    Returns:
        What all pictures share, as a call of the pipeline and a `Request` name it.
    """
    from bootpig_rt.images.canvas import Canvas
    from bootpig_rt.reference.encode import sources_of
    from bootpig_rt.reference.schedule import parse_share
    from bootpig_rt.request import Request

    if args.subject is None:
        sources_of(args.reference)
    elif args.reference or args.reference_prompt is not None:
        raise ParameterError(
            "got a subject together with references or a reference prompt, expected one or the "
            "other; a subject holds both"
        )
    interval = parse_share("0-1" if args.guidance_interval is None else args.guidance_interval)
    if interval is None:
        raise ParameterError(
            f"guidance_interval is {args.guidance_interval!r}, expected A-B with 0 <= A < B <= 1 "
            "such as 0.2-0.8"
        )
    settings: dict[str, Any] = {
        "negative_prompt": args.negative_prompt,
        "num_inference_steps": args.steps,
        "image_guidance_scale": args.image_guidance,
        "text_guidance_scale": args.text_guidance,
        "num_images_per_prompt": args.num_images,
        "solver": args.solver,
        "merge": args.merge,
        "reference_schedule": args.reference_schedule,
        "guidance_interval": interval,
        "approximation": args.approximation,
        "width": args.width,
        "height": args.height,
        "sizes": None if args.sizes is None else _sizes(args.sizes),
        "strength": args.strength,
        "mask_edge_px": args.mask_edge,
    }
    if args.mask is not None and args.image is None:
        raise ParameterError("--mask is given without --image; give both, or neither")
    canvas = None if args.image is None else Canvas.load(args.image, args.mask)
    for prompt in args.prompt or [None]:
        Request(prompt=prompt, seed=args.seed, canvas=canvas, controls=controls, **settings)
    return settings


def _sizes(text: str) -> tuple[object, ...]:
    """Numbers of a list with commas; what is none stays a text, for the check to name."""
    parts = [part.strip() for part in text.split(",")]
    return tuple(int(part) if part.isascii() and part.isdecimal() else part for part in parts)


def write_pictures(
    result: GenerationResult,
    output: Path,
    *,
    credentials: ContentCredentials | None = None,
    references: Sequence[ReferenceOrigin] = (),
    omits_prompts: bool = False,
) -> list[Path]:
    """Write one picture to `output`; of several a grid, and `NAME-0.png`, `NAME-1.png`... beside.

    Each file says that its pictures are generated, and holds their parameters.

    Args:
        result: What to write.
        output: The file to make or replace.
        credentials: Signs each file.
        references: Origins of the reference images.
        omits_prompts: Leave out of the parameters what people wrote.

    Returns:
        Files of the single pictures, in order.

    Raises:
        StorageError: A file cannot be written.
        CredentialsError: A file cannot be signed.
    """
    from bootpig_rt.images.marks import without_prompts
    from bootpig_rt.images.picture import grid, save_png

    made_from = [parameters.to_dict() for parameters in result.parameters]
    if omits_prompts:
        made_from = [without_prompts(parameters) for parameters in made_from]
    save = partial(save_png, credentials=credentials, references=references)
    if len(result.images) == 1:
        save(result.images[0], output, made_from[0])
        return [output]
    files = []
    for index, (image, parameters) in enumerate(zip(result.images, made_from, strict=True)):
        file = output.with_name(f"{output.stem}-{index}{output.suffix}")
        save(image, file, parameters)
        files.append(file)
    sheet = grid(result.images, _columns(len(files)))
    save(sheet, output, {"pictures": made_from})
    return files


def _columns(count: int) -> int:
    """Columns of a grid that is about square, without an empty row."""
    columns = 1
    while columns * columns < count:
        columns += 1
    return columns


def _summary(
    result: GenerationResult, files: list[Path], output: Path, load_ms: float, store: StoreStats
) -> dict[str, object]:
    return {
        "output": str(output),
        "pictures": [
            {"file": str(file), "parameters": parameters.to_dict()}
            for file, parameters in zip(files, result.parameters, strict=True)
        ],
        "timings": {"load_ms": round(load_ms, 3), **result.timings.to_dict()},
        "reference_passes": result.reference_passes,
        "store": store.to_dict(),
    }
