"""Settings of the whole suite; fixtures live beside the tests that use them."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings
from PIL import Image, ImageDraw

# Before numpy or torch start their thread pools. One thread: the models here are too small to gain
# from more, and on a busy machine threads that wait for each other are many times slower. Nothing
# is looked up on a hub, and no test reads or fills the store of whoever runs it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("BOOTPIG_RT_STORE", None)
# Tests start hundreds of processes, and each would compile the sources anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# No test asserts a time: on a busy machine an example, or drawing one, may take seconds.
settings.register_profile("any", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any")

if TYPE_CHECKING:
    from bootpig_rt.pipeline import Pipeline
    from bootpig_rt.reference.subject import Subject

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the checkout."""
    return ROOT


@pytest.fixture(scope="session", autouse=True)
def _torch_threads() -> None:
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session", autouse=True)
def _no_power_is_cut() -> Iterator[None]:
    """Files need not reach the disk. Tests of what is synced when look themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _fd: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_quicker() -> Iterator[None]:
    """Where nobody named an engine and a precision, tests draw with the first of the candidates.

    Which one is quickest depends on the processor and on what else it does. Tests of the choice
    tell times of their own.
    """
    from bootpig_rt.backends import choice

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "step_ms", lambda backends: dict.fromkeys(backends, 1.0))
        yield


def pytest_configure(config: pytest.Config) -> None:
    """No garbage is collected until tests are; one folder for what OpenVINO compiles.

    Workers are told the folder by the environment.
    """
    if not getattr(config.option, "numprocesses", None):
        gc.disable()  # hardly anything that is made until then is freed; workers do it themselves
    if hasattr(config, "workerinput"):
        return
    folder = tempfile.mkdtemp(prefix="bootpig-rt-tests-")
    os.environ["BOOTPIG_RT_TESTS_COMPILED"] = folder  # see `compiled.py`
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests whose hardware or package is missing, and say why."""
    marked = {marker.name for item in items for marker in item.iter_markers()}
    if marked.isdisjoint({"gpu", "trt"}):
        return
    has_gpu = False
    if importlib.util.find_spec("torch"):
        import torch

        has_gpu = torch.cuda.is_available()
    flavours = ("tensorrt", "tensorrt_rtx")
    has_trt = any(importlib.util.find_spec(name) is not None for name in flavours)
    for item in items:
        if item.get_closest_marker("gpu") and not has_gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU on this machine"))
        if item.get_closest_marker("trt") and not (has_gpu and has_trt):
            item.add_marker(pytest.mark.skip(reason="no TensorRT or no CUDA GPU on this machine"))


def pytest_collection_finish() -> None:
    """What was imported by now lives as long as the process: collections need not walk over it."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Let it be collected at the end: libraries complain of what they find then."""
    gc.unfreeze()


class Share(Protocol):
    """`share(name, fill)`, see the fixture."""

    def __call__(self, name: str, fill: Callable[[Path], object]) -> Path: ...


