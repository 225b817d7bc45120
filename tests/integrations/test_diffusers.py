"""The pair as a pipeline of diffusers: both ways give one picture, and conventions hold.

Names of diffusers' common pipeline tests say what a user of it relies on; theirs are run as they
are, where a checkout of diffusers is at hand, by `test_diffusers_common.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bootpig_rt.backends.pair_options import PairOptions
from bootpig_rt.errors import CheckpointError, ImageError, ParameterError, PromptError
from bootpig_rt.pipeline import Pipeline

torch = pytest.importorskip("torch", reason="diffusers needs torch")
diffusers = pytest.importorskip("diffusers", reason="the pipeline is diffusers'")

from bootpig_rt.integrations.diffusers import BootPIGPipeline  # noqa: E402
from bootpig_rt.models.load import load_pair  # noqa: E402
from bootpig_rt.models.save import save_pair  # noqa: E402

WORDS = {"prompt": "a dog, on a beach", "reference_prompt": "a photo of a dog"}
LIMIT = 2
"""Levels of 255 that a picture of the eager way may differ from an engine's in float32."""

# diffusers makes numpy arrays of torch tensors in a way that numpy 2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def seeded(seed: int) -> Any:
    return torch.Generator().manual_seed(seed)


def levels(image: Image.Image) -> Any:
    return np.asarray(image, np.int16)


def difference(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(levels(one) - levels(other)).max())


def drawn(pipe: Any, disc: Image.Image, **settings: Any) -> Any:
    """Pictures of a call, as numpy unless it says otherwise."""
    given = {"generator": seeded(3), "output_type": "np", "ref_image": disc, **WORDS, **settings}
    return pipe(**given).images


# Both ways, and the runtime's own


@pytest.fixture(scope="module")
def runtime(tiny_bundle_folder: Path) -> Iterator[Pipeline]:
    """The tiny pair in the runtime's own pipeline."""
    with Pipeline(tiny_bundle_folder, backend="onnxruntime", device="cpu") as pipe:
        yield pipe


@pytest.mark.parametrize("schedule", ["exact", "clean", "stride:2", "window:0-0.5"])
@pytest.mark.parametrize("scheduler", ["DDIM", "DPMSolverMultistep", "UniPCMultistep"])
def test_the_eager_way_gives_the_picture_of_the_engine(
    eager: Any, runtime: Pipeline, disc: Image.Image, scheduler: str, schedule: str
) -> None:
    solver = {"DDIM": "ddim", "DPMSolverMultistep": "dpmpp_2m", "UniPCMultistep": "unipc"}
    kind = getattr(diffusers, f"{scheduler}Scheduler")
    eager.scheduler = kind.from_config(eager.scheduler.config, clip_sample=False)
    settings: dict[str, Any] = {"num_inference_steps": 4, "reference_schedule": schedule}
    mine = drawn(eager, disc, output_type="pil", **settings)[0]
    theirs = runtime(
        WORDS["prompt"],
        reference_images=disc,
        reference_prompt=WORDS["reference_prompt"],
        seed=3,
        solver=solver[scheduler],
        **settings,
    ).images[0]
    assert difference(mine, theirs) <= LIMIT


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"guidance_scale": 1.0, "txtim_guidance_scale": 1.0},
        {"guidance_scale": 5.0, "txtim_guidance_scale": 5.0, "negative_prompt": "do"},
        {"num_images_per_prompt": 3, "width": 16, "height": 64},
        {"merge": "softmax", "references": 3},
        {"merge": "argmax", "references": 2, "prompt": ["a dog, in snow", "do do"]},
    ],
    ids=["plain", "no guidance", "equal scales", "several", "softmax", "two prompts"],
)
def test_both_ways_of_the_pipeline_give_the_same_pictures(
    eager: Any, on_engine: Any, disc: Image.Image, settings: dict[str, Any]
) -> None:
    settings = dict(settings)
    images = [disc, disc.rotate(90), disc.rotate(180)][: settings.pop("references", 1)]
    settings |= {"ref_image": images, "output_type": "pil"}
    first, second = drawn(eager, disc, **settings), drawn(on_engine, disc, **settings)
    assert len(first) == len(second)
    assert max(map(difference, first, second)) <= LIMIT
    assert (
        difference(first[0], drawn(eager, disc, **{**settings, "generator": seeded(4)})[0]) > LIMIT
    )


