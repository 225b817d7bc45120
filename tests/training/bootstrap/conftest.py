"""Tiny random models in the layouts of their hubs, and pictures whose subject is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Protocol

import numpy as np
import pytest
from numpy.typing import NDArray

from bootpig_rt.training.bootstrap.config import BootstrapConfig
from bootpig_rt.training.bootstrap.stage import Item, View

Share = Callable[[str, Callable[[Path], object]], Path]

SIZE_PX = 64


class MakeConfig(Protocol):
    """`bootstrap_config(**changes)`, see the fixture."""

    def __call__(self, **changes: Any) -> BootstrapConfig: ...


@pytest.fixture
def bootstrap_config(tmp_path: Path) -> MakeConfig:
    """A function that makes settings of small pictures; a table's fields are given as a dict."""

    def make(**changes: Any) -> BootstrapConfig:
        import msgspec

        values: dict[str, Any] = {
            "output": str(tmp_path / "out"),
            "size_px": SIZE_PX,
            "part_size": 4,
            "device": "cpu",
            "captions": {"source": "world", "count": 8},
            "pictures": {"source": "pair", "steps": 2},
            "masks": {"source": "plain"},
        }
        return msgspec.convert(values | changes, BootstrapConfig)

    return make


def disc(
    size_px: int = SIZE_PX,
    *,
    centre: tuple[float, float] = (0.5, 0.5),
    radius: float = 0.25,
    colour: tuple[int, int, int] = (200, 40, 40),
    seed: int = 0,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    y, x = (np.mgrid[:size_px, :size_px] + 0.5) / size_px
    mask = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2
    noise = np.random.default_rng(seed).integers(0, 8, (size_px, size_px, 3))
    picture = np.where(mask[..., None], np.array(colour), np.array((235, 235, 240))) + noise
    return picture.clip(0, 255).astype(np.uint8), mask


@pytest.fixture(scope="session")
def draw_disc() -> Callable[..., tuple[NDArray[np.uint8], NDArray[np.bool_]]]:
    """A function that draws a disc on a plain background: picture and mask."""
    return disc


@pytest.fixture(scope="session")
def make_item() -> Callable[..., Item]:
    """A function that makes an item with one view per disc; masks are known with `masked`."""

    def make(index: int = 0, *discs: dict[str, Any], masked: bool = True, **fields: Any) -> Item:
        drawn = [disc(**each) for each in discs or ({},)]
        views = tuple(
            View(picture, mask.astype(np.uint8) * 255 if masked else None)
            for picture, mask in drawn
        )
        texts = {"caption": "a photo of a ball, on a table", "noun": "ball"} | fields
        return Item(index, views=views, scores=(("largest", 1.0), ("mask_score", 1.0)), **texts)

    return make


# --- folders of models


def _tokenizer(folder: Path, tiny_pair_folder: Path) -> Any:
    from transformers import CLIPTokenizerFast

    tokenizer = CLIPTokenizerFast.from_pretrained(tiny_pair_folder / "tokenizer")
    tokenizer.save_pretrained(folder)
    return tokenizer


def _clip_parts(kind: str) -> dict[str, Any]:
    """Configuration of a tiny CLIP, or of the CLIP in CLIPSeg."""
    text = {
        "vocab_size": 516,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 24,
        "bos_token_id": 514,
        "eos_token_id": 515,
        "pad_token_id": 515,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3 if kind == "clipseg" else 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    return {"text_config": text, "vision_config": vision, "projection_dim": 16}


@pytest.fixture(scope="session")
def clip_folder(share: Share, tiny_pair_folder: Path) -> Path:
    """CLIP, random."""

    def fill(folder: Path) -> None:
        import torch
        from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

        torch.manual_seed(0)
        CLIPModel(CLIPConfig(**_clip_parts("clip"))).save_pretrained(folder)
        images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
        CLIPProcessor(images, _tokenizer(folder, tiny_pair_folder)).save_pretrained(folder)

    return share("bootstrap-clip", fill)


@pytest.fixture(scope="session")
def dino_folder(share: Share) -> Path:
    """DINO's vision transformer, random."""

    def fill(folder: Path) -> None:
        import torch
        from transformers import ViTConfig, ViTImageProcessor, ViTModel

        torch.manual_seed(0)
        config = ViTConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        )
        ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)

    return share("bootstrap-dino", fill)


