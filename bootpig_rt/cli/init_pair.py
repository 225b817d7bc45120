"""`bootpig-rt init-pair`: an untrained pair from a Stable Diffusion folder."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bootpig_rt.errors import EXIT_OK

NAME = "init-pair"
HELP = "make an untrained pair from a Stable Diffusion folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = (
        "MODEL holds unet/, vae/, text_encoder/, tokenizer/ and scheduler/, with weights as\n"
        "safetensors: Stable Diffusion 1.x or 2.x; or XL, with text_encoder_2/ and tokenizer_2/\n"
        "beside them. Where a hub can be reached and the package\n"
        "huggingface_hub is installed, it may be an id there. The pair's two U-Nets are both that\n"
        "of MODEL, stored once: training starts from it, and it draws at once without training.\n\n"
        "examples:\n"
        "  bootpig-rt init-pair --base-model models/stable-diffusion-2-1-base -o pair\n"
        "  bootpig-rt init-pair --base-model stabilityai/stable-diffusion-2-1-base -o pair\n"
        "  bootpig-rt init-pair --base-model models/sdxl-turbo --few-steps 1 -o pair"
    )
    parser.add_argument("--base-model", metavar="MODEL", required=True, help="folder or hub id")
    parser.add_argument(
        "-o", "--output", metavar="PAIR", type=Path, required=True, help="folder to make"
    )
    parser.add_argument("--name", help="name in pair.json (default: that of the folder)")
    parser.add_argument(
        "--dtype",
        choices=("float16", "float32"),
        default="float16",
        help="type of the weights on disk (default: float16)",
    )
    parser.add_argument(
        "--subject-share",
        type=float,
        default=0.86,
        metavar="SHARE",
        help="longest side of the subject over the side of a prepared reference (default: 0.86)",
    )
    parser.add_argument(
        "--few-steps",
        type=int,
        metavar="N",
        help="MODEL draws in N steps without guidance, as Turbo and Lightning do: the pair's "
        "defaults are Euler's steps at trailing timesteps, with both guidance scales 1",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a pair of that name")
    parser.add_argument("--json", action="store_true", help="print a json object")


def run(args: argparse.Namespace) -> int:
    """Write the pair and say where it is."""
    import torch

    from bootpig_rt.models.hub import base_model_folder
    from bootpig_rt.models.init_pair import init_pair

    name = args.name
    if name is None and not Path(args.base_model).is_dir():
        name = f"{args.base_model}, untrained"  # what is fetched lies in a folder named by a hash
    config = init_pair(
        base_model_folder(args.base_model),
        args.output,
        name=name,
        dtype=getattr(torch, args.dtype),
        subject_share=args.subject_share,
        few_steps=args.few_steps,
        overwrite=args.overwrite,
    )
    size = sum(path.stat().st_size for path in args.output.rglob("*") if path.is_file())
    if args.json:
        summary = {
            "pair": str(args.output),
            "name": config.name,
            "sample_size_px": config.sample_size_px,
            "size_bytes": size,
        }
        print(json.dumps(summary))
    else:
        print(f"{args.output}: {config.name}, {config.sample_size_px} px, {size / 1e9:.2f} GB")
    return EXIT_OK
