"""`build_engine` end to end: what ends up where, and every way in which it can fail.

Most tests replace the exporter by one that writes a one-node graph, and both sides of the
comparison by its verdict: they are about folders. One slow test builds a pair for real.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image
from safetensors import safe_open

from bootpig_rt.backends.cuda.devices import CudaDevice
from bootpig_rt.backends.tensorrt.flavours import RTX
from bootpig_rt.bundle.bundle import Manifest, Profile, is_bundle, open_bundle
from bootpig_rt.bundle.files import measure
from bootpig_rt.bundle.manifest import ParityReport, ParityResult, Target
from bootpig_rt.bundle.pair_config import PairConfig, read_pair_config
from bootpig_rt.checks import MAX_STEPS
from bootpig_rt.cli.main import main
from bootpig_rt.errors import (
    BackendUnavailable,
    BootPIGError,
    BundleError,
    CheckpointError,
    ParameterError,
    ParityError,
    StorageError,
)
from bootpig_rt.export import build, build_key, gate, onnx_export, targets, tensorrt_builder
from bootpig_rt.export.build import build_engine
from bootpig_rt.export.build_options import (
    BuildOptions,
    Weights,
    build_options,
    graph_names,
    size_multiple_px,
)
from bootpig_rt.export.build_output import check_output
from bootpig_rt.export.estimate import Estimate, estimate
from bootpig_rt.export.gate import GateRun
from bootpig_rt.export.parity import PICTURE, Recording, make_plan
from bootpig_rt.export.stage_pair import pair_files, stored_type
from bootpig_rt.export.tensorrt_builder import EngineReport
from bootpig_rt.export.tensorrt_layers import LayerReport
from bootpig_rt.export.work_folder import work_folder
from bootpig_rt.models.load import load_pair
from bootpig_rt.models.save import save_pair

SMALL = BuildOptions(
    target="cpu", precision="float32", profile=Profile((16, 16, 32), 1, 2, 2), merges=("argmax",)
)
CONFIG = PairConfig(name="tiny", sample_size_px=32, max_references=3, default_steps=20)


version_of = functools.cache(targets.version_of)
"""What is installed stays the same while tests run."""


@pytest.fixture
def pair(shallow_pair_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(shallow_pair_folder, tmp_path / "pair")


class Stand:
    """A quick exporter and gate, and what they were asked for."""

    def __init__(self) -> None:
        self.recorded: list[int] = []
        self.exported: list[str] = []
        self.built: list[str] = []
        self.compared: list[tuple[Manifest, gate.Place]] = []
        self.before: Callable[[str], object] = lambda _name: None
        self.status: Any = "passed"

    def export(self, name: str, _pair: Any, folder: Path, *, precision: str, dialect: str) -> Path:
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

    def build_engine(self, graph: Path, engine: Path, *, sm: str, **_: Any) -> EngineReport:
        self.before(f"engine {graph.stem}")
        engine.write_bytes(b"plan of " + graph.read_bytes())
        self.built.append(graph.stem)
        local = sm == "local"
        return EngineReport(
            graph=graph.stem,
            target=sm,
            runtime="tensorrt" if local else "tensorrt_rtx",
            runtime_version="1.7.1",
            size_bytes=engine.stat().st_size,
            activation_bytes=None,
            seconds=0.0,
            inputs={},
            layers=LayerReport(3, 1, 1, 0, (), ("fp32",)),
            architecture="sm_90" if local else sm,
            kernels=("ab" * 32,) if local and graph.stem == "denoise_step" else (),
        )

    def record(self, backend: Any, *, progress: Any = None, **asked: Any) -> gate.Reference:
        """The real plan, and a picture that nobody drew."""
        plan = make_plan(backend, **asked)
        self.recorded.append(plan.side_px)
        if progress is not None:
            progress("vae_encoder", 0.5)
        picture = np.zeros((1, 3, 16, 16), np.float32)
        recording: Recording = {f"{plan.cases[0].name}{PICTURE}": (picture,)}
        return gate.Reference(plan, recording, backend.spec.fingerprint)

    def compare(
        self, folder: Path, place: gate.Place, reference: gate.Reference, *_: Any, **__: Any
    ) -> GateRun:
        self.compared.append((open_bundle(folder).manifest, place))  # opened as a backend does
        results = (ParityResult("one_reference.latents", 0.5, 1.0, None, 1e-2, None),)
        report = ParityReport(self.status, place.reason, place.backend, place.device, results)
        return GateRun(report, reference.recording)


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Stand:
    made = Stand()
    monkeypatch.setattr(onnx_export, "export_graph", made.export)
    monkeypatch.setattr(gate, "record_reference", made.record)
    monkeypatch.setattr(gate, "compare_backend", made.compare)
    monkeypatch.setattr(tensorrt_builder, "build_trt_engine", made.build_engine)
    monkeypatch.setattr(targets, "version_of", version_of)
    return made


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that has this machine own GPUs of some architectures, and every package."""

    def own(*architectures: str) -> None:
        devices = tuple(
            CudaDevice(index, "a GPU", name, 80 << 30) for index, name in enumerate(architectures)
        )
        for module in (build_key, gate, targets):
            monkeypatch.setattr(module, "cuda_devices", lambda: devices)
        monkeypatch.setattr(targets, "is_installed", lambda _package: True)
        monkeypatch.setattr(type(RTX), "is_installed", lambda _flavour: True)

    return own