@pytest.fixture(scope="session")
def share(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Share:
    """A function that returns a folder which `fill(folder)` filled, once for all workers.

    What takes seconds to make and is only read belongs here. `name` is unique in the whole suite.
    BOOTPIG_RT_TESTS_SHARE=folder keeps all of it from one run to the next, while no code changes.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if hasattr(request.config, "workerinput") else base) / "shared"
    shared = Path(os.environ.get("BOOTPIG_RT_TESTS_SHARE", shared))
    shared.mkdir(exist_ok=True)

    def get(name: str, fill: Callable[[Path], object]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return get


class MakeTinyPair(Protocol):
    """`make_tiny_pair(folder, ...)`, see the fixture."""

    def __call__(
        self,
        folder: Path,
        *,
        seed: int = ...,
        prediction_type: str = ...,
        published: bool = ...,
        shallow: bool = ...,
        patches: bool = ...,
        inpainting: bool = ...,
        xl: bool = ...,
        **config: Any,
    ) -> Path:
        """Write a random pair and return its folder."""


@pytest.fixture(scope="session")
def make_tiny_pair() -> MakeTinyPair:
    """A function that saves a random, untrained pair of 32 px pictures and about 0.3 MB.

    Latents are [4, 8, 8]; prompts have 24 tokens. With `published` the folder holds `base_unet`
    and `ref_unet` alone and `folder / "base_model"` the rest, as the published trainer leaves it.
    With `shallow` the U-Nets attend in one block in place of seven: they are quicker to export.
    With `patches` the autoencoder is a `PatchAutoencoder` whose six channels have a mean and a
    standard deviation each.
    With `inpainting` the U-Nets have nine input channels.
    With `xl` it is shaped like Stable Diffusion XL: a first block that attends to nothing, two
    transformer blocks in a row, two text encoders and sizes.
    Further keywords become fields of `pair.json`.
    """

    def make(
        folder: Path,
        *,
        seed: int = 0,
        prediction_type: str = "epsilon",
        published: bool = False,
        shallow: bool = False,
        patches: bool = False,
        inpainting: bool = False,
        xl: bool = False,
        **config: Any,
    ) -> Path:
        import torch
        from diffusers import UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        from bootpig_rt.bundle.pair_config import PairConfig
        from bootpig_rt.models.load import Pair
        from bootpig_rt.models.save import save_pair
        from bootpig_rt.models.text_encoders import TwoTextEncoders
        from bootpig_rt.models.unet import BaseUNet, ReferenceUNet

        folder.mkdir(parents=True, exist_ok=True)
        tokenizer_folder = folder / "tokenizer_source"
        _write_tiny_tokenizer(tokenizer_folder)
        kind, channels = ("", (16,)) if shallow else ("CrossAttn", (16, 32))
        downs, ups = [f"{kind}DownBlock2D"] * len(channels), [f"{kind}UpBlock2D"] * len(channels)
        more: dict[str, Any] = {"cross_attention_dim": 16}
        if xl:
            downs[0], ups[-1] = "DownBlock2D", "UpBlock2D"
            more = {
                "cross_attention_dim": 16 + 24,
                "transformer_layers_per_block": (1, 2),
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 24 + 6 * 8,
            }
        read = 9 if inpainting else 6 if patches else 4
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            base, reference = (
                UNet2DConditionModel(
                    sample_size=8,
                    in_channels=read,
                    out_channels=6 if patches else 4,
                    block_out_channels=channels,
                    layers_per_block=1,
                    down_block_types=tuple(downs),
                    up_block_types=tuple(ups),
                    attention_head_dim=tuple(width // 8 for width in channels),
                    norm_num_groups=4,
                    use_linear_projection=True,
                    **more,
                )
                for _ in range(2)
            )
            vae: Any = make_patch_autoencoder() if patches else make_autoencoder_kl()
            text: dict[str, Any] = {
                "vocab_size": len(json.loads((tokenizer_folder / "vocab.json").read_text())),
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2 if xl else 1,
                "num_attention_heads": 2,
                "max_position_embeddings": 24,
                "bos_token_id": 514,
                "eos_token_id": 515,
                "pad_token_id": 515,
            }
            text_encoder: Any = CLIPTextModel(CLIPTextConfig(**text))
            if xl:
                wide = {**text, "hidden_size": 24, "projection_dim": 24, "num_hidden_layers": 3}
                second = CLIPTextModelWithProjection(CLIPTextConfig(**wide, hidden_act="gelu"))
                text_encoder = TwoTextEncoders(
                    text_encoder,
                    second,
                    base.config,
                    zeros_for_empty=bool(config.get("zeros_for_empty_prompt")),
                )
        scheduler = {
            "num_train_timesteps": 1000,
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "prediction_type": prediction_type,
            "timestep_spacing": "trailing",
        }
        defaults = {"name": "tiny", "sample_size_px": 32, "default_steps": 2}
        pair = Pair(
            base=BaseUNet(base),
            reference=ReferenceUNet(reference),
            vae=vae,
            text_encoder=text_encoder,
            tokenizer_folder=tokenizer_folder,
            scheduler=scheduler,
            config=PairConfig(**{**defaults, **config}),
            fingerprint="",
            tokenizer_2_folder=_second_tokenizer(folder) if xl else None,
        )
        saved = save_pair(pair, folder / "pair", dtype=torch.float32)
        if published:
            rest = folder / "base_model"
            rest.mkdir()
            for name in ("vae", "text_encoder", "tokenizer", "scheduler"):
                (saved / name).rename(rest / name)
            (saved / "pair.json").unlink()
            (saved / "model_index.json").unlink()
        return saved

    return make


def make_autoencoder_kl() -> Any:
    """A random one of factor 4."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        sample_size=32,
    )


def make_tiny_autoencoder() -> Any:
    """A random one of factor 4, for four channels."""
    import torch
    from diffusers import AutoencoderTiny

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8),
            num_encoder_blocks=(1, 1, 1),
            num_decoder_blocks=(1, 1, 1),
        )