def test_a_pair_of_two_text_encoders_draws_the_same_both_ways(
    xl_pair_folder: Path, disc: Image.Image, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"output_type": "pil", "num_inference_steps": 3, "width": 64}
    eager = BootPIGPipeline.from_pretrained(xl_pair_folder)
    engine = BootPIGPipeline.from_pretrained(xl_pair_folder, backend="torch", device="cpu")
    for pipe in (eager, engine):
        pipe.set_progress_bar_config(disable=True)
    mine, theirs = (drawn(pipe, disc, **settings)[0] for pipe in (eager, engine))
    assert difference(mine, theirs) <= LIMIT
    eager.save_pretrained(tmp_path / "saved")
    again = BootPIGPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    assert difference(drawn(again, disc, **settings)[0], mine) == 0


def test_a_tiny_autoencoder_comes_along(pair_with_tiny_folder: Path, tmp_path: Path) -> None:
    pair = save_pair(load_pair(pair_with_tiny_folder), tmp_path / "pair")
    BootPIGPipeline.from_pretrained(pair).save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["tiny_vae"] == ["diffusers", "AutoencoderTiny"]


def test_a_pair_with_patches_or_one_unet_for_both_draws_the_same_both_ways(
    make_tiny_pair: Any, patch_pair_folder: Path, disc: Image.Image, tmp_path: Path
) -> None:
    shared = make_tiny_pair(tmp_path, shared_unet=True, default_solver="ddim", shallow=True)
    for folder in (patch_pair_folder, shared):
        eager = BootPIGPipeline.from_pretrained(folder)
        assert (eager.ref_unet is None) == (folder == shared)
        engine = BootPIGPipeline.from_pretrained(folder, backend="torch", device="cpu")
        for pipe in (eager, engine):
            pipe.set_progress_bar_config(disable=True)
        one, other = (drawn(pipe, disc, output_type="pil")[0] for pipe in (eager, engine))
        engine.close()
        assert difference(one, other) <= LIMIT


def test_a_published_layout_is_drawn_by_its_modules(
    published_layout_folder: Path, disc: Image.Image
) -> None:
    rest = published_layout_folder.with_name("base_model")
    eager = BootPIGPipeline.from_pretrained(published_layout_folder, base_model=rest)
    eager.set_progress_bar_config(disable=True)
    settings: dict[str, Any] = {"num_inference_steps": 3, "output_type": "pil"}
    mine = drawn(eager, disc, **settings)[0]
    with Pipeline(
        published_layout_folder, device="cpu", pair=PairOptions(base_model=rest)
    ) as runtime:
        theirs = runtime(
            WORDS["prompt"],
            reference_images=disc,
            reference_prompt=WORDS["reference_prompt"],
            seed=3,
            num_inference_steps=3,
        ).images[0]
    assert difference(mine, theirs) <= LIMIT


# Into a picture


def test_an_engine_draws_into_a_picture_and_the_eager_way_says_that_it_does_not(
    eager: Any, on_engine: Any, disc: Image.Image
) -> None:
    given = Image.new("RGB", (32, 32), (40, 80, 120))
    mask = np.zeros((32, 32), np.float32)
    mask[8:24, 8:24] = 1
    settings: dict[str, Any] = {"image": given, "mask_image": mask, "output_type": "pil"}
    made = levels(drawn(on_engine, disc, **settings)[0])
    assert (made[mask == 0] == (40, 80, 120)).all()
    assert (made[mask == 1] != (40, 80, 120)).any()
    assert np.array_equal(
        made,
        levels(drawn(on_engine, disc, **{**settings, "mask_image": torch.from_numpy(mask)})[0]),
    )
    with pytest.raises(ParameterError, match="drawn by an engine; load the pipeline with backend"):
        drawn(eager, disc, **settings)
    with pytest.raises(ParameterError, match="mask_image is given without image"):
        drawn(on_engine, disc, mask_image=mask)


# Generators


