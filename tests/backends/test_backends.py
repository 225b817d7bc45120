from __future__ import annotations

import hashlib
import importlib.util
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs
from PIL import Image

from bootpig_rt import backends
from bootpig_rt.backends import BACKENDS, available_backends, create_backend
from bootpig_rt.backends.base import Backend, DenoiseBatch
from bootpig_rt.backends.host_table import Precision
from bootpig_rt.backends.options import TorchOptions
from bootpig_rt.backends.pair_options import PairOptions
from bootpig_rt.bundle import bundle
from bootpig_rt.bundle.bundle import open_bundle, write_manifest
from bootpig_rt.bundle.files import check_files
from bootpig_rt.cli.main import EXTRA_OF_PACKAGE
from bootpig_rt.diffusion.solver import BatchSolver, SolverTable, solver_table
from bootpig_rt.errors import BackendUnavailable, BundleError, CheckpointError, ParameterError
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.reference.reference_pass import reference_latents
from bootpig_rt.reference.schedule import ReferenceSchedule
from bootpig_rt.reference.table_options import TableOptions
from bootpig_rt.storage.store import SubjectStore
from tests.one_backend import pipeline_over

ROWS = np.random.default_rng(0)


@pytest.fixture(scope="module")
def backend(tiny_pair_folder: Path) -> Backend:
    return create_backend("torch", tiny_pair_folder, device="cpu")


@pytest.fixture(scope="module")
def text(backend: Backend) -> Any:
    return backend.encode_text(np.arange(4 * 24, dtype=np.int64).reshape(4, 24))


def latents(*shape: int) -> np.ndarray:
    return ROWS.standard_normal(shape, dtype=np.float32)


def batch_of(backend: Backend, text: Any, solver: SolverTable, **changes: Any) -> DenoiseBatch:
    """One picture with a subject of one reference and all three rows."""
    clean = latents(1, 1, 4, 8, 8)
    table = backend.reference_kv(clean, np.array([0], dtype=np.int64), text[:1])
    fields: dict[str, Any] = {
        "state": latents(1, 1, 4, 8, 8),
        "prompt_embeds": text,
        "text_of_row": np.array([1, 1, 2]),
        "picture_of_row": np.array([0, 0, 0]),
        "ref_of_row": np.array([[-1], [0], [0]]),
        "rows_of_picture": np.array([[0], [1], [2]]),
        "image_guidance_scale": np.array([4.0], dtype=np.float32),
        "text_guidance_scale": np.array([6.5], dtype=np.float32),
        "tables": (table.data,),
        "num_references": (1,),
        "entry_of_step": np.zeros((1, solver.num_steps), np.int64),
        "solver": BatchSolver.of([solver]),
        "merge": "argmax",
    }
    return DenoiseBatch(**{**fields, **changes})


def test_a_backend_is_chosen_by_its_options(tiny_pair_folder: Path) -> None:
    chosen: Any = create_backend(TorchOptions(precision="bfloat16"), tiny_pair_folder, device="cpu")
    assert chosen.name == "torch"
    assert chosen.spec.precision == "bfloat16"


def test_what_is_no_options_object_is_refused(tiny_pair_folder: Path) -> None:
    with pytest.raises(ParameterError, match="backend is 3, expected one of: auto, torch"):
        create_backend(3, tiny_pair_folder)  # type: ignore[arg-type]


def test_an_unknown_backend_is_refused_by_name(tiny_pair_folder: Path) -> None:
    with pytest.raises(ParameterError, match=r"backend is 'jax', expected one of: auto, torch"):
        create_backend("jax", tiny_pair_folder)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cpu:0", "", None])
def test_an_unknown_device_is_refused_by_name(tiny_pair_folder: Path, device: Any) -> None:
    with pytest.raises(ParameterError, match="expected auto, cpu, cuda or cuda:N"):
        create_backend("torch", tiny_pair_folder, device=device)