@pytest.fixture(scope="session")
def pair_with_tiny_folder(tiny_pair_folder: Path, share: Share) -> Path:
    """The tiny pair with an `AutoencoderTiny` of random weights in `tiny_vae`; copy it likewise."""

    def fill(folder: Path) -> None:
        shutil.copytree(tiny_pair_folder, folder, dirs_exist_ok=True)
        make_tiny_autoencoder().save_pretrained(folder / "tiny_vae")

    return share("pair_with_tiny", fill)


@pytest.fixture(scope="session")
def bundle_with_tiny_folder(
    pair_with_tiny_folder: Path, tiny_bundle_folder: Path, share: Share
) -> Path:
    """The tiny bundle with a `tiny_decoder` in it."""

    def fill(folder: Path) -> None:
        from bootpig_rt.export.onnx_export import export_graph
        from bootpig_rt.models.load import load_pair

        shutil.copytree(tiny_bundle_folder, folder, dirs_exist_ok=True)
        (folder / "manifest.json").unlink()
        shutil.copytree(pair_with_tiny_folder / "tiny_vae", folder / "tiny_vae")
        export_graph("tiny_decoder", load_pair(folder), folder, dialect="cpu")
        _write_tiny_manifest(folder)

    return share("bundle_with_tiny", fill)


def make_patch_autoencoder() -> Any:
    """One of ours of factor 4, random in what begins as zeros too."""
    import torch

    from bootpig_rt.models.patch_autoencoder import PatchAutoencoder

    vae = PatchAutoencoder(
        latent_channels=6,
        block_out_channels=(3, 8, 8),
        layers_per_block=(1, 1),
        encoder_channels=(8, 8),
        encoder_layers=(1, 1),
        sample_size=32,
        scaling_factor=1.25,
        latents_mean=tuple(0.1 * channel for channel in range(6)),
        latents_std=tuple(0.5 + 0.1 * channel for channel in range(6)),
    )
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return vae


TINY = ROOT / "tests" / "data" / "tiny"
"""What `make_tiny_pair` writes, with its ONNX graphs, which take minutes to export."""


@pytest.fixture(scope="session")
def tiny_pair_folder(share: Share) -> Path:
    """A random pair in the single-folder layout. Copy it before changing a file."""
    graphs = shutil.ignore_patterns("*.onnx")
    return share(
        "tiny_pair", lambda path: shutil.copytree(TINY, path, ignore=graphs, dirs_exist_ok=True)
    )


CONTROLS = ROOT / "tests" / "data" / "controls"
"""What `write_tiny_controls` writes, with the graphs of the tiny pair that know controls."""


@pytest.fixture(scope="session")
def controlled_pair_folder(tiny_pair_folder: Path, share: Share) -> Path:
    """The tiny pair with random controls of kind `depth` and `outline`; copy it likewise."""

    def fill(folder: Path) -> None:
        shutil.copytree(tiny_pair_folder, folder, dirs_exist_ok=True)
        graphs = shutil.ignore_patterns("*.onnx")
        shutil.copytree(CONTROLS, folder, ignore=graphs, dirs_exist_ok=True)

    return share("controlled_pair", fill)


@pytest.fixture(scope="session")
def controlled_bundle_folder(share: Share) -> Path:
    """The same with its ONNX graphs and a manifest; of several references it merges `argmax`."""

    def fill(folder: Path) -> None:
        shutil.copytree(TINY, folder, dirs_exist_ok=True)
        shutil.copytree(CONTROLS, folder, dirs_exist_ok=True)
        _write_tiny_manifest(folder)

    return share("controlled_bundle", fill)


@pytest.fixture(scope="session")
def write_controls() -> Callable[[Path, Path], Path]:
    """A function that makes a random control of a pair in a folder, and returns its folder."""

    def make(pair: Path, folder: Path) -> Path:
        shutil.copytree(pair, folder)
        write_tiny_controls(folder)
        return folder / "controlnet_depth"

    return make


def write_tiny_controls(folder: Path) -> None:
    """Controls of a tiny pair, random in what begins as zeros too."""
    import torch
    from diffusers import ControlNetModel, UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder / "base_unet")
    for seed, kind in enumerate(("depth", "outline")):
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8, 8))
            for parameter in net.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
        net.save_pretrained(folder / f"controlnet_{kind}")


