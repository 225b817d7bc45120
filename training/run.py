"""From a configuration to a trained stage: the entry that `bootpig-rt train` calls.

Files are read and written here and in what this calls; stages get objects.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from msgspec import structs

from bootpig_rt.errors import ConfigError
from bootpig_rt.files.atomic import atomic_write_text
from bootpig_rt.models.load import Pair, load_pair
from bootpig_rt.models.save import save_pair
from bootpig_rt.models.weights import digest_tensors
from bootpig_rt.text.tokenizer import Tokenizer
from bootpig_rt.training.caches import make_missing
from bootpig_rt.training.config import TrainConfig
from bootpig_rt.training.data import DiffusionData
from bootpig_rt.training.estimate import Plan, make_plan
from bootpig_rt.training.maps import read_maps, store_maps
from bootpig_rt.training.model_card import write_card
from bootpig_rt.training.open_data import (
    VALIDATION_SAMPLES,
    cache_folder,
    open_data,
    open_samples,
    open_validation,
)
from bootpig_rt.training.processes import Sharding, make_accelerator, read_sharding
from bootpig_rt.training.provenance import FILE, provenance
from bootpig_rt.training.shards import read_manifest
from bootpig_rt.training.stage import Stage
from bootpig_rt.training.stages.base import BaseStage
from bootpig_rt.training.stages.control import ControlStage
from bootpig_rt.training.stages.distill import DistillStage
from bootpig_rt.training.stages.pair import PairStage
from bootpig_rt.training.stages.vae import VALIDATION_PICTURES, VaeStage
from bootpig_rt.training.start import load_start, load_start_vae, subject_share
from bootpig_rt.training.tokens import train_tokenizer
from bootpig_rt.training.trainer import Trainer


def build_stage(config: TrainConfig, device: torch.device) -> tuple[Stage, str]:
    """Load what the stage starts from and its data, and build its models on a device.

    Returns:
        The stage, and the fingerprint of what it starts from.
    """
    if config.stage == "vae":
        held_out = open_validation(config, VALIDATION_PICTURES)
        start, fingerprint = None, ""
        if config.start_from:
            start = load_start_vae(Path(config.start_from), device)
            fingerprint = digest_tensors(start.state_dict())
        samples = open_samples(config)
        return VaeStage(config, samples, held_out, device, start), fingerprint
    if config.stage == "base":
        vae: Any = load_start_vae(Path(config.start_from), device)
        folder = _tokenizer_of(config)
        tokenizer = Tokenizer.from_folder(folder)
        latent_multiple = 2 ** (len(config.unet.block_channels) - 1)
        data = open_data(config, vae, tokenizer, device, latent_multiple=latent_multiple)
        grow_from = config.unet.grow_from
        small = load_pair(grow_from) if grow_from else None
        base = BaseStage(config, vae, folder, tokenizer.eos_id + 1, data, small)
        return base, digest_tensors(vae.state_dict())
    start = load_start(Path(config.start_from), device)
    if config.stage == "pair":
        share = subject_share(read_manifest(Path(config.data)))
        start = replace(start, config=replace(start.config, subject_share=share))
    data = open_data(
        config,
        start.vae,
        start.tokenizer(),
        device,
        latent_multiple=start.base.size_multiple,
        start=start,
    )
    if config.stage == "control":
        return _control_stage(config, start, data), start.fingerprint
    kind = PairStage if config.stage == "pair" else DistillStage
    return kind(config, start, data), start.fingerprint


def _attend_by_products() -> None:
    """Attention of a CPU as two products and a softmax.

    torch's fused attention is quick forward; backward it took two fifths of a step of the small
    U-Net (torch 2.13, AMX, bfloat16), where products took a tenth.
    """
    torch.backends.cuda.enable_flash_sdp(False)  # of the CPU as well
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)


def _control_stage(config: TrainConfig, start: Pair, data: DiffusionData) -> ControlStage:
    side, kind = data.train.sizing.reference_px, config.control.kind
    maps = store_maps(data.samples, kind, side, cache_folder(config))
    held_out = open_validation(config, VALIDATION_SAMPLES)
    of_held_out = None if held_out is None else read_maps(held_out, kind, side)
    return ControlStage(config, start, data, maps, of_held_out)


def _tokenizer_of(config: TrainConfig) -> Path:
    """The run's tokenizer, learned from its captions the first time."""
    folder = Path(config.output) / "tokenizer"
    last = folder / "tokenizer_config.json"

    def learn(_: int, __: object) -> None:
        samples = open_samples(config)
        captions = (samples.texts(sample)[0] for sample in range(len(samples)))
        train_tokenizer(
            captions,
            folder,
            vocabulary=config.unet.vocabulary,
            max_tokens=config.unet.max_tokens,
        )

    make_missing([last], [1], learn, what="tokenizer", unit="tokenizer")
    return folder