def test_a_cuda_device_that_is_not_there_is_refused(tiny_pair_folder: Path) -> None:
    with pytest.raises(BackendUnavailable, match=r"device is cuda:99, but torch .* sees \d+ CUDA"):
        create_backend("torch", tiny_pair_folder, device="cuda:99")


def test_auto_says_which_backend_it_took(
    tiny_pair_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "bootpig_rt"):
        create_backend("auto", tiny_pair_folder, device="cpu")
    assert [record.getMessage() for record in caplog.records] == [
        f"backend torch on cpu, pair {tiny_pair_folder}"
    ]


def test_a_backend_by_name_is_taken_without_a_word(
    tiny_pair_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "bootpig_rt"):
        create_backend("torch", tiny_pair_folder, device="cpu")
    assert caplog.records == []


def test_the_first_error_of_a_plain_installation_names_the_extras_that_exist(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`Pipeline()` after `pip install bootpig-rt`: no backend is there."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    wanted = r'pip install "bootpig-rt\[cpu\]", or for CUDA devices: .*"bootpig-rt\[gpu\]"'
    with pytest.raises(BackendUnavailable, match=wanted):
        Pipeline()


def test_every_extra_that_is_named_exists(root: Path) -> None:
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    section = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = set(re.findall(r"^(\w+) = \[", section, re.MULTILINE))
    named = {*EXTRA_OF_PACKAGE.values()}
    for entry in BACKENDS.values():
        named |= {entry.extra, entry.cuda_extra or entry.extra}
    for folder in ("bootpig_rt", "benchmarks", "export", "kernels", "training"):
        for path in (root / folder).rglob("*.py"):
            for names in re.findall(r"bootpig-rt\[([a-z, ]+)\]", path.read_text(encoding="utf-8")):
                named |= {name.strip() for name in names.split(",")}
    assert named <= extras
    assert len(named) > 5
    # The extra `tensorrt` is TensorRT-RTX; the full one goes by its own name.
    assert EXTRA_OF_PACKAGE["tensorrt_rtx"] == "tensorrt"
    assert "tensorrt" not in EXTRA_OF_PACKAGE
    assert [name for name in section.split('"') if name.startswith("tensorrt>=")] == []


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A private and a public key."""
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    from cryptography.hazmat.primitives import serialization

    private = ed25519.Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    secret, public = tmp_path / "key.pem", tmp_path / "key.pub.pem"
    secret.write_bytes(
        private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public.write_bytes(
        private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return secret, public


@pytest.mark.parametrize("name", ["onnxruntime", "torch"])
def test_a_bundle_is_opened_and_hashed_once_with_the_key_to_trust(
    tiny_bundle_folder: Path,
    keys: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    folder = shutil.copytree(tiny_bundle_folder, tmp_path / "signed")
    write_manifest(folder, open_bundle(folder).manifest, key=keys[0])
    checked: list[Path] = []

    def check(folder: Path, manifest: Any) -> None:
        checked.append(folder)
        check_files(folder, manifest)

    monkeypatch.setattr(bundle, "check_files", check)
    pipeline = Pipeline(folder, backend=name, device="cpu", pair=PairOptions(trust=keys[1]))
    assert pipeline.spec.config.name == "tiny"
    assert checked == [folder]


@pytest.mark.parametrize("name", ["auto", "torch"])
def test_a_base_model_that_nobody_signed_is_refused_beside_a_key_to_trust(
    tiny_bundle_folder: Path, keys: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    """The signature covers the bundle alone: torch took the autoencoder of any folder."""
    folder = shutil.copytree(tiny_bundle_folder, tmp_path / "signed")
    write_manifest(folder, open_bundle(folder).manifest, key=keys[0])
    evil = shutil.copytree(tiny_bundle_folder, tmp_path / "evil")
    with pytest.raises(ParameterError, match="but nobody signed it"):
        Pipeline(
            folder, backend=name, device="cpu", pair=PairOptions(trust=keys[1], base_model=evil)
        )


def test_weights_that_are_swapped_after_the_check_are_not_used(
    tiny_bundle_folder: Path,
    keys: tuple[Path, Path],
    tmp_path: Path,
    make_tiny_pair: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = shutil.copytree(tiny_bundle_folder, tmp_path / "signed")
    write_manifest(folder, open_bundle(folder).manifest, key=keys[0])
    other = make_tiny_pair(tmp_path / "other", seed=1)
    weights = Path("vae", "diffusion_pytorch_model.safetensors")

    def swap(*arguments: Any, **options: Any) -> Any:
        found = open_bundle(*arguments, **options)
        shutil.copyfile(other / weights, folder / weights)
        return found

    monkeypatch.setattr(backends, "open_bundle", swap)
    with pytest.raises(BundleError, match="holds another pair than its manifest names"):
        Pipeline(folder, backend="torch", device="cpu", pair=PairOptions(trust=keys[1]))


@pytest.mark.parametrize("name", ["auto", "onnxruntime", "torch"])
def test_a_bundle_that_nobody_signed_is_refused_where_trust_is_demanded(
    tiny_bundle_folder: Path, keys: tuple[Path, Path], name: str
) -> None:
    with pytest.raises(BundleError, match="is not signed"):
        Pipeline(tiny_bundle_folder, backend=name, device="cpu", pair=PairOptions(trust=keys[1]))


def test_a_manifest_that_is_swapped_after_the_check_is_not_used(
    tiny_bundle_folder: Path,
    keys: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Someone replaces a graph and the manifest between the check and the loading."""
    folder = shutil.copytree(tiny_bundle_folder, tmp_path / "signed")
    signed = write_manifest(folder, open_bundle(folder).manifest, key=keys[0])

    def swap(*arguments: Any, **options: Any) -> Any:
        found = open_bundle(*arguments, **options)
        graph = folder / "vae_decoder.onnx"
        graph.write_bytes((folder / "vae_encoder.onnx").read_bytes())
        digest = hashlib.sha256(graph.read_bytes()).hexdigest()
        size = graph.stat().st_size
        manifest = signed.manifest
        manifest = structs.replace(
            manifest,
            graphs=tuple(
                structs.replace(one, sha256=digest, size_bytes=size)
                if one.file == graph.name
                else one
                for one in manifest.graphs
            ),
            files=tuple(
                structs.replace(one, sha256=digest, size_bytes=size)
                if one.path == graph.name
                else one
                for one in manifest.files
            ),
        )
        write_manifest(folder, manifest)
        return found

    monkeypatch.setattr(backends, "open_bundle", swap)
    with pytest.raises(BundleError, match="vae_decoder.onnx has changed since it was checked"):
        Pipeline(folder, backend="onnxruntime", device="cpu", pair=PairOptions(trust=keys[1]))


@pytest.fixture(scope="module")
def of_precision(tiny_pair_folder: Path) -> dict[Precision, Pipeline]:
    """The same pair in two precisions."""
    return {
        precision: Pipeline(
            tiny_pair_folder, backend=TorchOptions(precision=precision), device="cpu"
        )
        for precision in ("bfloat16", "float32")
    }


@pytest.mark.parametrize("where", ["folder", "memory"])
def test_a_table_of_another_precision_is_not_taken_from_a_store(
    of_precision: dict[Precision, Pipeline],
    tiny_pair_folder: Path,
    tmp_path: Path,
    red: Image.Image,
    where: str,
) -> None:
    """One pair, one subject, one table type: what differs is what the table was computed in."""
    folder = None if where == "memory" else tmp_path
    tables = TableOptions(dtype="float32", folder=folder)
    precisions: tuple[Precision, ...] = ("bfloat16", "float32", "bfloat16")
    shared = SubjectStore(tables)
    narrow, wide, again = (
        pipeline_over(
            of_precision[precision],
            tiny_pair_folder,
            tables=shared if where == "memory" else tables,
        )
        for precision in precisions
    )
    assert (narrow.spec.precision, wide.spec.precision) == ("bfloat16", "float32")
    subject = wide.encode_subject(red, "a photo of a dog")
    passes = []
    for one in (narrow, wide, again):
        passes.append(one("a dog", subject=subject, seed=1).reference_passes)
        one.store.flush()
    assert passes[0] > 0
    assert passes == [passes[0], passes[0], 0]


@pytest.mark.parametrize("name", ["torch", "auto"])
def test_a_missing_package_is_an_error_with_its_pip_line(
    tiny_pair_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    assert available_backends() == ()
    with pytest.raises(BackendUnavailable, match=r'pip install "bootpig-rt\[torch\]"'):
        create_backend(name, tiny_pair_folder)


def test_a_folder_that_is_no_pair_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no base_unet folder"):
        create_backend("torch", tmp_path, device="cpu")


def test_every_backend_names_a_module_that_exists() -> None:
    for entry in BACKENDS.values():
        assert importlib.util.find_spec(entry.module) is not None


def test_the_spec_describes_the_pair(backend: Backend, tiny_pair_folder: Path) -> None:
    assert backend.spec.config.name == "tiny"
    assert backend.spec.latent_channels == 4
    assert backend.spec.vae_scale_factor == 4
    assert backend.spec.size_multiple_px == 8
    assert backend.spec.tokenizer_folder == tiny_pair_folder / "tokenizer"
    assert len(backend.spec.fingerprint) == 64


def test_pictures_go_to_latents_and_back_in_shape(backend: Backend) -> None:
    encoded = backend.encode_image(np.zeros((3, 3, 32, 40), dtype=np.float32))
    assert encoded.shape == (3, 4, 8, 10)
    assert encoded.dtype == np.float32
    decoded = backend.decode(encoded)
    assert decoded.shape == (3, 3, 32, 40)
    assert decoded.dtype == np.float32


def test_encoding_a_picture_draws_no_random_numbers(backend: Backend) -> None:
    picture = latents(1, 3, 32, 32)
    np.testing.assert_array_equal(backend.encode_image(picture), backend.encode_image(picture))


def test_a_table_in_batches_equals_one_pass_for_each_entry(backend: Backend, text: Any) -> None:
    noised = latents(9, 2, 4, 8, 8)  # 18 rows: more than go through at once
    timesteps = np.arange(900, 0, -100, dtype=np.int64)
    table = backend.reference_kv(noised, timesteps, text[:2])
    assert table.num_passes == 18
    assert table.size_bytes == sum(k.nbytes + v.nbytes for k, v in table.data)
    for entry in (0, 8):
        alone = backend.reference_kv(noised[entry, None], timesteps[entry, None], text[:2])
        for (k, v), (one_k, one_v) in zip(table.data, alone.data, strict=True):
            np.testing.assert_allclose(k[entry], one_k[0], atol=1e-5)
            np.testing.assert_allclose(v[entry], one_v[0], atol=1e-5)


def test_a_step_is_guidance_and_solver_over_the_rows(backend: Backend, text: Any) -> None:
    """The step against its parts: each row alone, combined in numpy by the solver's own table."""
    solver = solver_table("unipc", backend.spec.noise_schedule, 5)
    batch = batch_of(backend, text, solver)
    no_guidance = {"image_guidance_scale": np.ones(1, np.float32)}
    no_guidance["text_guidance_scale"] = np.ones(1, np.float32)
    output_only = _table_that_returns_the_output(solver)
    sample, history = batch.state[0], solver.initial_history(batch.state[0])
    run = backend.start(batch)
    for index in range(5):
        rows = []
        for row in range(3):
            single = DenoiseBatch(
                **{
                    **vars(batch),
                    **no_guidance,
                    "state": sample[None],
                    "text_of_row": batch.text_of_row[row, None],
                    "picture_of_row": np.array([0]),
                    "ref_of_row": batch.ref_of_row[row, None],
                    "rows_of_picture": np.zeros((3, 1), np.int64),
                    "solver": BatchSolver.of([output_only]),
                }
            )
            one = backend.start(single)
            one.step(index)
            rows.append(one.state()[0])
        uncond, image, text_image = rows
        guided = uncond + 4.0 * (image - uncond) + 6.5 * (text_image - image)
        expected_estimate = solver.preview(index, sample, output=guided)
        sample, history = solver.step(index, sample, output=guided, history=history)
        run.step(index)
        np.testing.assert_allclose(run.state()[0], sample, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(run.estimate(), expected_estimate, rtol=1e-4, atol=1e-3)


def _table_that_returns_the_output(solver: SolverTable) -> SolverTable:
    matrices = np.zeros((solver.num_steps, 1, 2))
    matrices[:, 0, 1] = 1.0
    return SolverTable(
        name=solver.name,
        timesteps=solver.timesteps,
        matrices=matrices,
        x0=solver.x0,
        clip_sample_range=None,
        clip_weight=solver.clip_weight,
    )


def test_a_step_clamps_where_the_solver_does(backend: Backend, text: Any) -> None:
    solver = solver_table("ddim", backend.spec.noise_schedule, 3)
    clamped = SolverTable(
        name="ddim",
        timesteps=solver.timesteps,
        matrices=solver.matrices,
        x0=solver.x0,
        clip_sample_range=0.5,
        clip_weight=np.full(3, 0.25),
    )
    batch = batch_of(backend, text, solver)
    free, held = (
        backend.start(DenoiseBatch(**{**vars(batch), "solver": BatchSolver.of([s])}))
        for s in (solver, clamped)
    )
    free.step(0)
    held.step(0)
    change = np.clip(free.estimate(), -0.5, 0.5) - free.estimate()
    assert np.abs(change).max() > 0.1
    np.testing.assert_allclose(held.estimate(), free.estimate() + change, atol=1e-5)
    np.testing.assert_allclose(held.state()[0], free.state()[0] + 0.25 * change, atol=1e-5)


def test_a_batch_without_a_subject_runs_without_a_table(backend: Backend, text: Any) -> None:
    solver = solver_table("ddim", backend.spec.noise_schedule, 2)
    batch = batch_of(backend, text, solver)
    free = {"ref_of_row": np.full((3, 1), -1)}
    with_table = backend.start(DenoiseBatch(**{**vars(batch), **free}))
    without = backend.start(
        DenoiseBatch(**{**vars(batch), **free, "tables": (), "num_references": ()})
    )
    for run in (with_table, without):
        run.step(0)
    # Equal but for the order of sums: rows that may read a table take another path.
    np.testing.assert_allclose(with_table.state()[0], without.state()[0], rtol=1e-4, atol=1e-4)


def test_exact_equals_the_reference_computed_at_every_step(backend: Backend, text: Any) -> None:
    """A table in one pass against the published way: the Reference U-Net ahead of each step."""
    solver = solver_table("dpmpp_2m", backend.spec.noise_schedule, 5)
    clean = latents(1, 4, 8, 8)
    noised = reference_latents(
        clean,
        ReferenceSchedule("exact"),
        solver.timesteps,
        noise_seed=3,
        noise_schedule=backend.spec.noise_schedule,
    )
    whole = backend.reference_kv(noised, solver.timesteps, text[:1])
    steps = np.arange(5)[None]
    batch = batch_of(backend, text, solver, tables=(whole.data,), entry_of_step=steps)
    run = backend.start(batch)
    state = batch.state
    for index in range(5):
        run.step(index)
        one = backend.reference_kv(
            noised[index : index + 1], solver.timesteps[index : index + 1], text[:1]
        )
        alone = {
            "tables": (one.data,),
            "entry_of_step": np.zeros((1, 1), np.int64),
            "solver": BatchSolver.of([solver], starts=[index], num_steps=1),
            "state": state,
        }
        published = backend.start(DenoiseBatch(**{**vars(batch), **alone}))
        published.step(0)
        state = published.state()
    np.testing.assert_allclose(run.state(), state, rtol=1e-4, atol=1e-4)


def test_pictures_of_one_batch_may_have_solvers_and_steps_of_their_own(
    backend: Backend, text: Any
) -> None:
    """Two pictures at different steps of different solvers, against each alone."""
    ddim = solver_table("ddim", backend.spec.noise_schedule, 4)
    unipc = solver_table("unipc", backend.spec.noise_schedule, 7)
    first, second = (batch_of(backend, text, ddim) for _ in range(2))
    plain = {"ref_of_row": np.full((3, 1), -1), "tables": (), "num_references": ()}
    plain["entry_of_step"] = np.zeros((0, 3), np.int64)
    states = []
    for batch, solver, start in ((first, ddim, 1), (second, unipc, 2)):
        solo = BatchSolver.of([solver], starts=[start], num_steps=3)
        run = backend.start(DenoiseBatch(**{**vars(batch), **plain, "solver": solo}))
        for index in range(3):
            run.step(index)
        states.append(run.state())
    both = {
        "state": np.concatenate([first.state, second.state], axis=1),
        "text_of_row": np.array([1, 1, 2] * 2),
        "picture_of_row": np.array([0, 0, 0, 1, 1, 1]),
        "ref_of_row": np.full((6, 1), -1),
        "rows_of_picture": np.array([[0, 3], [1, 4], [2, 5]]),
        "image_guidance_scale": np.full(2, 4.0, np.float32),
        "text_guidance_scale": np.full(2, 6.5, np.float32),
        "solver": BatchSolver.of([ddim, unipc], starts=[1, 2], num_steps=3),
    }
    run = backend.start(DenoiseBatch(**{**vars(first), **plain, **both}))
    for index in range(3):
        run.step(index)
    together = run.state()
    np.testing.assert_allclose(together[:1, 0], states[0][:, 0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(together[:, 1], states[1][:, 0], rtol=1e-4, atol=1e-4)
    assert (together[1:, 0] == 0).all()  # the history that ddim does not keep


@pytest.mark.gpu
@pytest.mark.usefixtures("exact_convolutions")
def test_a_gpu_draws_what_the_cpu_draws(backend: Backend, tiny_pair_folder: Path) -> None:
    solver = solver_table("dpmpp_2m", backend.spec.noise_schedule, 6)
    gpu = create_backend(TorchOptions(precision="float32"), tiny_pair_folder, device="cuda")
    ids = np.arange(4 * 24, dtype=np.int64).reshape(4, 24)
    start, clean = latents(1, 1, 4, 8, 8), latents(1, 1, 4, 8, 8)
    finished = []
    for one in (backend, gpu):
        states = one.encode_text(ids)
        table = one.reference_kv(clean, np.array([0], dtype=np.int64), states[:1])
        run = one.start(batch_of(one, states, solver, state=start, tables=(table.data,)))
        for index in range(6):
            run.step(index)
        finished.append(run.state()[0])
    np.testing.assert_allclose(finished[1], finished[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("missing", [True, False], ids=["without torch", "with torch"])
def test_a_folder_that_is_not_there_is_said_ahead_of_what_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: bool
) -> None:
    if missing:
        monkeypatch.setattr(backends, "_missing", lambda entry: list(entry.packages))
    with pytest.raises(CheckpointError, match="nowhere does not exist, expected the folder"):
        create_backend("auto", tmp_path / "nowhere")
    file = tmp_path / "pair.json"
    file.write_text("{}")
    with pytest.raises(CheckpointError, match="is a file, expected the folder"):
        create_backend("auto", file)