@pytest.fixture(scope="session")
def shallow_pair_folder(make_tiny_pair: MakeTinyPair, share: Share) -> Path:
    """A tiny pair that attends in one block. Copy it before changing a file."""
    return share("shallow_pair", lambda folder: make_tiny_pair(folder, shallow=True)) / "pair"


@pytest.fixture(scope="session")
def patch_pair_folder(make_tiny_pair: MakeTinyPair, share: Share) -> Path:
    """A tiny pair with an autoencoder of patches, that attends in one block; copy it likewise."""

    def fill(folder: Path) -> Path:
        return make_tiny_pair(folder, patches=True, shallow=True)

    return share("patch_pair", fill) / "pair"


@pytest.fixture(scope="session")
def inpainting_pair_folder(make_tiny_pair: MakeTinyPair, share: Share) -> Path:
    """A tiny pair of U-Nets that were made for inpainting, that attend in one block."""

    def fill(folder: Path) -> Path:
        return make_tiny_pair(folder, inpainting=True, shallow=True)

    return share("inpainting_pair", fill) / "pair"


@pytest.fixture(scope="session")
def xl_pair_folder(make_tiny_pair: MakeTinyPair, share: Share) -> Path:
    """A tiny pair shaped like Stable Diffusion XL, whose empty prompts are zeros; copy it too."""

    def fill(folder: Path) -> Path:
        return make_tiny_pair(folder, xl=True, zeros_for_empty_prompt=True)

    return share("xl_pair", fill) / "pair"


@pytest.fixture(scope="session")
def published_layout_folder(make_tiny_pair: MakeTinyPair, share: Share) -> Path:
    """`base_unet` and `ref_unet` of a random pair; `base_model` beside it holds the rest."""
    return share("published_pair", lambda folder: make_tiny_pair(folder, published=True)) / "pair"


@pytest.fixture(scope="session")
def tiny_bundle_folder(share: Share) -> Path:
    """The tiny pair with its ONNX graphs and a manifest. Copy it before changing a file.

    Built for pictures of 16 to 64 px, 4 at once, 3 references and 50 steps.
    """
    return share("tiny_bundle", _write_tiny_bundle)


def _write_tiny_bundle(folder: Path) -> None:
    shutil.copytree(TINY, folder, dirs_exist_ok=True)
    _write_tiny_manifest(folder)


@pytest.fixture(scope="session")
def write_tiny_manifest() -> Callable[[Path], None]:
    """A function that writes the manifest of a copy of the tiny pair whose files were changed."""
    return _write_tiny_manifest


def _write_tiny_manifest(folder: Path) -> None:
    from msgspec import structs

    from bootpig_rt.bundle.bundle import ParityReport, write_manifest
    from bootpig_rt.bundle.manifest import ControlInfo
    from bootpig_rt.export.build_options import build_options
    from bootpig_rt.export.describe import describe_graphs
    from bootpig_rt.models.load import load_pair

    pair = load_pair(folder)
    options = build_options(
        pair.config,
        size_multiple_px=8,
        resolution="16:64",
        max_batch=4,
        max_references=3,
        max_steps=200,
    )
    parity = ParityReport("not run", "made for tests")
    manifest = describe_graphs(folder, options, pair.config, pair.fingerprint, parity)
    controls = tuple(ControlInfo(one.kind, one.fingerprint) for one in pair.controls)
    manifest = structs.replace(manifest, controls=controls)
    write_manifest(folder, manifest)