def test_a_generator_is_the_seed_it_was_set_to_and_the_next_call_gives_another_picture(
    on_engine: Any, disc: Image.Image
) -> None:
    generator = seeded(3)
    seeds = [
        on_engine(**WORDS, ref_image=disc, generator=generator).parameters[0].seed for _ in range(2)
    ]
    again = seeded(3)
    assert seeds[0] == 3
    assert seeds[1] != 3
    assert seeds == [
        on_engine(**WORDS, ref_image=disc, generator=again).parameters[0].seed for _ in range(2)
    ]
    several = on_engine(
        **WORDS, ref_image=disc, generator=[seeded(7), seeded(5)], num_images_per_prompt=2
    )
    assert [one.seed for one in several.parameters] == [7, 5]
    one = on_engine(**WORDS, ref_image=disc, generator=seeded(7), num_images_per_prompt=2)
    assert [picture.seed for picture in one.parameters] == [7, 8]


# Names of diffusers' common tests


def test_save_load_local(eager: Any, disc: Image.Image, tmp_path: Path) -> None:
    eager.save_pretrained(tmp_path / "saved")
    again = BootPIGPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    assert np.array_equal(drawn(eager, disc), drawn(again, disc))
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert "pair" not in index
    with Pipeline(tmp_path / "saved", device="cpu") as runtime:  # and it is a pair
        assert runtime.spec.config == eager.pair_config


def test_save_load_of_an_engine_copies_the_whole_bundle(
    on_engine: Any, disc: Image.Image, tmp_path: Path
) -> None:
    on_engine.save_pretrained(tmp_path / "saved")
    again = BootPIGPipeline.from_pretrained(tmp_path / "saved", backend="auto", device="cpu")
    again.set_progress_bar_config(disable=True)
    assert np.array_equal(drawn(on_engine, disc), drawn(again, disc))
    again.close()
    with pytest.raises(ParameterError, match="exists already"):
        on_engine.save_pretrained(tmp_path / "saved")


def test_save_load_optional_components(eager: Any, disc: Image.Image, tmp_path: Path) -> None:
    eager.ref_unet = None
    alone = drawn(eager, disc)
    eager.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "ref_unet").exists()
    again = BootPIGPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    assert again.ref_unet is None
    assert np.array_equal(alone, drawn(again, disc))


def test_components_function_and_from_pipe_keep_the_settings(eager: Any, disc: Any) -> None:
    names = {"vae", "text_encoder", "tokenizer", "base_unet", "ref_unet", "scheduler"}
    more = {"text_encoder_2", "tokenizer_2", "tiny_vae", "controlnet"}
    assert set(eager.components) == names | more
    again = BootPIGPipeline.from_pipe(eager)
    again.set_progress_bar_config(disable=True)
    assert again.pair_config == eager.pair_config
    assert np.array_equal(drawn(eager, disc), drawn(again, disc))


@pytest.mark.parametrize("way", ["eager", "on_engine"])
def test_pt_np_pil_outputs_and_dict_tuple_outputs_equivalent(
    request: pytest.FixtureRequest, disc: Image.Image, way: str
) -> None:
    pipe = request.getfixturevalue(way)
    as_np, as_pt, as_pil = (
        drawn(pipe, disc, output_type=kind, num_images_per_prompt=2) for kind in ("np", "pt", "pil")
    )
    assert as_np.shape == (2, 32, 32, 3)
    assert as_pt.shape == (2, 3, 32, 32)
    assert np.array_equal(as_pt.numpy().transpose(0, 2, 3, 1), as_np)
    assert np.abs(levels(as_pil[1]) - 255 * as_np[1]).max() <= 0.51
    given = {**WORDS, "ref_image": disc, "generator": seeded(3), "output_type": "np"}
    (images,) = pipe(**given, num_images_per_prompt=2, return_dict=False)
    assert np.array_equal(images, as_np)


def test_pt_np_pil_inputs_equivalent(eager: Any, disc: Image.Image) -> None:
    on_white = Image.alpha_composite(Image.new("RGBA", disc.size, "white"), disc).convert("RGB")
    array = np.asarray(on_white, np.float32) / 255
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    kinds = [on_white, array, array[None], tensor, tensor[None], [tensor], [on_white]]
    pictures = [drawn(eager, disc, ref_image=kind) for kind in kinds]
    assert all(np.array_equal(pictures[0], other) for other in pictures[1:])
    both = drawn(eager, disc, ref_image=torch.stack([tensor, tensor.flip(-1)]))
    assert not np.array_equal(both, pictures[0])