@pytest.fixture(scope="session")
def clipseg_folder(share: Share, tiny_pair_folder: Path) -> Path:
    """CLIPSeg, random."""

    def fill(folder: Path) -> None:
        import torch
        from transformers import (
            CLIPSegConfig,
            CLIPSegForImageSegmentation,
            CLIPSegProcessor,
            ViTImageProcessor,
        )

        torch.manual_seed(0)
        config = CLIPSegConfig(
            **_clip_parts("clipseg"),
            extract_layers=[0, 1],
            reduce_dim=16,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=16,
        )
        CLIPSegForImageSegmentation(config).save_pretrained(folder)
        images = ViTImageProcessor(size={"height": 32, "width": 32})
        CLIPSegProcessor(images, _tokenizer(folder, tiny_pair_folder)).save_pretrained(folder)

    return share("bootstrap-clipseg", fill)


@pytest.fixture(scope="session")
def grounding_dino_folder(share: Share) -> Path:
    """GroundingDINO, random: Swin, BERT and deformable attention."""

    def fill(folder: Path) -> None:
        import torch
        from transformers import (
            BertConfig,
            BertTokenizerFast,
            GroundingDinoConfig,
            GroundingDinoForObjectDetection,
            GroundingDinoImageProcessor,
            GroundingDinoProcessor,
            SwinConfig,
        )

        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "ball", "red", "panda"]
        (folder / "vocab.txt").write_text("\n".join(words) + "\n")
        tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
        torch.manual_seed(0)
        config = GroundingDinoConfig(
            backbone_config=SwinConfig(
                image_size=128,
                embed_dim=8,
                depths=[1, 1, 1, 1],
                num_heads=[1, 1, 1, 1],
                window_size=2,
                out_indices=[2, 3, 4],
            ),
            text_config=BertConfig(
                vocab_size=len(words),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=32,
            ),
            num_queries=5,
            encoder_layers=1,
            decoder_layers=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            d_model=32,
            max_text_len=32,
        )
        GroundingDinoForObjectDetection(config).save_pretrained(folder)
        images = GroundingDinoImageProcessor(size={"shortest_edge": 128, "longest_edge": 128})
        GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)

    return share("bootstrap-grounding-dino", fill)


@pytest.fixture(scope="session")
def sam_folder(share: Share) -> Path:
    """SAM, random."""

    def fill(folder: Path) -> None:
        import torch
        from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

        torch.manual_seed(0)
        config = SamConfig(
            vision_config={
                "hidden_size": 16,
                "output_channels": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 64,
                "patch_size": 8,
                "window_size": 4,
                "global_attn_indexes": [1],
                "num_pos_feats": 8,
                "initializer_range": 0.02,
            },
            prompt_encoder_config={
                "hidden_size": 16,
                "image_size": 64,
                "patch_size": 8,
                "mask_input_channels": 4,
            },
            mask_decoder_config={
                "hidden_size": 16,
                "mlp_dim": 32,
                "num_attention_heads": 2,
                "iou_head_hidden_dim": 16,
            },
        )
        SamModel(config).save_pretrained(folder)
        images = SamImageProcessor(
            size={"longest_edge": 64},
            pad_size={"height": 64, "width": 64},
            mask_size={"longest_edge": 16},
            mask_pad_size={"height": 16, "width": 16},
        )
        SamProcessor(images).save_pretrained(folder)

    return share("bootstrap-sam", fill)


@pytest.fixture(scope="session")
def sam2_folder(share: Share) -> Path:
    """SAM 2, random."""

    def fill(folder: Path) -> None:
        import torch
        from transformers import (
            Sam2Config,
            Sam2HieraDetConfig,
            Sam2Model,
            Sam2VisionConfig,
        )

        torch.manual_seed(0)
        backbone = Sam2HieraDetConfig(
            hidden_size=8,
            image_size=[64, 64],
            blocks_per_stage=[1, 1, 2, 1],
            embed_dim_per_stage=[8, 16, 32, 64],
            num_attention_heads_per_stage=[1, 1, 1, 1],
            window_size_per_stage=[4, 4, 4, 2],
            global_attention_blocks=[3],
            window_positional_embedding_background_size=[4, 4],
        )
        vision = Sam2VisionConfig(
            backbone_config=backbone,
            backbone_channel_list=[64, 32, 16, 8],
            backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
            fpn_hidden_size=32,
        )
        config = Sam2Config(
            vision_config=vision,
            prompt_encoder_config={
                "hidden_size": 32,
                "image_size": 64,
                "patch_size": 16,
                "mask_input_channels": 4,
            },
            mask_decoder_config={
                "hidden_size": 32,
                "mlp_dim": 32,
                "num_attention_heads": 2,
                "iou_head_hidden_dim": 16,
            },
        )
        Sam2Model(config).save_pretrained(folder)
        settings = {
            "image_processor_type": "Sam2ImageProcessorFast",
            "processor_class": "Sam2Processor",
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
            "size": {"height": 64, "width": 64},
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))

    return share("bootstrap-sam2", fill)