def _write_tiny_tokenizer(folder: Path) -> None:
    """A vocabulary of bytes and two merges in the layout of CLIP's: 516 tokens."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "do", "dog</w>"]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 24,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    folder.mkdir()
    (folder / "vocab.json").write_text(
        json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False),
        encoding="utf-8",
    )
    (folder / "merges.txt").write_text("#version: 0.2\nd o\ndo g</w>\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _second_tokenizer(folder: Path) -> Path:
    """The same vocabulary with "!", which is number 0, as padding."""
    second = folder / "tokenizer_2_source"
    _write_tiny_tokenizer(second)
    settings = second / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "pad_token": "!"}))
    return second


class MakeSDFolder(Protocol):
    """`make_sd_folder(folder, version, ...)`, see the fixture."""

    def __call__(
        self, folder: Path, version: str, *, full_size: bool = False, dtype: str = "float32"
    ) -> Path: ...


@pytest.fixture(scope="session")
def make_sd_folder() -> MakeSDFolder:
    """Random weights in the layout of published folders, `2.1-base`, `1.x` or `xl`; gives it back.

    File names, tensor names and configurations are theirs. Channels are divided by 10 or 20 and
    depths cut unless `full_size`; the text width and, in 1.x, the 8 heads stay.
    """

    def make(
        folder: Path, version: str, *, full_size: bool = False, dtype: str = "float32"
    ) -> Path:
        import torch
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        folder.mkdir(parents=True)
        unet, vae, text, scheduler = _sd_configs(version, full_size)
        text_2 = _xl_configs(full_size, unet, vae, text, scheduler) if version == "xl" else None
        with torch.device("meta"):
            build_unet: Any = UNet2DConditionModel
            build_vae: Any = AutoencoderKL
            modules = {
                "unet": (build_unet(**unet), {"_class_name": "UNet2DConditionModel", **unet}),
                "vae": (build_vae(**vae), {"_class_name": "AutoencoderKL", **vae}),
                "text_encoder": (CLIPTextModel(CLIPTextConfig(**text)), text),
            }
            if text_2 is not None:
                second = CLIPTextModelWithProjection(CLIPTextConfig(**text_2))
                modules["text_encoder_2"] = (second, text_2)
        generator = torch.Generator().manual_seed(0)
        for name, (module, config) in modules.items():
            _write_random_module(folder / name, module, config, generator, getattr(torch, dtype))
        _write_tiny_tokenizer(folder / "tokenizer")
        settings = folder / "tokenizer" / "tokenizer_config.json"
        settings.write_text(json.dumps({**json.loads(settings.read_text()), **_SD_TOKENIZER}))
        (folder / "scheduler").mkdir()
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
        index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline"}
        if version == "xl":
            index = {"_class_name": "StableDiffusionXLPipeline"}
            index["force_zeros_for_empty_prompt"] = True
            shutil.copytree(folder / "tokenizer", folder / "tokenizer_2")
            settings = folder / "tokenizer_2" / "tokenizer_config.json"
            settings.write_text(json.dumps({**json.loads(settings.read_text()), "pad_token": "!"}))
        (folder / "model_index.json").write_text(json.dumps(index))
        if version == "1.x":  # parts of 1.x folders that no pair has, here as a pickle
            (folder / "safety_checker").mkdir()
            (folder / "safety_checker" / "pytorch_model.bin").write_bytes(b"not to be opened")
        return folder

    return make


_SD_TOKENIZER = {"model_max_length": 77, "add_prefix_space": False, "do_lower_case": True}


def _sd_configs(version: str, full_size: bool) -> tuple[dict[str, Any], ...]:
    """Configurations of U-Net, autoencoder, text encoder and scheduler as they are published."""
    is_two = version == "2.1-base"
    wide = 1 if full_size else (10 if is_two else 20)
    cross = "CrossAttn"
    unet: dict[str, Any] = {
        "act_fn": "silu",
        "attention_head_dim": 8,
        "block_out_channels": [320 // wide, 640 // wide, 1280 // wide, 1280 // wide],
        "center_input_sample": False,
        "cross_attention_dim": 768,
        "down_block_types": [f"{cross}DownBlock2D"] * 3 + ["DownBlock2D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2 if full_size else 1,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32 if full_size else 8,
        "out_channels": 4,
        "sample_size": 64 if full_size else 8,
        "up_block_types": ["UpBlock2D"] + [f"{cross}UpBlock2D"] * 3,
    }
    if is_two:
        unet |= {
            "attention_head_dim": [5, 10, 20, 20] if full_size else [2, 4, 8, 8],
            "cross_attention_dim": 1024,
            "dual_cross_attention": False,
            "num_class_embeds": None,
            "only_cross_attention": False,
            "use_linear_projection": True,
        }
    vae = {
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512] if full_size else [8, 16, 16, 16],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2 if full_size else 1,
        "norm_num_groups": 32 if full_size else 8,
        "out_channels": 3,
        "sample_size": 768 if is_two else 512,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    width = 1024 if is_two else 768
    text = {
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": "gelu" if is_two else "quick_gelu",
        "hidden_size": width,
        "intermediate_size": 4 * width if full_size else 64,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": 16 if is_two else 12,
        "num_hidden_layers": (23 if is_two else 12) if full_size else 1,
        "pad_token_id": 1,
        "projection_dim": 512 if is_two else 768,
        "vocab_size": 49408 if full_size else 516,
    }
    scheduler = {
        "_class_name": "PNDMScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
    }
    return unet, vae, text, scheduler


def _xl_configs(
    full_size: bool,
    unet: dict[str, Any],
    vae: dict[str, Any],
    text: dict[str, Any],
    scheduler: dict[str, Any],
) -> dict[str, Any]:
    """Make those of 1.x those of XL's base, and return that of its second text encoder."""
    cross = "CrossAttn"
    unet |= {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "attention_head_dim": [5, 10, 20] if full_size else [1, 2, 4],
        "block_out_channels": [320, 640, 1280] if full_size else [16, 32, 64],
        "cross_attention_dim": 2048,
        "down_block_types": ["DownBlock2D", *[f"{cross}DownBlock2D"] * 2],
        "projection_class_embeddings_input_dim": 2816,
        "sample_size": 128 if full_size else 8,
        "transformer_layers_per_block": [1, 2, 10] if full_size else [1, 2, 3],
        "up_block_types": [*[f"{cross}UpBlock2D"] * 2, "UpBlock2D"],
        "use_linear_projection": True,
    }
    vae |= {"force_upcast": True, "sample_size": 1024, "scaling_factor": 0.13025}
    text |= {"num_hidden_layers": 12 if full_size else 2}
    scheduler |= {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}
    return {
        **text,
        "architectures": ["CLIPTextModelWithProjection"],
        "hidden_act": "gelu",
        "hidden_size": 1280,
        "intermediate_size": 5120 if full_size else 64,
        "num_attention_heads": 20,
        "num_hidden_layers": 32 if full_size else 2,
        "projection_dim": 1280,
    }