@pytest.mark.parametrize("way", ["eager", "on_engine"])
def test_inference_batch_single_identical(
    request: pytest.FixtureRequest, disc: Image.Image, way: str
) -> None:
    pipe = request.getfixturevalue(way)
    alone = drawn(pipe, disc)
    prompts = [WORDS["prompt"], "do", "dog dog dog"]
    batch = drawn(pipe, disc, prompt=prompts, generator=[seeded(3), seeded(1), seeded(2)])
    assert np.abs(alone[0] - batch[0]).max() < 0.01


def test_to_dtype_and_karras_schedulers_draw(tiny_pair_folder: Path, disc: Image.Image) -> None:
    eager = BootPIGPipeline.from_pretrained(tiny_pair_folder)  # its own: its parts are cast
    eager.set_progress_bar_config(disable=True)
    for kind in ("EulerDiscrete", "HeunDiscrete", "DPMSolverMultistep"):
        scheduler = getattr(diffusers, f"{kind}Scheduler")
        eager.scheduler = scheduler.from_config(eager.scheduler.config, use_karras_sigmas=True)
        assert np.isfinite(drawn(eager, disc, reference_schedule="exact")).all()
    eager.to(dtype=torch.bfloat16)
    assert eager.base_unet.dtype == torch.bfloat16
    assert np.isfinite(drawn(eager, disc)).all()