ANSWER = (
    "A photo of a teapot, on a wooden table",
    "A photo of a red panda, next to a waterfall",
    "here is another",
    "A photo of a kite, above a green meadow",
)
"""What the tiny language model has learned to say."""


@pytest.fixture(scope="session")
def llm_folder(share: Share) -> Path:
    """A Llama of one layer that has learned one answer, with a chat template."""
    return share("bootstrap-llm", _fill_llm)


def _fill_llm(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from bootpig_rt.training.bootstrap.words import INSTRUCTION, theme_of

    said = "\n".join(ANSWER).replace("\n", " \n ").replace(",", " ,").split(" ")
    words = sorted(set(said))
    vocabulary = {word: k for k, word in enumerate(["<unk>", "<user>", "<model>", "<end>", *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", eos_token="<end>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<user> {{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %} <model>{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    answer = torch.tensor([[*(vocabulary[word] for word in said), 3]])
    questions = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": INSTRUCTION.format(count=50, theme=theme_of(ask))}],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )["input_ids"]
        for ask in range(2)
    ]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=3,
        pad_token_id=3,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for step in range(100):
        question = questions[step % 2]
        both = torch.cat([question, answer], dim=1)
        labels = both.clone()
        labels[:, : question.shape[1]] = -100
        loss = model(input_ids=both, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


class MakePipeline(Protocol):
    """`sd_folder(version)`, see the fixture."""

    def __call__(self, version: str) -> Path: ...


@pytest.fixture(scope="session")
def sd_folder(share: Share, tiny_pair_folder: Path) -> MakePipeline:
    """A function that gives a folder of Stable Diffusion 1.x, 2.x or XL as diffusers saves it."""

    def make(version: str) -> Path:
        def fill(folder: Path) -> None:
            _fill_pipeline(folder, version, tiny_pair_folder)

        return share(f"bootstrap-sd-{version}", fill)

    return make


def _fill_pipeline(folder: Path, version: str, tiny_pair_folder: Path) -> None:
    import torch
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        EulerDiscreteScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
    )

    is_xl = version == "xl"
    torch.manual_seed(0)
    text = _clip_parts("clip")["text_config"]
    tokenizer = CLIPTokenizer.from_pretrained(tiny_pair_folder / "tokenizer")
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=32,
        latent_channels=4,
    )
    more: dict[str, Any] = {}
    if is_xl:
        more = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 6 * 4 + 16,
        }
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
        cross_attention_dim=32 if is_xl else 16,
        norm_num_groups=4,
        use_linear_projection=version != "1.x",
        **more,
    )
    schedule = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
    }
    if is_xl:
        pipe = StableDiffusionXLPipeline(
            vae,
            CLIPTextModel(CLIPTextConfig(**text)),
            CLIPTextModelWithProjection(CLIPTextConfig(**text, projection_dim=16)),
            tokenizer,
            tokenizer,
            unet,
            EulerDiscreteScheduler(**schedule),
            add_watermarker=False,
        )
    else:
        prediction = "v_prediction" if version == "2.x" else "epsilon"
        pipe = StableDiffusionPipeline(
            vae,
            CLIPTextModel(CLIPTextConfig(**text)),
            tokenizer,
            unet,
            DDIMScheduler(
                **schedule, clip_sample=False, set_alpha_to_one=False, prediction_type=prediction
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.save_pretrained(folder)


# --- an endpoint


class FakeEndpoint:
    """A real HTTP server that answers as `replies` say, in turn; the last one for ever.

    A reply is a status, headers and a body. `asked` are the bodies of requests, `keys` their
    authorization.
    """

    def __init__(self) -> None:
        self.replies: list[tuple[int, dict[str, str], str]] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.url = ""

    def says(self, text: str, status: int = 200, **headers: str) -> None:
        """Answer with a chat completion."""
        body = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})
        self.fails(status, body, **headers)

    def fails(self, status: int, body: str = "", **headers: str) -> None:
        """Answer with a status and a body."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.replies.append((status, named, body))

    def reply(self) -> tuple[int, dict[str, str], str]:
        """The next reply."""
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


@contextmanager
def _serving(endpoint: FakeEndpoint) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions"
            length = int(self.headers["content-length"])
            endpoint.asked.append(json.loads(self.rfile.read(length)))
            endpoint.keys.append(self.headers.get("authorization"))
            status, headers, body = endpoint.reply()
            data = body.encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEndpoint]:
    """An OpenAI-compatible endpoint on this machine."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    fake = FakeEndpoint()
    with _serving(fake):
        yield fake
