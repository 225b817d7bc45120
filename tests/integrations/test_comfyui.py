"""The nodes against what ComfyUI documents of its contract, with the little of it that they ask.

`test_comfyui_server.py` runs them in a real ComfyUI.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bootpig_rt.errors import ParameterError, StorageError
from bootpig_rt.images.control import Control
from bootpig_rt.images.picture import is_marked_generated, read_parameters
from bootpig_rt.pipeline import Pipeline

torch = pytest.importorskip("torch", reason="pictures travel as tensors in ComfyUI")


MAP = Image.new("L", (32, 32))


class Interrupted(Exception):
    """ComfyUI's, by its name there `InterruptProcessingException`."""


class Comfy:
    """What the nodes ask of ComfyUI, and what was told to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shown: list[tuple[int, int, Any]] = []
        self.interrupt_at: int | None = None
        self.disable_metadata = False

    def modules(self) -> dict[str, Any]:
        comfy, told = self, self.shown

        class ProgressBar:
            def __init__(self, total: int) -> None:
                self.total = total

            def update_absolute(self, value: int, total: Any = None, preview: Any = None) -> None:
                told.append((value, self.total, preview))

        def check() -> None:
            if comfy.interrupt_at is not None and told[-1][0] >= comfy.interrupt_at:
                raise Interrupted

        def save_path(prefix: str, output: str, width: int, height: int) -> Any:
            folder, name = (comfy.folder / "output" / prefix).parent, Path(prefix).name
            folder.mkdir(parents=True, exist_ok=True)
            counter = 1 + len(list(folder.glob(f"{name}_*.png")))
            return str(folder), name, counter, str(Path(prefix).parent), prefix

        packages = ("comfy", "comfy.utils", "comfy.model_management", "comfy.cli_args")
        made: dict[str, Any] = {name: ModuleType(name) for name in packages}
        made["comfy.utils"].ProgressBar = ProgressBar
        made["comfy.model_management"].throw_exception_if_processing_interrupted = check
        made["comfy.cli_args"].args = self
        for name in packages[1:]:
            setattr(made["comfy"], name.partition(".")[2], made[name])
        paths: dict[str, list[str]] = {}
        made["folder_paths"] = SimpleNamespace(
            models_dir=str(self.folder / "models"),
            add_model_folder_path=lambda name, path: paths.setdefault(name, []).append(path),
            get_folder_paths=lambda name: paths[name],
            get_output_directory=lambda: str(self.folder / "output"),
            get_save_image_path=save_path,
        )
        return made


@pytest.fixture
def comfy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Comfy:
    made = Comfy(tmp_path)
    for name, module in made.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return made


@pytest.fixture
def package(comfy: Comfy, root: Path) -> Iterator[ModuleType]:
    """Loaded from its folder under a path as its name, as ComfyUI does it."""
    name = "/comfyui/custom_nodes/bootpig_rt"
    path = root / "integrations" / "comfyui" / "__init__.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    yield module
    for loaded in [each for each in sys.modules if each.startswith(name)]:
        del sys.modules[loaded]


@pytest.fixture
def nodes(package: ModuleType) -> dict[str, Any]:
    mappings: dict[str, Any] = package.NODE_CLASS_MAPPINGS
    return mappings


def defaults_of(node: Any) -> dict[str, Any]:
    """What a new node is filled with: of each widget its default, of a list its first."""
    inputs = node.INPUT_TYPES()
    filled = {}
    for name, (kind, *rest) in {**inputs["required"], **inputs.get("optional", {})}.items():
        if isinstance(kind, list):
            filled[name] = kind[0]
        elif kind in ("STRING", "INT", "FLOAT", "BOOLEAN"):
            filled[name] = rest[0]["default"]
    return filled


@pytest.fixture
def run(nodes: dict[str, Any]) -> Iterator[Any]:
    """`run(name, **inputs)`: a node with its defaults, as the engine of ComfyUI calls it."""
    loaded = []

    def call(name: str, **inputs: Any) -> Any:
        node = nodes[f"BootPIG{name}"]
        made = getattr(node(), node.FUNCTION)(**{**defaults_of(node), **inputs})
        if name == "LoadPair":
            loaded.append(made[0])
        return made

    yield call
    for pipe in loaded:
        pipe.close()


@pytest.fixture(scope="module")
def pair(tiny_bundle_folder: Path) -> Iterator[Pipeline]:
    """What the node loads, which holds no state of a call."""
    with Pipeline(tiny_bundle_folder, backend="onnxruntime", device="cpu") as pipe:
        yield pipe


@pytest.fixture
def picture(disc: Image.Image) -> tuple[Any, Any]:
    """IMAGE and MASK of a picture, as Load Image gives them: 1 is transparent."""
    rgba = np.asarray(disc, np.float32) / 255
    return torch.from_numpy(rgba[None, ..., :3]), torch.from_numpy(1 - rgba[None, ..., 3])


@pytest.fixture
def subject(run: Any, pair: Any, picture: tuple[Any, Any]) -> Any:
    images, mask = picture
    return run("EncodeSubject", pair=pair, images=images, mask=mask)[0]


def test_each_node_has_what_the_contract_asks(package: ModuleType) -> None:
    assert package.NODE_CLASS_MAPPINGS.keys() == package.NODE_DISPLAY_NAME_MAPPINGS.keys()
    for name, node in package.NODE_CLASS_MAPPINGS.items():
        inputs = node.INPUT_TYPES()
        assert set(inputs) <= {"required", "optional", "hidden"}, name
        assert callable(getattr(node, node.FUNCTION))
        assert node.CATEGORY == "BootPIG"
        assert isinstance(node.RETURN_TYPES, tuple)
        assert node.RETURN_TYPES or node.OUTPUT_NODE
        if node.RETURN_TYPES:
            assert len(node.RETURN_NAMES) == len(node.RETURN_TYPES)
        for kind, *rest in {**inputs["required"], **inputs.get("optional", {})}.values():
            assert isinstance(kind, (str, list))
            if kind in ("INT", "FLOAT"):
                assert rest[0]["min"] <= rest[0]["default"] <= rest[0]["max"]


def test_pairs_of_the_models_folder_are_offered_by_name(
    package: ModuleType, comfy: Comfy, tiny_pair_folder: Path
) -> None:
    home = comfy.folder / "models" / "bootpig"
    home.mkdir(parents=True)
    (home / "mine").symlink_to(tiny_pair_folder)
    (home / "no pair").mkdir()
    node = package.NODE_CLASS_MAPPINGS["BootPIGLoadPair"]
    names, _ = node.INPUT_TYPES()["required"]["pair"]
    assert names == ["small pair of the package", "mine"]
    (pipe,) = node().load("mine", "torch", "cpu")
    assert pipe.spec.config.name == "tiny"
    pipe.close()


def test_a_pair_is_loaded_again_only_when_its_folder_changed(
    nodes: dict[str, Any], make_tiny_pair: Any, tmp_path: Path
) -> None:
    folder = make_tiny_pair(tmp_path / "new", shallow=True)
    asked = {**defaults_of(nodes["BootPIGLoadPair"]), "folder": str(folder)}
    changed = nodes["BootPIGLoadPair"].IS_CHANGED
    before = changed(**asked)
    assert changed(**asked) == before
    (folder / "pair.json").write_text((folder / "pair.json").read_text() + "\n")
    assert changed(**asked) != before


def test_a_wrong_folder_is_told_before_anything_runs(
    nodes: dict[str, Any], tmp_path: Path, tiny_pair_folder: Path
) -> None:
    validate = nodes["BootPIGLoadPair"].VALIDATE_INPUTS
    assert validate(folder="") is True
    assert validate(folder=str(tiny_pair_folder)) is True
    assert validate(folder=str(tmp_path)) == (
        f"{tmp_path} is no folder of a pair or a bundle (it has no pair.json)"
    )


def test_what_the_nodes_draw_is_what_the_pipeline_draws(
    run: Any, pair: Any, subject: Any, comfy: Comfy, disc: Image.Image
) -> None:
    images, parameters = run(
        "Sample", pair=pair, subject=subject, prompt="a dog, in snow", seed=5, pictures=2
    )
    result = pair(
        "a dog, in snow",
        reference_images=disc,
        reference_prompt="a photo of an owl",
        seed=5,
        num_images_per_prompt=2,
    )
    assert images.shape == (2, 32, 32, 3)
    for made, expected in zip(images, result.images, strict=True):
        assert np.array_equal((made * 255).round().numpy(), np.asarray(expected, np.float32))
    assert parameters == [one.to_dict() for one in result.parameters]


def test_a_subject_is_drawn_into_the_masked_part_alone(run: Any, pair: Any, subject: Any) -> None:
    image, mask = torch.full((1, 32, 32, 3), 0.25), torch.zeros(1, 32, 32)
    mask[:, 8:24, 8:24] = 1
    settings = {"pair": pair, "subject": subject, "prompt": "a dog", "image": image}
    images, parameters = run("Inpaint", mask=mask, **settings)
    kept, drawn = images[0][mask[0] == 0], images[0][mask[0] == 1]
    assert bool((kept == kept[0, 0]).all())
    assert bool((drawn != kept[0, 0]).any())
    assert parameters[0]["strength"] == 1
    with pytest.raises(ValueError, match="mask"):
        run("Inpaint", mask=torch.ones(1, 8, 8), **settings)


# Controls


@pytest.fixture
def controlled(run: Any, controlled_bundle_folder: Path) -> Any:
    settings = {"backend": "onnxruntime", "device": "cpu"}
    return run("LoadPair", folder=str(controlled_bundle_folder), **settings)[0]


@pytest.fixture
def slope() -> Any:
    """IMAGE of a map: near below."""
    rows = torch.linspace(0, 255, 32).round() / 255
    return rows[None, :, None, None].expand(1, 32, 32, 3).contiguous()


def test_pictures_follow_the_maps_that_were_applied(
    run: Any, controlled: Any, picture: tuple[Any, Any], slope: Any, disc: Image.Image
) -> None:
    images, mask = picture
    subject, _ = run("EncodeSubject", pair=controlled, images=images, mask=mask)
    lines = (slope > 0.5).float()
    (first,) = run("ApplyControl", image=slope, strength=0.5, end=0.6)
    (both,) = run("ApplyControl", image=lines, kind="outline", controls=first)
    settings = {"pair": controlled, "subject": subject, "prompt": "a dog", "seed": 5, "steps": 4}
    made, parameters = run("Sample", controls=both, **settings)
    result = controlled(
        "a dog",
        reference_images=disc,
        reference_prompt="a photo of an owl",
        seed=5,
        num_inference_steps=4,
        control_image={
            "depth": np.asarray(slope[0] * 255, np.uint8),
            "outline": np.asarray(lines[0] * 255, np.uint8),
        },
        control_scale={"depth": 0.5, "outline": 1.0},
        control_interval={"depth": (0.0, 0.6), "outline": (0.0, 1.0)},
    )
    (expected,) = result.images
    assert np.array_equal((made[0] * 255).round().numpy(), np.asarray(expected, np.float32))
    assert parameters == [one.to_dict() for one in result.parameters]
    plain, _ = run("Sample", **settings)
    assert not torch.equal(plain, made)


def test_a_subject_is_drawn_into_a_picture_and_follows_a_map_there(
    run: Any, controlled: Any, picture: tuple[Any, Any], slope: Any
) -> None:
    images, mask = picture
    subject, _ = run("EncodeSubject", pair=controlled, images=images, mask=mask)
    (controls,) = run("ApplyControl", image=slope)
    where = torch.zeros(1, 32, 32)
    where[:, 8:24, 8:24] = 1
    settings = {"pair": controlled, "subject": subject, "prompt": "a dog", "mask": where}
    image = torch.full((1, 32, 32, 3), 0.25)
    plain, _ = run("Inpaint", image=image, **settings)
    made, parameters = run("Inpaint", image=image, controls=controls, **settings)
    assert torch.equal(made[0][where[0] == 0], plain[0][where[0] == 0])
    assert not torch.equal(made, plain)
    assert [one["kind"] for one in parameters[0]["controls"]] == ["depth"]


def test_outlines_are_a_map_of_kind_canny(run: Any, picture: tuple[Any, Any]) -> None:
    images, _ = picture
    (lines,) = run("Outlines", images=images)
    assert lines.shape == images.shape
    assert set(lines.unique().tolist()) == {0.0, 1.0}
    (controls,) = run("ApplyControl", image=lines, kind="canny")
    assert (controls[0].kind, controls[0].size) == ("canny", (48, 40))


def test_controlnets_are_named_where_the_pair_is_loaded(
    run: Any, nodes: dict[str, Any], tiny_pair_folder: Path, controlled_pair_folder: Path
) -> None:
    net = controlled_pair_folder / "controlnet_depth"
    validate = nodes["BootPIGLoadPair"].VALIDATE_INPUTS
    assert validate(controlnets=f"near={net}; {net}") is True
    assert validate(controlnets="nowhere").startswith(
        "control is 'nowhere', expected KIND=DIR such as depth=nowhere, or a folder that is named "
        "controlnet_KIND"
    )
    assert validate(controlnets="depth") is True  # that of the package
    assert "is no ControlNet in diffusers' layout" in validate(controlnets="depth=nowhere")
    settings = {"folder": str(tiny_pair_folder), "backend": "torch", "device": "cpu"}
    (pair,) = run("LoadPair", controlnets=f"near={net}", **settings)
    assert [control.kind for control in pair.spec.controls] == ["near"]
    changed = nodes["BootPIGLoadPair"].IS_CHANGED
    asked = {"pair": "", **settings, "controlnets": f"near={net}"}
    assert changed(**asked) == changed(**asked)
    assert changed(**asked) != changed(**{**asked, "controlnets": ""})


def test_progress_has_every_step_and_previews(
    run: Any, pair: Any, subject: Any, comfy: Comfy
) -> None:
    run("Sample", pair=pair, subject=subject, prompt="dog", steps=4, preview_every=2)
    steps = [(value, preview) for value, total, preview in comfy.shown if value]
    assert [value for value, _ in steps] == [1, 2, 3, 4]
    assert {total for _, total, _ in comfy.shown} == {4}
    kinds = [None if preview is None else preview[0] for _, preview in steps]
    assert kinds.count("JPEG") == 2
    assert next(p for _, p in steps if p)[1].size == (32, 32)


def test_an_interrupt_in_the_middle_of_a_run_loses_nothing(
    run: Any, pair: Any, subject: Any, comfy: Comfy
) -> None:
    settings = {"pair": pair, "subject": subject, "prompt": "dog", "steps": 6, "pictures": 2}
    expected, _ = run("Sample", **settings)
    comfy.interrupt_at, comfy.shown[:] = 4, []
    with pytest.raises(Interrupted):
        run("Sample", **settings)
    assert comfy.shown[-1][0] == 4  # of 12: not a step more
    assert pair.engine.num_running == pair.engine.num_waiting == 0
    comfy.interrupt_at = None
    images, _ = run("Sample", **settings)
    assert torch.equal(images, expected)


def test_saved_pictures_say_what_made_them_and_bring_the_workflow_along(
    run: Any, pair: Any, subject: Any, comfy: Comfy
) -> None:
    images, parameters = run("Sample", pair=pair, subject=subject, prompt="dog", pictures=2)
    told = run(
        "Save",
        images=images,
        parameters=parameters,
        filename_prefix="sub/owl",
        prompt={"1": {"class_type": "x"}},
        extra_pnginfo={"workflow": {"nodes": ["ü"]}},
    )["ui"]["images"]
    assert [each["filename"] for each in told] == ["owl_00001_.png", "owl_00002_.png"]
    path = comfy.folder / "output" / told[1]["subfolder"] / told[1]["filename"]
    assert is_marked_generated(path)
    assert read_parameters(path) == json.loads(json.dumps(parameters[1]))
    with Image.open(path) as image:
        texts = dict(image.info)
        assert np.array_equal(np.asarray(image, np.float32), (images[1] * 255).round().numpy())
    assert json.loads(texts["workflow"]) == {"nodes": ["ü"]}
    assert json.loads(texts["prompt"]) == {"1": {"class_type": "x"}}
    comfy.disable_metadata = True
    (told_last,) = run("Save", images=images[:1], prompt={}, filename_prefix="sub/owl")["ui"][
        "images"
    ]
    with Image.open(path.with_name(told_last["filename"])) as image:
        assert "prompt" not in image.info
    assert is_marked_generated(path.with_name(told_last["filename"]))


def test_a_disk_that_fails_is_told_and_leaves_no_half_picture(
    run: Any, comfy: Comfy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match="no space left on device; free some"):
        run("Save", images=torch.zeros(1, 8, 8, 3))
    assert list((comfy.folder / "output").glob("*.png")) == []


def test_what_is_masked_is_left_out_and_what_the_pair_sees_is_shown(
    run: Any, pair: Any, picture: tuple[Any, Any]
) -> None:
    images, mask = picture
    dirty = images.clone()
    dirty[0][mask[0] == 1] = 0.5  # what lies under the transparent part does not matter
    (_, seen), (_, same) = (
        run("EncodeSubject", pair=pair, images=each, mask=mask) for each in (images, dirty)
    )
    assert seen.shape == (1, 32, 32, 3)
    assert torch.equal(seen, same)
    assert bool((seen[0, 0, 0] == 1).all())
    several, _ = run("EncodeSubject", pair=pair, images=images.repeat(3, 1, 1, 1), mask=mask)
    assert several.num_references == 3
    _, whole = run("EncodeSubject", pair=pair, images=dirty, mask=torch.zeros(1, 64, 64))
    assert not torch.equal(whole, seen)


@pytest.mark.parametrize(
    ("name", "inputs", "message"),
    [
        ("EncodeSubject", {"mask": torch.ones(1, 5, 5)}, r"the mask is \[1, 5, 5\], expected"),
        ("EncodeSubject", {"reference_prompt": " "}, "reference_prompt"),
        ("Sample", {"prompt": ""}, "prompt"),
        ("Sample", {"prompt": "dog", "width": 30}, "width is 30, expected a multiple of"),
        ("Sample", {"prompt": "dog", "reference_schedule": "soon"}, "reference schedule is 'soon'"),
        ("Save", {"parameters": []}, "0 parameters for 1 images; connect both outputs"),
        ("ApplyControl", {"start": 0.8, "end": 0.5}, "control_interval is"),
        ("ApplyControl", {"kind": "Depth Map"}, "the kind of a control is 'Depth Map'"),
        (
            "ApplyControl",
            {"image": torch.eye(3).expand(1, 8, 3, 3).repeat(1, 1, 3, 1)},
            "is in colour",
        ),
        (
            "ApplyControl",
            {"controls": (Control.load("depth", MAP),)},
            "control depth is there twice",
        ),
        ("Sample", {"prompt": "dog", "controls": (Control.load("depth", MAP),)}, "no such control"),
        ("Outlines", {"low": 300, "high": 200}, "expected low <= high"),
    ],
)
def test_bad_inputs_are_told_with_what_to_do(
    run: Any,
    pair: Any,
    subject: Any,
    picture: tuple[Any, Any],
    name: str,
    inputs: dict[str, Any],
    message: str,
) -> None:
    given: dict[str, Any] = {"images": picture[0]}
    if name == "EncodeSubject":
        given["pair"] = pair
    if name == "Sample":
        given = {"pair": pair, "subject": subject}
    if name == "ApplyControl":
        given = {"image": torch.zeros(1, 32, 32, 3)}
    with pytest.raises((ParameterError, ValueError), match=message):
        run(name, **{**given, **inputs})


WORKFLOWS = sorted(
    path
    for path in (Path(__file__).parents[2] / "integrations" / "comfyui" / "example_workflows").glob(
        "*.json"
    )
    if not path.stem.endswith("_api")
)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_both_forms_of_an_example_say_the_same_and_fit_the_nodes(
    path: Path, nodes: dict[str, Any]
) -> None:
    graph = json.loads(path.read_text())
    api = json.loads(path.with_name(f"{path.stem}_api.json").read_text())
    links = {link[0]: [str(link[1]), link[2]] for link in graph["links"]}
    kinds = {link[0]: link[5] for link in graph["links"]}
    for node in graph["nodes"]:
        asked = api[str(node["id"])]
        assert asked["class_type"] == node["type"]
        values = dict(asked["inputs"])
        for each in node["inputs"]:
            assert values.pop(each["name"]) == links[each["link"]]
            assert kinds[each["link"]] == each["type"]
        widgets = [w for w in node["widgets_values"] if w not in ("fixed", "image")]
        assert list(values.values()) == widgets
        if node["type"] in nodes:
            inputs = nodes[node["type"]].INPUT_TYPES()
            known = {**inputs["required"], **inputs.get("optional", {})}
            assert set(asked["inputs"]) <= set(known)
            assert set(inputs["required"]) <= set(asked["inputs"])
            for name, value in values.items():
                choices = known[name][0]
                assert not isinstance(choices, list) or value in choices