def engines(target: Target = "sm_89", side_px: int = 16) -> BuildOptions:
    profile = Profile((side_px, side_px, side_px), 1, 1, 2)
    return BuildOptions(target=target, precision="float16", profile=profile, merges=())


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
    assert open_bundle(tmp_path / "out").manifest.merges == SMALL.merges


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
    assert finished == ["text_encoder", "text_kv", "vae_encoder", "reference_kv"]
    # A graph that was cut off or changed is made again, the others are not.
    (tmp_path / ".out.building" / "graphs" / "vae_encoder.onnx").write_bytes(b"")
    stand.before, stand.exported = lambda _name: None, []
    result = build_engine(pair, tmp_path / "out", SMALL)
    assert result.resumed == 3
    assert stand.exported == ["vae_encoder", *graph_names(SMALL)[4:]]
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
        shutil.copytree(make_tiny_pair(tmp_path / "made", seed=1, shallow=True), pair)
    assert build_engine(pair, tmp_path / "out", options).resumed == 0
    assert stand.exported == list(graph_names(options))


def test_a_build_that_fails_before_any_graph_leaves_nothing(
    pair: Path, tmp_path: Path, stand: Stand
) -> None:
    fail_at(stand, "text_encoder", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        build_engine(pair, tmp_path / "out", SMALL)
    assert names(tmp_path) == ["pair"]


_KILLED = """
import shutil, sys, time
from pathlib import Path
from bootpig_rt.cli.main import main
from bootpig_rt.export import gate, onnx_export

def copy_graph(name, pair, folder, **_):
    if name == "denoise_step":
        print("in the middle", flush=True)
        time.sleep(100)
    shutil.copy(Path(sys.argv[1]) / f"{name}.onnx", folder)

onnx_export.export_graph = copy_graph
gate.record_reference = lambda pair, **_: gate.Reference(None, {}, pair.spec.fingerprint)
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("sent", "code"),
    [pytest.param(signal.SIGTERM, 130, marks=pytest.mark.slow), (signal.SIGKILL, -9)],
)
def test_a_killed_build_leaves_no_bundle_and_the_same_command_finishes_it(
    tiny_pair_folder: Path,
    tmp_path: Path,
    tiny_bundle_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    sent: signal.Signals,
    code: int,
) -> None:
    """Graphs are copied from a finished bundle, which takes less time than to export them."""
    pair = shutil.copytree(tiny_pair_folder, tmp_path / "pair")
    out = tmp_path / "out"
    words = ["build-engine", "--pair", str(pair), "-o", str(out), "--resolution", "32", "--json"]
    words += ["--max-references", "1", "--max-batch", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(tiny_bundle_folder), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "in the middle\n"
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    hidden = tmp_path / ".out.building"
    assert names(tmp_path) == [".out.building", "pair"]
    if sent == signal.SIGTERM:  # it could tidy up, and say what it left
        assert f"4 finished files are kept in {hidden}" in err
        assert f"rm -r {hidden}" in err
        assert err.splitlines()[-1] == "bootpig-rt: error: interrupted"
        assert {path.suffix for path in hidden.rglob("*") if path.is_file()} == {".onnx", ".json"}

    def copy_graph(name: str, _pair: Any, folder: Path, **_: Any) -> None:
        shutil.copy(tiny_bundle_folder / f"{name}.onnx", folder)

    monkeypatch.setattr(onnx_export, "export_graph", copy_graph)
    assert main(words) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["resumed"] == 4
    assert summary["manifest"]["parity"]["status"] == "passed"
    open_bundle(out)
    assert names(tmp_path) == ["out", "pair"]


KILLED_POLITELY = """
import os, signal, time
from bootpig_rt.cli.build_engine import sigterm_as_interrupt
before = signal.getsignal(signal.SIGTERM)
try:
    with sigterm_as_interrupt():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
except KeyboardInterrupt:
    print("interrupted", signal.getsignal(signal.SIGTERM) == before)
"""


def test_the_handler_of_sigterm_is_put_back() -> None:
    # In a process of its own: libraries that other tests load have threads and handlers, too.
    done = subprocess.run([sys.executable, "-c", KILLED_POLITELY], capture_output=True, check=True)
    assert done.stdout.split() == [b"interrupted", b"True"]


def test_a_changed_exporter_starts_over(
    pair: Path, tmp_path: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(stand, "denoise_step", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        build_engine(pair, tmp_path / "out", SMALL)
    stand.before = lambda _name: None

    def changed(path: Path) -> tuple[int, str]:
        size, sha256 = measure(path)
        return size, "0" * 64 if path.name == "graphs.py" else sha256

    monkeypatch.setattr(build_key, "measure", changed)
    assert build_engine(pair, tmp_path / "out", SMALL).resumed == 0


def test_a_second_build_is_refused_before_it_loads_anything(
    pair: Path, tmp_path: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a pair was loaded")

    with work_folder(out) as work:
        work.resume("another build")
        with monkeypatch.context() as patch:
            patch.setattr("bootpig_rt.models.load.load_pair", refuse)
            with pytest.raises(StorageError, match="another build"):
                build_engine(pair, out, SMALL)
    # A refused output takes nothing from a build that was interrupted there.
    fail_at(stand, "denoise_step", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        build_engine(pair, out, SMALL)
    stand.before = lambda _name: None
    out.mkdir()
    (out / "thesis.txt").touch()
    with monkeypatch.context() as patch:
        patch.setattr(build, "check_output", _refused_only_under_the_lock(check_output))
        with pytest.raises(ParameterError, match="is no bundle"):
            build_engine(pair, out, SMALL)
    shutil.rmtree(out)
    assert build_engine(pair, out, SMALL).resumed == 4


def _refused_only_under_the_lock(check: Callable[..., None]) -> Callable[..., None]:
    """`check_output` that lets its first call pass, as if the output had come after it."""
    calls: list[object] = []

    def later(*args: Any, **kwargs: Any) -> None:
        calls.append(args)
        if len(calls) > 1:
            check(*args, **kwargs)

    return later


def test_a_bundle_that_appears_during_a_build_is_not_replaced(
    pair: Path, tmp_path: Path, stand: Stand
) -> None:
    build_engine(pair, tmp_path / "first", SMALL)

    def appear(name: str) -> None:
        if name == "vae_decoder":
            (tmp_path / "first").rename(tmp_path / "out")

    stand.before = appear
    with pytest.raises(ParameterError, match="exists already.*--overwrite"):
        build_engine(pair, tmp_path / "out", SMALL)
    open_bundle(tmp_path / "out")


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
    assert names(tmp_path) == ["out.parity-report", "pair"]


@pytest.mark.parametrize(
    ("precision", "advice"),
    [("float16", "build with --precision float32"), ("float32", "report it with the numbers")],
)
def test_the_advice_on_a_failed_parity_gate_can_be_followed(
    pair: Path, tmp_path: Path, stand: Stand, precision: Any, advice: str
) -> None:
    stand.status = "failed"
    options = replace(SMALL, precision=precision)
    with pytest.raises(ParityError, match=f"see .*out.parity-report; {advice}"):
        build_engine(pair, tmp_path / "out", options)


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


# Engines


def test_engines_for_another_machine_are_built_and_marked_as_not_run(
    pair: Path, tmp_path: Path, stand: Stand, machine: Callable[..., None]
) -> None:
    machine()
    result = build_engine(pair, tmp_path / "out", engines())
    manifest = open_bundle(tmp_path / "out").manifest
    assert stand.exported == stand.built == list(graph_names(engines()))
    assert (manifest.target, manifest.runtime.name) == ("sm_89", "tensorrt_rtx")
    assert (manifest.runtime.architecture, manifest.runtime.minimum_version) == ("sm_89", None)
    assert manifest.rsa_kernel_sha256 is None
    assert {graph.file for graph in manifest.graphs} == {f"{n}.engine" for n in stand.built}
    assert all(graph.num_nodes == 3 for graph in manifest.graphs)
    # Their graphs were compared on a CPU, and the manifest says no more than that.
    (compared,) = stand.compared
    assert compared[1] == gate.place_of("sm_89")
    assert (compared[1].backend, compared[1].device) == ("onnxruntime", "cpu")
    assert manifest.parity.status == "not run"
    assert manifest.parity.results[0].name == "one_reference.latents"
    reason = manifest.parity.reason
    assert "lacks a GPU of sm_89" in reason
    assert "run bootpig-rt verify on the target machine" in reason
    assert "denoise_step: 1 attentions fused, scores summed in fp32, 1 attentions not" in reason
    assert not list((tmp_path / "out").rglob("*.safetensors"))
    assert result.bundle.folder == tmp_path / "out"


def test_engines_for_this_machine_are_compared_themselves_and_name_their_kernels(
    pair: Path, tmp_path: Path, stand: Stand, machine: Callable[..., None]
) -> None:
    machine("sm_90")
    build_engine(pair, tmp_path / "out", engines("local"))
    manifest = open_bundle(tmp_path / "out").manifest
    places = [(place.backend, place.device) for _, place in stand.compared]
    assert places == [("onnxruntime", "cpu"), ("tensorrt", "cuda:0")]
    assert (manifest.parity.status, manifest.parity.device) == ("passed", "cuda:0")
    assert manifest.runtime.architecture == "sm_90"
    kernels = hashlib.sha256(("ab" * 32 + "\n").encode()).hexdigest()
    assert manifest.rsa_kernel_sha256 == kernels
    bundle = open_bundle(tmp_path / "out")
    bundle.check_runtime("tensorrt", "1.7.1", "sm_90")
    with pytest.raises(BundleError, match="built for sm_90, this device is sm_89; .*target local"):
        bundle.check_runtime("tensorrt", "1.7.1", "sm_89")


def test_engines_that_were_finished_are_not_built_again(
    pair: Path, tmp_path: Path, stand: Stand, machine: Callable[..., None]
) -> None:
    machine()
    fail_at(stand, "engine reference_kv", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        build_engine(pair, tmp_path / "out", engines())
    assert stand.built == ["text_encoder", "text_kv", "vae_encoder"]
    stand.before, stand.built, stand.exported = lambda _name: None, [], []
    result = build_engine(pair, tmp_path / "out", engines())
    assert result.resumed == 7 + 3
    assert (stand.exported, stand.built) == (
        [],
        ["reference_kv", "denoise_step", "shallow_step", "vae_decoder"],
    )
    open_bundle(tmp_path / "out")
    assert (tmp_path / "out" / "text_encoder.layers.json").is_file()


def test_large_engines_for_another_machine_are_compared_as_graphs_of_256_px(
    pair: Path,
    tmp_path: Path,
    stand: Stand,
    machine: Callable[..., None],
) -> None:
    """Attention over 4096 tokens takes a CPU 18 GB, and is the same arithmetic."""
    for devices, side in (((), 256), (("sm_89",), 512)):
        machine(*devices)
        stand.compared = []
        build_engine(pair, tmp_path / "out", engines(side_px=512), overwrite=True)
        assert stand.recorded.pop() == side
        assert stand.compared[0][0].profile.resolution_px[0] == side
        manifest = open_bundle(tmp_path / "out").manifest
        assert manifest.profile.resolution_px == (512, 512, 512)
        assert ("compared at 256 px" in manifest.parity.reason) == (side == 256)


def test_graphs_for_cuda_are_compared_on_a_cpu_where_there_is_no_gpu(
    pair: Path, tmp_path: Path, stand: Stand, machine: Callable[..., None]
) -> None:
    machine()
    options = replace(SMALL, target="cuda", precision="float16")
    build_engine(pair, tmp_path / "out", options)
    manifest = open_bundle(tmp_path / "out").manifest
    assert (manifest.target, manifest.runtime.name) == ("cuda", "onnxruntime")
    assert (manifest.parity.status, manifest.parity.device) == ("not run", "cpu")
    assert "lacks an NVIDIA GPU" in manifest.parity.reason


@pytest.mark.slow
@pytest.mark.skipif(not RTX.is_installed(), reason="tensorrt_rtx is not installed")
def test_a_tiny_pair_becomes_engines_without_a_gpu(
    shallow_pair_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is real: the export, the gate in ONNX Runtime, and engines for sm_89 in float32."""
    for module in (gate, targets):
        monkeypatch.setattr(module, "cuda_devices", lambda: ())
    profile = Profile((32, 32, 32), 1, 1, 2)
    options = BuildOptions(target="sm_89", precision="float32", profile=profile, merges=())
    pair = shutil.copytree(shallow_pair_folder, tmp_path / "pair")
    manifest = build_engine(pair, tmp_path / "out", options).bundle.manifest
    assert manifest.parity.status == "not run"
    assert all(result.passed for result in manifest.parity.results)
    assert "denoise_step: " in manifest.parity.reason
    assert manifest.runtime.version == manifest.tools["tensorrt-rtx"]
    # TensorRT joins the products of `text_kv`, so that engine alone may be of few layers.
    least = {graph.name: 0 if graph.name == "text_kv" else 5 for graph in manifest.graphs}
    assert all(graph.num_nodes > least[graph.name] for graph in manifest.graphs)
    assert all(graph.size_bytes > 5000 for graph in manifest.graphs)
    step = open_bundle(tmp_path / "out").graph("denoise_step")
    assert {"step", "state", "k_0"} <= {tensor.name for tensor in step.inputs}
    with pytest.raises(BundleError, match="this device is sm_120; build again"):
        open_bundle(tmp_path / "out").check_runtime(
            "tensorrt_rtx", manifest.runtime.version, "sm_120"
        )


# The published layout


@pytest.mark.slow
def test_weights_that_are_written_anew_are_float16_unless_asked_otherwise(
    published_layout_folder: Path, tmp_path: Path, stand: Stand
) -> None:
    base = published_layout_folder.parent / "base_model"

    def dtypes(weights: Weights, options: BuildOptions = SMALL) -> set[str]:
        out = tmp_path / "out"
        options = replace(options, weights=weights)
        build_engine(published_layout_folder, out, options, base_model=base, overwrite=True)
        found = set()
        for path in out.rglob("*.safetensors"):
            with safe_open(path, framework="numpy") as stream:
                found |= {stream.get_slice(name).get_dtype() for name in stream.keys()}
        return found

    assert dtypes("auto") == dtypes("float16") == {"F16"}
    assert dtypes("as-is") == dtypes("float32") == {"F32"}


@pytest.mark.slow
def test_a_pair_of_float32_is_linked_unless_float16_is_asked_for(
    pair: Path, tmp_path: Path, stand: Stand
) -> None:
    path = Path("vae") / "diffusion_pytorch_model.safetensors"
    half = replace(SMALL, weights="float16")
    build_engine(pair, tmp_path / "half", half)
    assert (tmp_path / "half" / path).stat().st_size < 0.6 * (pair / path).stat().st_size
    with pytest.raises(ParameterError, match="not of the type that --weights asks for"):
        build_engine(pair, pair, half)
    # What is float16 already needs no second copy.
    build_engine(tmp_path / "half", tmp_path / "again", half)
    assert os.path.samefile(tmp_path / "half" / path, tmp_path / "again" / path)


def test_for_openvino_weights_are_float32_unless_the_pair_becomes_the_bundle(
    pair: Path, tmp_path: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(gate, "compare_backend", openvino())
    half, options = tmp_path / "half", replace(SMALL, target="openvino")
    save_pair(load_pair(pair), half, dtype=torch.float16)

    def build(output: Path, source: Path = half) -> set[str]:
        made = build_engine(source, output, options).bundle.manifest
        assert made.pair.fingerprint == load_pair(half).fingerprint
        return {
            dtype
            for name in ("base_unet", "ref_unet", "vae", "text_encoder")
            for dtype in stored_types(output / name)
        }

    assert build(tmp_path / "out") == {"F32"}
    # Linked where they are float32 already.
    assert build(tmp_path / "again", tmp_path / "out") == {"F32"}
    path = Path("base_unet") / "diffusion_pytorch_model.safetensors"
    assert os.path.samefile(tmp_path / "out" / path, tmp_path / "again" / path)
    assert build(half) == {"F16"}


def stored_types(folder: Path) -> set[str]:
    """Of the tensors in the files of a module."""
    (path,) = folder.glob("*.safetensors")
    with safe_open(path, framework="numpy") as stream:
        return {stream.get_slice(name).get_dtype() for name in stream.keys()}


def test_weights_too_large_for_float16_stay_as_they_are(
    tiny_pair_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = load_pair(tiny_pair_folder)
    assert stored_type(made, "auto", is_exact=False) == torch.float16
    # Whoever verifies engines of float32 has but the pair that was given, so it must be exact.
    assert stored_type(made, "auto", is_exact=True) == torch.float32
    next(made.base.unet.parameters()).fill_(70000)
    with caplog.at_level("WARNING", "bootpig_rt"):
        assert stored_type(made, "auto", is_exact=False) == torch.float32
    assert "the largest is 7e+04" in caplog.text
    assert stored_type(made, "float16", is_exact=False) == torch.float16  # save_pair refuses it


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cpu", "sm_89"])
def test_verify_knows_the_pair_that_was_given_again(
    published_layout_folder: Path,
    tmp_path: Path,
    stand: Stand,
    machine: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    target: Target,
) -> None:
    machine("sm_89")
    base, out = published_layout_folder.parent / "base_model", tmp_path / "out"
    options = SMALL if target == "cpu" else engines()
    build_engine(published_layout_folder, out, options, base_model=base)
    pair = open_bundle(out).manifest.pair
    assert (
        pair.source_fingerprint == load_pair(published_layout_folder, base_model=base).fingerprint
    )
    # One pair has one fingerprint, whatever it was built for, so subjects fit all its bundles.
    other = build_engine(published_layout_folder, tmp_path / "graphs", SMALL, base_model=base)
    assert pair.fingerprint == other.bundle.manifest.pair.fingerprint
    words = ["verify", str(out), "--steps", "1", "--quiet"]
    given = ["--pair", str(published_layout_folder), "--base-model", str(base)]
    assert main([*words, *given]) == 0
    assert main([*words, "--pair", str(tmp_path / "graphs")]) == 0
    if target == "sm_89":
        assert main(words) == 2
        assert "name the pair with --pair" in capsys.readouterr().err


# Options


ORDERS: list[tuple[dict[str, Any], str]] = [
    ({"target": "sm_90"}, "target is 'sm_90', expected one of: cpu, openvino, cuda, sm_75"),
    ({"target": "openvino", "precision": "float16"}, "for target openvino, expected float32"),
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
    ({"weights": "int8"}, "--weights is 'int8', expected one of: auto, float16, float32, as-is"),
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
        "text_kv",
        "vae_encoder",
        "reference_kv",
        "denoise_step",
        "shallow_step",
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
    # Three rows of 24 tokens: what the graph `text_kv` puts out for a picture.
    assert sizes.usual.text_bytes == 4 * 2 * 3 * 24 * sum(pair.base.text_widths())
    # Linked weights take no room of their own; those of float16 are written anew, in half of it.
    half = replace(options, weights="float16")
    small = estimate(tiny_pair_folder, tiny_pair_folder, config, half, num_graphs=len(names_))
    assert sizes.disk_bytes - small.disk_bytes == pytest.approx(2 * sizes.parameters, rel=0.01)
    assert small.free_bytes - sizes.free_bytes == pytest.approx(2 * sizes.parameters, rel=0.01)


def test_the_expected_disk_of_a_float16_pair_is_twice_as_large_for_openvino(
    tiny_pair_folder: Path, tmp_path: Path
) -> None:
    half = tmp_path / "half"
    save_pair(load_pair(tiny_pair_folder), half, dtype=torch.float16)
    config = read_pair_config(half / "pair.json")

    def sizes(output: Path, **asked: Any) -> Estimate:
        options = build_options(config, size_multiple_px=16, **asked).for_output(half, output)
        return estimate(half, half, config, options, num_graphs=8)

    out = tmp_path / "out"
    linked, wide = sizes(out), sizes(out, target="openvino")
    assert wide.disk_bytes - linked.disk_bytes == pytest.approx(2 * linked.parameters, rel=0.01)
    assert wide.free_bytes - linked.free_bytes == pytest.approx(4 * linked.parameters, rel=0.01)
    assert sizes(out, target="openvino", weights="float16") == linked
    assert sizes(half, target="openvino") == linked  # in its own place
    assert sizes(out, weights="float32") == wide


def test_the_expected_table_is_the_real_one(tiny_pair_folder: Path) -> None:
    import numpy as np

    from bootpig_rt.backends.torch.backend import TorchBackend

    backend = TorchBackend(load_pair(tiny_pair_folder), "cpu")
    config = backend.spec.config
    options = build_options(config, size_multiple_px=8)
    sizes = estimate(tiny_pair_folder, tiny_pair_folder, config, options, num_graphs=9)
    latents = np.zeros((sizes.table_entries, 1, 4, 8, 8), dtype=np.float32)
    timesteps = np.zeros(sizes.table_entries, dtype=np.int64)
    ids = np.zeros((1, 24), dtype=np.int64)
    made = backend.reference_kv(latents, timesteps, backend.encode_text(ids))
    assert made.size_bytes == sizes.usual.table_bytes


@pytest.mark.parametrize(
    ("order", "dialect"),
    [
        ({}, "cpu"),  # 128 px, 8 pixels a latent: 256 tokens
        ({"resolution": "128:176:512"}, "cpu"),  # 484 tokens
        ({"resolution": "128:192:512"}, "cpu-large"),  # 576 tokens
        ({"precision": "float16"}, "portable"),
        ({"target": "openvino", "resolution": "128:512:512"}, "cpu"),
        ({"target": "cuda", "precision": "float32"}, "portable"),
        ({"target": "sm_89"}, "portable"),
    ],
)
def test_graphs_are_written_for_what_will_run_them(order: dict[str, Any], dialect: str) -> None:
    config = replace(CONFIG, sample_size_px=128)
    assert build_options(config, size_multiple_px=16, **order).dialect(8) == dialect


def openvino(*results: ParityResult, status: Any = "passed") -> Callable[..., GateRun]:
    """A comparison whose bfloat16 comes out as said."""

    def compare(
        _folder: Path, place: gate.Place, reference: Any, precision: str, *_: Any, **__: Any
    ) -> Any:
        report = ParityReport("passed", "", place.backend, "cpu")
        if precision == "bfloat16":
            report = ParityReport(status, "", place.backend, "cpu", results)
        return GateRun(report, reference.recording)

    return compare


@pytest.mark.parametrize("status", ["passed", "failed"])
def test_a_bundle_for_openvino_says_how_near_its_other_precisions_are(
    pair: Path, tmp_path: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    """One that is too far from torch is no reason to refuse the others."""
    pytest.importorskip("openvino")
    monkeypatch.setattr(gate, "compare_backend", openvino(status=status))
    options = replace(SMALL, target="openvino")
    manifest = build_engine(pair, tmp_path / "out", options).bundle.manifest
    assert (manifest.runtime.name, manifest.runtime.minimum_version) == ("openvino", "2026.4")
    assert (manifest.precision, manifest.parity.status) == ("float32", "passed")
    (variant,) = manifest.variants
    assert (variant.precision, variant.parity.status) == ("bfloat16", status)
    assert variant.float32_graphs == (() if status == "passed" else ("reference_kv",))
    assert open_bundle(tmp_path / "out").manifest == manifest


def test_graphs_stay_in_float32_where_a_precision_would_not_pass_without(
    pair: Path, tmp_path: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    narrow, wide = openvino(status="failed"), openvino()

    def compare(*args: Any, float32_graphs: Any = None) -> Any:
        return (wide if float32_graphs else narrow)(*args)

    monkeypatch.setattr(gate, "compare_backend", compare)
    options = replace(SMALL, target="openvino")
    (variant,) = build_engine(pair, tmp_path / "out", options).bundle.manifest.variants
    assert (variant.parity.status, variant.float32_graphs) == ("passed", ("reference_kv",))


def test_a_processor_without_bfloat16_leaves_it_for_others_to_compare(
    pair: Path, tmp_path: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    compare = openvino()

    def refuse(*args: Any, **_: Any) -> Any:
        if args[3] == "bfloat16":
            raise BackendUnavailable("no such arithmetic")
        return compare(*args)

    monkeypatch.setattr(gate, "compare_backend", refuse)
    options = replace(SMALL, target="openvino")
    (variant,) = build_engine(pair, tmp_path / "out", options).bundle.manifest.variants
    assert (variant.parity.status, variant.parity.reason) == ("not run", "no such arithmetic")


def test_a_build_in_place_forgets_what_was_compiled(pair: Path, stand: Stand) -> None:
    build_engine(pair, pair, SMALL)
    (pair / ".openvino").mkdir()
    (pair / ".openvino" / "old.blob").write_bytes(b"of other graphs")
    build_engine(pair, pair, SMALL, overwrite=True)
    assert not (pair / ".openvino").exists()


@pytest.mark.parametrize(
    ("target", "backend", "taken"),
    [("cpu", None, "onnxruntime"), ("cpu", "openvino", "openvino"), ("openvino", None, "openvino")],
)
def test_bundles_for_cpus_are_compared_in_what_runs_them(
    target: Any, backend: str | None, taken: str
) -> None:
    place = gate.place_of(target, backend)
    assert (place.backend, place.device, place.is_target) == (taken, "cpu", True)


@pytest.mark.parametrize(("target", "backend"), [("cpu", "tensorrt"), ("openvino", "onnxruntime")])
def test_a_backend_that_does_not_run_a_bundle_is_refused(target: Any, backend: str) -> None:
    with pytest.raises(ParameterError, match=f"backend is '{backend}' .* built for {target}"):
        gate.place_of(target, backend)


@pytest.mark.slow
def test_a_real_pair_is_built_checked_and_refuses_changed_weights(
    tiny_pair_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = build_engine(shutil.copytree(tiny_pair_folder, tmp_path / "pair"), out, SMALL)
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


INT8 = replace(SMALL, target="openvino", int8=True)


@pytest.fixture
def quick_int8(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Quantises nothing; returns what it was asked for."""
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    from bootpig_rt.export import int8
    from bootpig_rt.export.quantise_choice import WideChoice

    asked: list[dict[str, Any]] = []

    def write(work: Any, folder: str, _spec: Any, names: Any, **options: Any) -> Any:
        asked.append({"names": names, **options})
        for name in names:
            for end in ("bin", "xml"):
                (work.path / folder / f"{name}.int8.{end}").write_text(f"{name} {end}")
                work.finish(f"{folder}/{name}.int8.{end}", {})
        choice = WideChoice(("conv_out",), 10, 0.9, 0.04, 0.019, 0.015)
        return tuple(int8.Int8Graph(name, choice, False) for name in names)

    monkeypatch.setattr(int8, "build_int8", write)
    return asked


def test_a_bundle_with_int8_has_its_steps_twice_and_says_what_stays_wide(
    pair: Path, tmp_path: Path, stand: Stand, quick_int8: list[dict[str, Any]]
) -> None:
    bundle = build_engine(pair, tmp_path / "out", INT8).bundle
    manifest = open_bundle(bundle.folder).manifest
    assert [variant.precision for variant in manifest.variants] == ["bfloat16", "int8"]
    variant = manifest.variant("int8")
    assert variant is not None
    assert {graph.name: graph.file for graph in variant.graphs} == {
        name: f"{name}.int8.xml" for name in ("denoise_step", "denoise_step_argmax")
    }
    assert {f"{name}.int8.bin" for name in quick_int8[0]["names"]} < {
        f.path for f in manifest.files
    }
    assert bundle.graph_in("denoise_step", "int8").file == "denoise_step.int8.xml"
    assert bundle.graph_in("vae_decoder", "int8").file == "vae_decoder.onnx"
    assert variant.parity.status == "passed"
    assert "denoise_step: 9 of 10 parts in int8 with 90% of the weights" in variant.parity.reason
    assert "wide: conv_out" in variant.parity.reason
    assert variant.identity is None


def test_int8_over_its_limit_makes_no_bundle(
    pair: Path, tmp_path: Path, stand: Stand, quick_int8: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare = openvino()

    def far(*args: Any, **_: Any) -> GateRun:
        run = compare(*args)
        if args[3] != "int8":
            return run
        results = (ParityResult("one_reference.latents", 0.5, 1.0, None, 4e-1, None),)
        return GateRun(ParityReport("failed", "", "openvino", "cpu", results), run.recording)

    monkeypatch.setattr(gate, "compare_backend", far)
    with pytest.raises(ParityError, match=r"the int8 graphs in openvino .* --precision float32"):
        build_engine(pair, tmp_path / "out", INT8)
    assert names(tmp_path) == ["out.parity-report", "pair"]


def test_other_pictures_to_calibrate_on_are_another_order(
    pair: Path, tmp_path: Path, stand: Stand, quick_int8: list[dict[str, Any]]
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("red_car.png", "owl.png"):
        Image.new("RGB", (8, 8), "red").save(folder / name)
    options = replace(INT8, calibration=str(folder))
    fail_at(stand, "vae_decoder", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        build_engine(pair, tmp_path / "out", options)
    Image.new("RGB", (8, 8), "blue").save(folder / "owl.png")
    stand.before = lambda _name: None
    assert build_engine(pair, tmp_path / "out", options).resumed == 0
    assert quick_int8[-1]["options"].folder == folder


def test_int8_needs_the_package_that_makes_it(
    pair: Path, tmp_path: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(targets, "is_installed", lambda package: package != "nncf")
    with pytest.raises(BackendUnavailable, match=r"missing nncf; pip install 'bootpig-rt\[int8\]'"):
        build_engine(pair, tmp_path / "out", INT8)


def test_int8_is_ordered_by_precision_with_one_merge_and_float32_beside_it() -> None:
    options = build_options(CONFIG, size_multiple_px=16, target="openvino", precision="int8")
    assert (options.precision, options.int8, options.merges) == ("float32", True, ("argmax",))
    assert options.int8_limit == 0.02
    wider = build_options(
        CONFIG, size_multiple_px=16, target="openvino", precision="int8", int8_limit=0.05
    )
    assert wider.int8_limit == 0.05
    with pytest.raises(ParameterError, match=r"is 0.05, expected it with --target openvino"):
        build_options(CONFIG, size_multiple_px=16, int8_limit=0.05)
    for wrong in (0.0, 0.1, float("nan")):
        with pytest.raises(ParameterError, match=r"expected 0.001..0.08; the comparison"):
            build_options(
                CONFIG, size_multiple_px=16, target="openvino", precision="int8", int8_limit=wrong
            )
    with pytest.raises(ParameterError, match="expected it with --target openvino --precision int8"):
        build_options(CONFIG, size_multiple_px=16, target="openvino", calibration=Path("a"))


def test_int8_weights_are_counted_on_the_disk(tiny_pair_folder: Path) -> None:
    plain, with_int8 = (
        estimate(tiny_pair_folder, tiny_pair_folder, CONFIG, options, num_graphs=7)
        for options in (replace(INT8, int8=False), INT8)
    )
    assert with_int8.disk_bytes > plain.disk_bytes + 0.3 * plain.parameters
    assert with_int8.free_bytes > plain.free_bytes