@pytest.fixture(scope="session")
def make_xl_headers() -> Callable[[Path], Path]:
    """A function that writes a pair of the published sizes of XL whose weights are holes.

    Files are sparse: headers say the shapes, and no block of the disk holds the numbers.
    """

    def make(folder: Path) -> Path:
        import torch
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        from bootpig_rt.bundle.pair_config import PairConfig

        unet, vae, text, scheduler = _sd_configs("1.x", True)
        text_2 = _xl_configs(True, unet, vae, text, scheduler)
        build_unet: Any = UNet2DConditionModel
        build_vae: Any = AutoencoderKL
        with torch.device("meta"):
            modules = {
                "base_unet": (build_unet(**unet), unet),
                "vae": (build_vae(**vae), vae),
                "text_encoder": (CLIPTextModel(CLIPTextConfig(**text)), text),
                "text_encoder_2": (CLIPTextModelWithProjection(CLIPTextConfig(**text_2)), text_2),
            }
        for name, (module, config) in modules.items():
            (folder / name).mkdir(parents=True)
            (folder / name / "config.json").write_text(json.dumps(config))
            stem = "model" if name.startswith("text") else "diffusion_pytorch_model"
            _write_holes(folder / name / f"{stem}.safetensors", module)
        (folder / "scheduler").mkdir()
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
        pair = PairConfig(name="xl", sample_size_px=1024, shared_unet=True)
        (folder / "pair.json").write_text(pair.to_json())
        return folder

    return make


def _write_holes(path: Path, module: Any) -> None:
    """A safetensors file in float16 with the shapes of a module and nothing behind its header."""
    header, end = {}, 0
    for name, tensor in module.state_dict().items():
        size = 2 * tensor.numel()
        header[name] = {
            "dtype": "F16",
            "shape": list(tensor.shape),
            "data_offsets": [end, end + size],
        }
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)


def _write_random_module(
    folder: Path, module: Any, config: dict[str, Any], generator: Any, dtype: Any
) -> None:
    """Weights of about the size that keeps activations near one: norms 1, biases 0."""
    import torch
    from safetensors.torch import save_file

    tensors = {}
    for name, meta in module.state_dict().items():
        is_attention = ".attentions." in name and folder.name == "vae"
        if meta.dim() < 2:
            tensor = torch.full(meta.shape, float(name.endswith("weight")), dtype=dtype)
        else:
            tensor = torch.empty(meta.shape).normal_(generator=generator)
            tensor = (tensor / meta[0].numel() ** 0.5).to(dtype)
        if is_attention:  # published autoencoders are older than today's names
            for today, old in _OLD_VAE_NAMES.items():
                name = name.replace(today, old)
        prefix = "text_model." if folder.name == "text_encoder" else ""
        tensors[name if name.startswith(prefix) else prefix + name] = tensor
    stem = "model" if folder.name.startswith("text_encoder") else "diffusion_pytorch_model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    save_file(tensors, folder / f"{stem}.safetensors", metadata={"format": "pt"})