def test_callback_inputs(eager: Any, disc: Image.Image) -> None:
    seen = []

    def at_the_end(pipe: Any, step: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        seen.append((step, int(t), sorted(kwargs)))
        if step == pipe.num_timesteps - 1:
            kwargs["latents"] = torch.zeros_like(kwargs["latents"])
        return kwargs

    names = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    latents = drawn(
        eager,
        disc,
        output_type="latent",
        callback_on_step_end=at_the_end,
        callback_on_step_end_tensor_inputs=names,
    )
    assert latents.shape == (1, 4, 8, 8)
    assert latents.abs().sum() == 0
    assert [step for step, _, _ in seen] == [0, 1]
    assert seen[0][1:] == (999, sorted(names))
    with pytest.raises(ParameterError, match="expected one of: latents, prompt_embeds"):
        drawn(eager, disc, callback_on_step_end_tensor_inputs=["timesteps"])


def test_callback_cfg(eager: Any, on_engine: Any, disc: Image.Image) -> None:
    def follow_closer(pipe: Any, step: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale += 1.0
        return kwargs

    plain = drawn(eager, disc, guidance_scale=2.0)
    closer = drawn(eager, disc, guidance_scale=2.0, callback_on_step_end=follow_closer)
    assert eager.guidance_scale == 2.0 + eager.num_timesteps
    assert not np.array_equal(plain, closer)
    with pytest.raises(ParameterError, match="which an engine has laid out ahead"):
        drawn(on_engine, disc, callback_on_step_end=follow_closer)
    assert np.isfinite(drawn(on_engine, disc)).all()  # and nothing is lost


def test_loading_with_variants_and_with_incorrect_variants(
    eager: Any, disc: Image.Image, tmp_path: Path
) -> None:
    eager.save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="model files of the `variant=fp16`"):
        BootPIGPipeline.from_pretrained(tmp_path / "plain", variant="fp16")
    eager.save_pretrained(tmp_path / "named", variant="fp16")
    again = BootPIGPipeline.from_pretrained(tmp_path / "named", variant="fp16")
    again.set_progress_bar_config(disable=True)
    assert np.array_equal(drawn(eager, disc), drawn(again, disc))


def test_encode_prompt_works_in_isolation(eager: Any, disc: Image.Image) -> None:
    expected = drawn(eager, disc)
    texts, negatives, reference = eager.encode_prompt(
        WORDS["prompt"], reference_prompt=WORDS["reference_prompt"]
    )
    eager.text_encoder = eager.tokenizer = None
    made = eager(
        ref_image=disc,
        prompt_embeds=texts,
        negative_prompt_embeds=negatives,
        reference_prompt_embeds=reference,
        generator=seeded(3),
        output_type="np",
    ).images
    assert np.array_equal(made, expected)


def test_latents_of_the_caller_are_drawn_from(eager: Any, disc: Image.Image) -> None:
    from bootpig_rt.engine.batch import picture_noise

    noise = torch.from_numpy(picture_noise(3, (4, 8, 8)))[None]
    assert np.array_equal(drawn(eager, disc, latents=noise, generator=None), drawn(eager, disc))
    with pytest.raises(ParameterError, match=r"latents have shape \[1, 4, 4, 4\], expected \[1, 4"):
        drawn(eager, disc, latents=noise[..., :4, :4])


# Interrupt


@pytest.mark.parametrize("way", ["eager", "on_engine"])
def test_interrupt_stops_after_the_step_and_returns_what_there_is(
    request: pytest.FixtureRequest, disc: Image.Image, way: str
) -> None:
    pipe, steps = request.getfixturevalue(way), []

    def stop(pipe: Any, step: int, t: Any, kwargs: dict[str, Any]) -> None:
        steps.append(step)
        if step == 1:
            pipe._interrupt = True

    settings: dict[str, Any] = {"num_inference_steps": 6, "num_images_per_prompt": 2}
    early = drawn(pipe, disc, **settings, callback_on_step_end=stop)
    assert steps == [0, 1]
    assert early.shape == (2, 32, 32, 3)
    whole = drawn(pipe, disc, **settings)  # a new call begins anew
    assert not pipe.interrupt
    assert not np.array_equal(early, whole)


# Bad input


def test_what_only_the_eager_way_has_is_refused_on_an_engine(
    on_engine: Any, tiny_bundle_folder: Path, disc: Image.Image
) -> None:
    for settings in (
        {"latents": torch.zeros(1, 4, 8, 8)},
        {"output_type": "latent"},
        {"callback_on_step_end_tensor_inputs": ["latents"]},
    ):
        with pytest.raises(ParameterError, match="load it without backend"):
            drawn(on_engine, disc, **settings)
    with pytest.raises(ParameterError, match="on an engine on cpu, which cannot be moved"):
        on_engine.to("cuda")
    assert on_engine.to("cpu") is on_engine
    with pytest.raises(ParameterError, match="variant is for the eager way"):
        BootPIGPipeline.from_pretrained(tiny_bundle_folder, backend="auto", variant="fp16")


def test_wrong_folders_and_pickles_are_refused(
    make_sd_folder: Any, tiny_pair_folder: Path, tmp_path: Path
) -> None:
    folder = make_sd_folder(tmp_path / "sd", "1.x")
    with pytest.raises(CheckpointError, match="'StableDiffusionPipeline', expected a pair"):
        BootPIGPipeline.from_pretrained(folder)
    with pytest.raises(CheckpointError, match="does not exist"):
        BootPIGPipeline.from_pretrained(tmp_path / "missing")
    with pytest.raises(ParameterError, match="pickles are never opened"):
        BootPIGPipeline.from_pretrained(tiny_pair_folder, use_safetensors=False)
    with pytest.raises(ParameterError, match="HF_TOKEN"):
        BootPIGPipeline.from_pretrained(tiny_pair_folder, token="secret")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"ref_image": None}, ImageError, "no reference image"),
        ({"prompt": ""}, PromptError, "prompt"),
        ({"output_type": "jpg"}, ParameterError, "output_type"),
        ({"num_inference_steps": 0}, ParameterError, "num_inference_steps"),
        ({"width": 30}, ParameterError, "width is 30, expected a multiple of"),
        ({"generator": [seeded(1)] * 3}, ParameterError, "3 generators for 1 pictures"),
        ({"generator": 7}, ParameterError, "generator is of type int"),
        ({"negative_prompt": ["a", "b"]}, ParameterError, "2 negative prompts for 1"),
        ({"merge": "sum"}, ParameterError, "merge"),
        ({"guidance_scale": float("nan")}, ParameterError, "guidance_scale"),
    ],
)
@pytest.mark.parametrize("way", ["eager", "on_engine"])
def test_bad_input_is_told_before_anything_is_drawn(
    request: pytest.FixtureRequest,
    disc: Image.Image,
    way: str,
    settings: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    pipe = request.getfixturevalue(way)
    with pytest.raises(error, match=message):
        drawn(pipe, disc, **settings)