def build_trainer(
    config: TrainConfig, accelerator: Accelerator, sharding: Sharding | None = None
) -> Trainer:
    """A trainer whose result is written with where it comes from."""
    # All processes at once: they share the work on the tokenizer, the latents and the text states.
    if accelerator.device.type == "cpu":
        _attend_by_products()
    stage, fingerprint = build_stage(config, accelerator.device)

    def write(result: Any, folder: Path) -> None:
        if isinstance(result, Pair):
            # A base is trained on: it keeps all its digits.
            dtype = torch.float32 if config.stage == "base" else torch.float16
            save_pair(result, folder, dtype=dtype)
        else:
            result.save_pretrained(folder / "vae")
        record = provenance(config, fingerprint, int(accelerator.num_processes))
        atomic_write_text(folder / FILE, json.dumps(record, indent=1) + "\n")
        if isinstance(result, Pair):
            write_card(folder)

    return Trainer(config, stage, accelerator, write, sharding)


def train(config: TrainConfig, *, max_minutes: float | None = None) -> dict[str, Any]:
    """Run or resume a stage.

    Returns:
        `is_finished`, `step`, `result` (folder of the finished stage), and `requeue`: a scheduler
        has stopped it, and is to start it again.

    Raises:
        ConfigError: `mixed_precision` is fp16 on a machine without a GPU, or the launcher asks for
            a way to train that is not supported.
    """
    if config.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError("mixed_precision is fp16, which needs a GPU; use bf16 or no")
    sharding = read_sharding(config)
    trainer = build_trainer(config, make_accelerator(config), sharding)
    is_finished = trainer.run(max_minutes=max_minutes)
    return {
        "is_finished": is_finished,
        "step": trainer.step,
        "result": str(Path(config.output) / "result"),
        "requeue": trainer.shall_requeue and not is_finished,
    }


PROBED_SAMPLES = 16


def plan(config: TrainConfig, *, processes: int, is_sharded: bool) -> Plan:
    """What a run will need; trains nothing, writes nothing, and computes one sample."""
    samples = read_manifest(Path(config.data))["samples"]
    samples = min(samples, config.max_samples) if config.max_samples else samples
    with tempfile.TemporaryDirectory() as scratch:
        probed = structs.replace(
            config,
            output=str(Path(scratch) / "run"),
            max_samples=min(PROBED_SAMPLES, samples),
            validation_data="",
        )
        if config.stage != "vae":  # a sample whose references are read needs the most
            dropout = structs.replace(
                config.diffusion, prompt_dropout=0.0, reference_dropout=0.0, both_dropout=0.0
            )
            probed = structs.replace(probed, diffusion=dropout)
        stage, _ = build_stage(probed, torch.device("cpu"))
        return make_plan(
            stage,
            config,
            samples=samples,
            caches_of_sample=_bytes_of(cache_folder(probed)) / probed.max_samples,
            processes=processes,
            is_sharded=is_sharded,
        )


def _bytes_of(folder: Path) -> int:
    """Of the latents and text states in a folder; indices are of whole shards, and small."""
    kinds = ("latents-*", "texts-*")
    return sum(file.stat().st_size for kind in kinds for file in folder.glob(f"{kind}/*"))