_OLD_VAE_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


class MakeLora(Protocol):
    """`make_lora(path, folder, ...)`, see the fixture."""

    def __call__(
        self,
        path: Path,
        folder: Path,
        *,
        layout: str = ...,
        modules: str = ...,
        rank: int = ...,
        alpha: float | None = ...,
        seed: int = ...,
    ) -> dict[str, Any]: ...


@pytest.fixture(scope="session")
def make_lora() -> MakeLora:
    """A function that writes a random LoRA of a pair in one of the layouts that there are.

    `modules` is a regular expression of `part/module`, the part `base_unet` or `text_encoder`.
    Returns by `part/module` what is added to its weight at scale 1.
    """

    def make(
        path: Path,
        folder: Path,
        *,
        layout: str = "kohya",
        modules: str = r"base_unet/.*(attn[12]\.to_[kv]|to_out\.0|net\.2|conv1|proj_in)"
        r"|text_encoder/.*(q_proj|fc1)",
        rank: int = 2,
        alpha: float | None = None,
        seed: int = 0,
    ) -> dict[str, Any]:
        import torch
        from safetensors.torch import load_file, save_file

        generator = torch.Generator().manual_seed(seed)
        tensors: dict[str, Any] = {}
        changes: dict[str, Any] = {}
        for weights in sorted(folder.glob("*/*.safetensors")):
            if weights.parent.name not in ("base_unet", "text_encoder"):
                continue
            for name, weight in sorted(load_file(weights).items()):
                module = name.removesuffix(".weight")
                if module == name or not re.fullmatch(modules, f"{weights.parent.name}/{module}"):
                    continue
                down = torch.randn((rank, *weight.shape[1:]), generator=generator)
                up = torch.randn((weight.shape[0], rank), generator=generator) / 10
                change = (up @ down.flatten(1)).reshape(weight.shape)
                if weight.dim() == 4:
                    up = up[..., None, None]
                keys = _LORA_KEYS[layout](weights.parent.name, module)
                tensors |= {keys[0]: down, keys[1]: up.contiguous()}
                if alpha is not None and len(keys) == 3:
                    tensors[keys[2]] = torch.tensor(alpha)
                changes[f"{weights.parent.name}/{module}"] = change * (
                    1.0 if alpha is None else alpha / rank
                )
        metadata = {"format": "pt"}
        if layout == "diffusers" and alpha is not None:
            settings = {"unet.lora_alpha": alpha, "text_encoder.lora_alpha": alpha}
            metadata["lora_adapter_metadata"] = json.dumps(settings)
        save_file(tensors, path, metadata=metadata)
        if layout == "peft":
            settings = {"r": rank, "lora_alpha": rank if alpha is None else alpha}
            (path.parent / "adapter_config.json").write_text(json.dumps(settings))
        return changes

    return make


def _kohya_keys(part: str, module: str) -> list[str]:
    name = f"{'lora_unet' if part == 'base_unet' else 'lora_te'}_{module.replace('.', '_')}"
    return [f"{name}.lora_down.weight", f"{name}.lora_up.weight", f"{name}.alpha"]


def _diffusers_keys(part: str, module: str) -> list[str]:
    name = f"{'unet' if part == 'base_unet' else part}.{module}"
    return [f"{name}.lora_A.weight", f"{name}.lora_B.weight"]


def _old_diffusers_keys(part: str, module: str) -> list[str]:
    name = f"{'unet' if part == 'base_unet' else part}.{module}"
    if ".attn" in name:
        name = re.sub(r"\.(to_\w+)(\.0)?$", r".processor.\1_lora", name)
        return [f"{name}.down.weight", f"{name}.up.weight", f"{name}.alpha"]
    kind = "lora" if part == "base_unet" else "lora_linear_layer"
    return [f"{name}.{kind}.down.weight", f"{name}.{kind}.up.weight", f"{name}.alpha"]


def _peft_keys(part: str, module: str) -> list[str]:
    name = f"base_model.model.{module}"
    return [f"{name}.lora_A.weight", f"{name}.lora_B.weight"]


_LORA_KEYS = {
    "kohya": _kohya_keys,
    "diffusers": _diffusers_keys,
    "old diffusers": _old_diffusers_keys,
    "peft": _peft_keys,
}


def drawing(colour: str, shape: str) -> Image.Image:
    """A coloured shape, cut out, RGBA 48 x 40."""
    image = Image.new("RGBA", (48, 40))
    draw = ImageDraw.Draw(image)
    (draw.ellipse if shape == "round" else draw.rectangle)((6, 4, 40, 34), fill=colour)
    return image


