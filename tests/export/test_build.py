"""`build_engine` end to end: what ends up where, and every way in which it can fail.

Most tests replace the exporter by one that writes a one-node graph, and the comparison by its
verdict: they are about folders. One slow test builds a pair for real.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from bootpig_rt.bundle import Profile, is_bundle, open_bundle
from bootpig_rt.config import MAX_STEPS
from bootpig_rt.errors import (
    BackendUnavailable,
    BootPIGError,
    BundleError,
    CheckpointError,
    ParameterError,
    ParityError,
    StorageError,
)
from bootpig_rt.export import gate, onnx_export, targets
from bootpig_rt.export.build import build_engine, graph_names
from bootpig_rt.export.build_options import BuildOptions, build_options, size_multiple_px
from bootpig_rt.export.estimate import estimate
from bootpig_rt.export.gate import GateRun
from bootpig_rt.export.stage_pair import pair_files
from bootpig_rt.manifest import ParityReport, ParityResult
from bootpig_rt.models.load import load_pair
from bootpig_rt.pair_config import PairConfig, read_pair_config

SMALL = BuildOptions(
    target="cpu", precision="float32", profile=Profile((16, 16, 32), 1, 2, 2), merges=("argmax",)
)
CONFIG = PairConfig(name="tiny", sample_size_px=32, max_references=3, default_steps=20)


@pytest.fixture
def pair(tiny_pair_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_pair_folder, tmp_path / "pair")


class Stand:
    """A quick exporter and gate, and what they were asked for."""

    def __init__(self) -> None:
        self.exported: list[str] = []
        self.before: Callable[[str], object] = lambda _name: None
        self.status: Any = "passed"

    def export(self, name: str, _pair: Any, folder: Path, *, precision: str) -> Path:
        self.before(name)
        value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
        other = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])
        graph = helper.make_graph(
            [helper.make_node("Identity", ["x"], ["y"])], name, [value], [other]
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
        self.exported.append(name)
        return folder / f"{name}.onnx"

    def compare(
        self, folder: Path, place: gate.Place, reference: gate.Reference, *_: Any
    ) -> GateRun:
        open_bundle(folder)  # what a backend does first
        results = (ParityResult("one_reference.latents", 0.5, 1.0, None, 1e-2, None),)
        report = ParityReport(self.status, place.reason, place.backend, place.device, results)
        return GateRun(report, reference.recording)


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Stand:
    made = Stand()
    monkeypatch.setattr(onnx_export, "export_graph", made.export)
    monkeypatch.setattr(gate, "compare_backend", made.compare)
    return made


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_bundle_is_the_pair_with_its_graphs_and_a_manifest(
    pair: Path, tmp_path: Path, stand: Stand
) -> None:
    out = tmp_path / "out"
    told: list[tuple[str, float]] = []
    result = build_engine(pair, out, SMALL, progress=lambda *args: told.append(args))
    assert result.resumed == 0
    bundle = open_bundle(out)
    manifest = bundle.manifest
    assert stand.exported == list(graph_names(SMALL))
    assert {graph.name for graph in manifest.graphs} == set(graph_names(SMALL))
    assert manifest.pair.fingerprint == load_pair(pair).fingerprint == load_pair(out).fingerprint
    assert manifest.profile == SMALL.profile
    assert manifest.opset == 20
    assert manifest.parity.status == "passed"
    assert {"torch", "onnx", "onnxruntime"} <= set(manifest.tools)
    assert names(tmp_path) == ["out", "pair"]
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert told[-1] == ("done", 1.0)


def test_weights_are_stored_once(pair: Path, tmp_path: Path, stand: Stand) -> None:
    build_engine(pair, tmp_path / "out", SMALL)
    for path in pair.rglob("*.safetensors"):
        assert os.path.samefile(path, tmp_path / "out" / path.relative_to(pair))


def test_weights_are_copied_to_a_disk_that_has_no_links(
    pair: Path, tmp_path: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    build_engine(pair, tmp_path / "out", SMALL)
    path = Path("base_unet") / "diffusion_pytorch_model.safetensors"
    assert not os.path.samefile(pair / path, tmp_path / "out" / path)
    open_bundle(tmp_path / "out")


def test_a_pair_can_become_a_bundle_in_its_own_place_and_again(
    pair: Path, tmp_path: Path, stand: Stand
) -> None:
    before = load_pair(pair).fingerprint
    build_engine(pair, pair, SMALL)
    assert open_bundle(pair).manifest.pair.fingerprint == before == load_pair(pair).fingerprint
    other = BuildOptions(
        target="cpu", precision="float32", profile=Profile((16, 16, 16), 1, 1, 1), merges=()
    )
    build_engine(pair, pair, other)
    assert not (pair / "denoise_step_argmax.onnx").exists()
    open_bundle(pair)
    assert names(tmp_path) == ["pair"]


def test_the_published_layout_becomes_one_folder(
    published_layout_folder: Path, tmp_path: Path, stand: Stand
) -> None:
    base = published_layout_folder.parent / "base_model"
    build_engine(published_layout_folder, tmp_path / "out", SMALL, base_model=base)
    bundle = open_bundle(tmp_path / "out")
    assert load_pair(tmp_path / "out").fingerprint == bundle.manifest.pair.fingerprint
    assert names(tmp_path) == ["out"]


def test_a_build_is_signed(pair: Path, tmp_path: Path, stand: Stand) -> None:
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    from cryptography.hazmat.primitives import serialization as s

    key = ed25519.Ed25519PrivateKey.generate()
    private, public = tmp_path / "key.pem", tmp_path / "key.pub.pem"
    pem = s.Encoding.PEM
    private.write_bytes(key.private_bytes(pem, s.PrivateFormat.PKCS8, s.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(pem, s.PublicFormat.SubjectPublicKeyInfo))
    build_engine(pair, tmp_path / "out", SMALL, key=private)
    open_bundle(tmp_path / "out", trust=public)
    with pytest.raises(ParameterError, match="no private key"):
        build_engine(pair, tmp_path / "other", SMALL, key=public)
    assert not (tmp_path / "other").exists()


def test_a_bundle_is_replaced_only_when_asked(pair: Path, tmp_path: Path, stand: Stand) -> None:
    out = tmp_path / "out"
    build_engine(pair, out, SMALL)
    with pytest.raises(ParameterError, match="exists already.*--overwrite"):
        build_engine(pair, out, SMALL)
    (out / "manifest.json").write_text("{}")
    build_engine(pair, out, SMALL, overwrite=True)
    open_bundle(out)
    assert names(tmp_path) == ["out", "pair"]


def test_an_empty_folder_may_be_built_into(pair: Path, tmp_path: Path, stand: Stand) -> None:
    (tmp_path / "out").mkdir()
    build_engine(pair, tmp_path / "out", SMALL)
    open_bundle(tmp_path / "out")


# Failures: nothing is left but what a second build goes on from


def fail_at(stand: Stand, name: str, error: BaseException) -> None:
    def fail(current: str) -> None:
        if current == name:
            raise error

    stand.before = fail


def test_an_interrupted_build_goes_on_from_its_finished_graphs(
    pair: Path, tmp_path: Path, stand: Stand
) -> None:
    fail_at(stand, "denoise_step", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        build_engine(pair, tmp_path / "out", SMALL)
    assert names(tmp_path) == [".out.building", "pair"]
    finished = list(stand.exported)
    assert finished == ["text_encoder", "vae_encoder", "reference_kv"]
    # A graph that was cut off or changed is made again, the others are not.
    (tmp_path / ".out.building" / "graphs" / "vae_encoder.onnx").write_bytes(b"")
    stand.before, stand.exported = lambda _name: None, []
    result = build_engine(pair, tmp_path / "out", SMALL)
    assert result.resumed == 2
    assert stand.exported == ["vae_encoder", *graph_names(SMALL)[3:]]
    open_bundle(tmp_path / "out")
    assert names(tmp_path) == ["out", "pair"]


@pytest.mark.parametrize("change", ["precision", "weights"])
def test_another_order_starts_over(
    pair: Path, tmp_path: Path, stand: Stand, make_tiny_pair: Any, change: str
) -> None:
    fail_at(stand, "denoise_step", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        build_engine(pair, tmp_path / "out", SMALL)
    stand.before, stand.exported = lambda _name: None, []
    options = SMALL
    if change == "precision":
        options = BuildOptions(
            target="cpu", precision="float16", profile=SMALL.profile, merges=SMALL.merges
        )
    else:
        shutil.rmtree(pair)
        shutil.copytree(make_tiny_pair(tmp_path / "made", seed=1), pair)
    assert build_engine(pair, tmp_path / "out", options).resumed == 0
    assert stand.exported == list(graph_names(options))


def test_a_build_that_fails_before_any_graph_leaves_nothing(
    pair: Path, tmp_path: Path, stand: Stand
) -> None:
    fail_at(stand, "text_encoder", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        build_engine(pair, tmp_path / "out", SMALL)
    assert names(tmp_path) == ["pair"]


def test_a_killed_build_leaves_no_bundle_and_no_lock(pair: Path, tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from bootpig_rt.export import onnx_export\n"
        "from bootpig_rt.export.build import build_engine\n"
        "from bootpig_rt.export.work_folder import work_folder\n"
        "with work_folder(Path(sys.argv[1]), 'key') as work:\n"
        "    (work.path / 'a').write_text('x')\n"
        "    work.finish('a', {})\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    from bootpig_rt.export.work_folder import work_folder

    out = tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", code, str(out)], check=False)
    assert killed.returncode == -9
    assert not out.exists()
    with work_folder(out, "key") as work:
        assert work.finished("a") == {}
    assert names(tmp_path) == ["pair"]


def test_two_builds_into_one_folder_are_refused(pair: Path, tmp_path: Path, stand: Stand) -> None:
    out = tmp_path / "out"
    seen: list[str] = []

    def second(name: str) -> None:
        if name == "vae_encoder":
            with pytest.raises(StorageError, match="another build is writing") as caught:
                build_engine(pair, out, SMALL)
            seen.append(str(caught.value))

    stand.before = second
    build_engine(pair, out, SMALL)
    assert len(seen) == 1
    open_bundle(out)


def test_the_lock_works_where_folders_cannot_be_locked(
    pair: Path, tmp_path: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bootpig_rt.export import work_folder

    monkeypatch.setattr(work_folder, "fcntl", None)
    test_two_builds_into_one_folder_are_refused(pair, tmp_path, stand)
    assert names(tmp_path) == ["out", "pair"]


def test_parity_over_the_limit_makes_no_bundle_and_leaves_a_report(
    pair: Path, tmp_path: Path, stand: Stand
) -> None:
    stand.status = "failed"
    with pytest.raises(ParityError, match="latents .* 5.0e-01, expected at most 1e-02"):
        build_engine(pair, tmp_path / "out", SMALL)
    assert not (tmp_path / "out").exists()
    report = tmp_path / "out.parity-report"
    assert json.loads((report / "report.json").read_text())["status"] == "failed"
    assert list(report.glob("*_difference_*.png"))
    assert not is_bundle(report)


def test_parity_over_the_limit_in_place_leaves_the_pair_as_it_was(pair: Path, stand: Stand) -> None:
    stand.status = "failed"
    before = {path: path.read_bytes() for path in pair.rglob("*") if path.is_file()}
    with pytest.raises(ParityError):
        build_engine(pair, pair, SMALL)
    assert {path: path.read_bytes() for path in pair.rglob("*") if path.is_file()} == before


@contextlib.contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch, code: int, when: Callable[[str], bool]) -> Any:
    """Opening files to write fails, as on a disk that is full or was mounted read-only."""
    real_open = os.open

    def refuse(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR) and when(os.fspath(path)):
            raise OSError(code, os.strerror(code), path)
        return real_open(path, flags, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        yield


@pytest.mark.parametrize(
    ("code", "message"),
    [(errno.ENOSPC, "no space left on device.*free some space"), (errno.EROFS, "read-only file")],
)
def test_a_disk_that_refuses_is_a_clear_error_and_leaves_no_bundle(
    pair: Path,
    tmp_path: Path,
    stand: Stand,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    message: str,
) -> None:
    with (
        full_disk(monkeypatch, code, lambda path: "manifest.json" in path),
        pytest.raises(StorageError, match=f"(?i){message}") as caught,
    ):
        build_engine(pair, tmp_path / "out", SMALL)
    assert caught.value.errno == code
    assert not (tmp_path / "out").exists()
    left = [path.name for path in (tmp_path / ".out.building").rglob("*") if ".tmp" in path.name]
    assert left == []
    assert build_engine(pair, tmp_path / "out", SMALL).resumed == len(graph_names(SMALL))


def test_a_disk_that_fills_while_weights_are_copied_leaves_nothing(
    pair: Path, tmp_path: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(shutil, "copyfile", refuse)
    with pytest.raises(StorageError, match="cannot build .*free some space"):
        build_engine(pair, tmp_path / "out", SMALL)
    assert names(tmp_path) == ["pair"]


def test_a_disk_without_room_is_said_before_anything_is_written(
    pair: Path, tmp_path: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    with pytest.raises(StorageError, match="needs about .* GB, and 0.00 GB are free"):
        build_engine(pair, tmp_path / "out", SMALL)
    assert names(tmp_path) == ["pair"]


def test_a_folder_that_may_not_be_written_to_is_said_at_once(
    pair: Path, tmp_path: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorageError, match="permission denied.*may write to"):
        build_engine(pair, tmp_path / "out", SMALL)
    assert stand.exported == []


REFUSED_OUTPUTS: list[tuple[str, Callable[[Path], Path], type[BootPIGError], str]] = [
    ("no parent", lambda p: p / "none" / "out", StorageError, "no folder .*make it"),
    ("a file", lambda p: p / "file", ParameterError, "is no folder"),
    ("a folder with other things", lambda p: p / "other", ParameterError, "is no bundle"),
    ("a link", lambda p: p / "link", ParameterError, "is no folder"),
]


@pytest.mark.parametrize(
    ("place", "kind", "message"),
    [r[1:] for r in REFUSED_OUTPUTS],
    ids=[r[0] for r in REFUSED_OUTPUTS],
)
def test_an_output_that_would_lose_something_is_refused(
    pair: Path,
    tmp_path: Path,
    place: Callable[[Path], Path],
    kind: type[BootPIGError],
    message: str,
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    before = names(tmp_path)
    with pytest.raises(kind, match=message):
        build_engine(pair, place(tmp_path), SMALL)
    assert names(tmp_path) == before


def test_in_place_needs_a_folder_that_graphs_can_point_into(
    pair: Path, tmp_path: Path, stand: Stand, published_layout_folder: Path
) -> None:
    (pair / "notes.txt").touch()
    with pytest.raises(ParameterError, match="notes.txt is no file of a pair"):
        build_engine(pair, pair, SMALL)
    base = published_layout_folder.parent / "base_model"
    with pytest.raises(ParameterError, match="cannot become a bundle in its own place"):
        build_engine(published_layout_folder, published_layout_folder, SMALL, base_model=base)
    engines = BuildOptions(target="sm_89", precision="float16", profile=SMALL.profile, merges=())
    with pytest.raises(ParameterError, match="engines hold them once more"):
        build_engine(pair, pair, engines)


def test_weights_of_older_libraries_are_converted(tiny_pair_folder: Path, tmp_path: Path) -> None:
    assert pair_files(tiny_pair_folder) is not None
    copy = shutil.copytree(tiny_pair_folder, tmp_path / "pair")
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert pair_files(copy) is None


def test_a_pair_that_cannot_be_read_is_refused(pair: Path, tmp_path: Path) -> None:
    os.truncate(pair / "base_unet" / "diffusion_pytorch_model.safetensors", 1000)
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        build_engine(pair, tmp_path / "out", SMALL)
    assert names(tmp_path) == ["pair"]


# Options


ORDERS: list[tuple[dict[str, Any], str]] = [
    ({"target": "sm_90"}, "target is 'sm_90', expected one of: cpu, cuda, sm_75"),
    ({"precision": "int8"}, "precision is 'int8', expected one of: float32, float16"),
    ({"merges": ("max",)}, "merge is 'max', expected one of: argmax"),
    ({"resolution": "40"}, "holds 40, expected multiples of 16"),
    ({"resolution": "16:144"}, "holds 144, expected multiples of 16 up to 128"),
    ({"resolution": "64:32"}, "from small to large"),
    ({"resolution": "32x32"}, "--resolution is '32x32'"),
    ({"resolution": "-16"}, "--resolution is '-16'"),
    ({"resolution": "0"}, "holds 0"),
    ({"resolution": "٣٢"}, "--resolution is"),
    ({"max_batch": 0}, "--max-batch is 0"),
    ({"max_references": -1}, "--max-references is -1"),
    ({"max_steps": 1001}, "--steps is 1001"),
]


@pytest.mark.parametrize(("order", "message"), ORDERS)
def test_an_order_that_makes_no_sense_is_refused(order: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        build_options(CONFIG, size_multiple_px=16, **order)


def test_defaults_are_wide_for_graphs_and_narrow_for_engines() -> None:
    graphs = build_options(CONFIG, size_multiple_px=16)
    assert graphs.profile == Profile((16, 32, 128), 8, 3, MAX_STEPS)
    assert (graphs.precision, graphs.merges) == ("float32", ("argmax", "softmax", "mean", "concat"))
    engines = build_options(CONFIG, size_multiple_px=16, target="sm_89")
    assert engines.profile == Profile((32, 32, 32), 4, 3, 50)
    assert (engines.precision, engines.merges) == ("float16", ("argmax",))


def test_orders_are_kept() -> None:
    options = build_options(
        CONFIG,
        size_multiple_px=16,
        resolution="16:64",
        max_batch=2,
        max_references=1,
        max_steps=7,
        merges=("mean",),
    )
    assert options.profile == Profile((16, 32, 64), 2, 1, 7)
    assert options.merges == ()  # with one reference there is nothing to merge
    assert graph_names(options) == (
        "text_encoder",
        "vae_encoder",
        "reference_kv",
        "denoise_step",
        "vae_decoder",
    )


def test_a_target_whose_package_is_missing_is_refused_with_the_command(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = targets.is_installed
    monkeypatch.setattr(targets, "is_installed", lambda name: name != "onnx" and real(name))
    with pytest.raises(BackendUnavailable, match="missing onnx; pip install 'bootpig-rt\\[export"):
        build_engine(pair, tmp_path / "out", SMALL)
    assert names(tmp_path) == ["pair"]


def test_the_local_target_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "cuda_devices", lambda: ())
    with pytest.raises(BackendUnavailable, match="local cannot be built here.*GPU"):
        targets.require_buildable("local")


def test_expected_sizes_follow_from_configurations_alone(tiny_pair_folder: Path) -> None:
    config = read_pair_config(tiny_pair_folder / "pair.json")
    multiple = size_multiple_px(tiny_pair_folder, tiny_pair_folder)
    options = build_options(config, size_multiple_px=multiple, max_references=2, max_batch=1)
    names_ = graph_names(options)
    sizes = estimate(tiny_pair_folder, tiny_pair_folder, config, options, num_graphs=len(names_))
    pair = load_pair(tiny_pair_folder)
    unets: list[Any] = [pair.base.unet, pair.reference.unet, pair.vae, pair.text_encoder]
    assert sizes.parameters == sum(p.numel() for unet in unets for p in unet.parameters())
    # The largest batch has pictures of 4 times the side, two references, one picture.
    assert sizes.largest.table_bytes == 2 * 16 * sizes.usual.table_bytes
    assert sizes.largest.attention_bytes == 16**2 * sizes.usual.attention_bytes
    assert sizes.usual.weights_bytes == 4 * sizes.parameters


def test_the_expected_table_is_the_real_one(tiny_pair_folder: Path) -> None:
    import numpy as np

    from bootpig_rt.backends.torch_backend import TorchBackend

    backend = TorchBackend(load_pair(tiny_pair_folder), "cpu")
    config = backend.spec.config
    options = build_options(config, size_multiple_px=8)
    sizes = estimate(tiny_pair_folder, tiny_pair_folder, config, options, num_graphs=9)
    latents = np.zeros((sizes.table_entries, 1, 4, 8, 8), dtype=np.float32)
    timesteps = np.zeros(sizes.table_entries, dtype=np.int64)
    ids = np.zeros((1, 24), dtype=np.int64)
    made = backend.reference_kv(latents, timesteps, backend.encode_text(ids))
    assert made.size_bytes == sizes.usual.table_bytes


@pytest.mark.slow
def test_a_real_pair_is_built_checked_and_refuses_changed_weights(
    pair: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = build_engine(pair, out, SMALL)
    report = result.bundle.manifest.parity
    assert (report.status, report.backend, report.device) == ("passed", "onnxruntime", "cpu")
    assert len(report.results) > 8
    for graph in result.bundle.manifest.graphs:
        assert graph.size_bytes < 2_000_000
        onnx.load(str(out / graph.file), load_external_data=False)
    data = bytearray((out / "vae" / "diffusion_pytorch_model.safetensors").read_bytes())
    data[-1] ^= 1
    (out / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    (out / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(bytes(data))
    with pytest.raises(BundleError, match="damaged or was changed"):
        open_bundle(out)