@pytest.fixture(scope="session")
def pipeline(tiny_pair_folder: Path) -> Pipeline:
    """The tiny pair on the CPU, in torch. Shared: it holds no state of a call."""
    from bootpig_rt.pipeline import Pipeline

    return Pipeline(tiny_pair_folder, backend="torch", device="cpu")


@pytest.fixture
def exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in float32 on a GPU, where torch takes TF32 unless it is told not to."""
    import torch

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="session")
def red() -> Image.Image:
    """A reference image."""
    return drawing("red", "round")


@pytest.fixture(scope="session")
def blue() -> Image.Image:
    """Another reference image."""
    return drawing("blue", "square")


@pytest.fixture(scope="session")
def green() -> Image.Image:
    """A third reference image."""
    return drawing("green", "round")


@pytest.fixture(scope="session")
def dog(pipeline: Pipeline, red: Image.Image) -> Subject:
    """A subject of one reference image."""
    return pipeline.encode_subject(red, "a photo of a dog")


@pytest.fixture(scope="session")
def cat(pipeline: Pipeline, blue: Image.Image, green: Image.Image) -> Subject:
    """A subject of two reference images."""
    return pipeline.encode_subject([blue, green], "a photo of a cat")


@pytest.fixture
def dog_file(tmp_path: Path, red: Image.Image) -> Path:
    """The first reference image as a file."""
    path = tmp_path / "dog.png"
    red.save(path)
    return path


@pytest.fixture(scope="session")
def make_certificates(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., tuple[Path, Path, Path]]:
    """A function that makes a root and a certificate from it, for signing pictures.

    It returns the files of chain, private key and root. `kind` is that of the key, `days` when the
    certificate begins and ends, `usage` its extended key usage.
    """
    pytest.importorskip("cryptography", reason="the extra `provenance` is not installed")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    kinds: dict[str, Callable[[], Any]] = {
        "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "p521": lambda: ec.generate_private_key(ec.SECP521R1()),
        "k256": lambda: ec.generate_private_key(ec.SECP256K1()),
        "rsa": lambda: rsa.generate_private_key(65537, 2048),
        "ed25519": ed25519.Ed25519PrivateKey.generate,
    }
    usages = {"email": ExtendedKeyUsageOID.EMAIL_PROTECTION, "web": ExtendedKeyUsageOID.SERVER_AUTH}
    now = datetime.now(UTC)
    root_key = kinds["p256"]()

    def certificate(key: Any, name: str, days: tuple[float, float], *, is_root: bool) -> Any:
        subject, issuer = (
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)])
            for each in (name, "Test Root")
        )
        signs = dict.fromkeys(
            "content_commitment key_encipherment data_encipherment key_agreement encipher_only "
            "decipher_only".split(),
            False,
        )
        use = x509.KeyUsage(
            digital_signature=not is_root, key_cert_sign=is_root, crl_sign=is_root, **signs
        )
        return (
            x509.CertificateBuilder(issuer, subject, key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=days[0]))
            .not_valid_after(now + timedelta(days=days[1]))
            .add_extension(x509.BasicConstraints(is_root, None), critical=True)
            .add_extension(use, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), False
            )
        )

    root = certificate(root_key, "Test Root", (-999, 999), is_root=True)
    root = root.sign(root_key, hashes.SHA256())
    pem = serialization.Encoding.PEM

    def make(
        name: str = "Test Signer",
        *,
        kind: str = "p256",
        days: tuple[float, float] = (-1, 90),
        usage: str = "email",
    ) -> tuple[Path, Path, Path]:
        key = kinds[kind]()
        leaf = certificate(key, name, days, is_root=False)
        leaf = leaf.add_extension(x509.ExtendedKeyUsage([usages[usage]]), critical=False)
        folder = tmp_path_factory.mktemp("certificates")
        chain, key_file, root_file = folder / "chain.pem", folder / "key.pem", folder / "root.pem"
        root_file.write_bytes(root.public_bytes(pem))
        signed = leaf.sign(root_key, hashes.SHA256())
        chain.write_bytes(signed.public_bytes(pem) + root.public_bytes(pem))
        form = serialization.PrivateFormat.TraditionalOpenSSL
        if kind == "ed25519":
            form = serialization.PrivateFormat.PKCS8
        key_file.write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
        return chain, key_file, root_file

    return make
