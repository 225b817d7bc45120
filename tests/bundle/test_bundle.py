"""The bundle: what is written, and every refusal, each ahead of anything being loaded."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bootpig_rt.bundle import files
from bootpig_rt.bundle.bundle import (
    Bundle,
    FileInfo,
    GraphInfo,
    Manifest,
    ParityReport,
    Profile,
    RuntimeInfo,
    TensorInfo,
    is_bundle,
    list_files,
    open_bundle,
    read_manifest,
    record_parity,
    write_manifest,
)
from bootpig_rt.bundle.files import digest_files, split_pair_files
from bootpig_rt.bundle.manifest import PairInfo, ParityResult, SolverInfo, finite_or_none
from bootpig_rt.bundle.shipped import default_model
from bootpig_rt.errors import BackendUnavailable, BundleError, ParameterError

FILES = {
    "pair.json": b"{}",
    "base_unet/config.json": b"{}",
    "base_unet/diffusion_pytorch_model.safetensors": b"weights " * 100,
    "tokenizer/vocab.json": b"{}",
    "denoise_step.onnx": b"a graph",
}


def describe(folder: Path, **changes: Any) -> Manifest:
    files = list_files(folder)
    weights, others = split_pair_files(files)
    graph = next(file for file in files if file.path == "denoise_step.onnx")
    fields: dict[str, Any] = {
        "target": "cpu",
        "runtime": RuntimeInfo("onnxruntime", "1.32.0", "1.23"),
        "pair": PairInfo("tiny", "f" * 64, digest_files(weights), digest_files(others)),
        "precision": "float32",
        "opset": 20,
        "profile": Profile((8, 32, 64), 8, 4, 50),
        "merges": ("argmax",),
        "solver": SolverInfo("dpmpp_2m", 25),
        "rsa_kernel_sha256": None,
        "tools": {"onnx": "1.23.2"},
        "graphs": (
            GraphInfo(
                "denoise_step",
                graph.path,
                graph.sha256,
                graph.size_bytes,
                10,
                (TensorInfo("step", "int64", (1,)),),
                (TensorInfo("next_state", "float32", ("state", "batch", 4, "h", "w")),),
            ),
        ),
        "parity": ParityReport(
            "passed", "", "onnxruntime", "cpu", (ParityResult("x", 1e-6, 1e-5, None, 1e-4, None),)
        ),
        "files": files,
    }
    return Manifest(**{**fields, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle of a few bytes."""
    root = tmp_path / "bundle"
    for name, data in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    write_manifest(root, describe(root))
    return root


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest by hand, as someone who cannot sign it would."""
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def rename_file(values: dict[str, Any], path: str) -> None:
    values["files"][0]["path"] = path


def flip(path: Path, position: int = -3) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


def replace_by_link(path: Path) -> None:
    other = path.parents[2] / path.name
    shutil.move(path, other)
    path.symlink_to(other)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_folder(path: Path) -> None:
    other = path.parents[1] / "elsewhere"
    shutil.move(path, other)
    path.symlink_to(other)


def swap_weights(folder: Path) -> None:
    """Other weights with a manifest that lists them, but still names the old pair."""
    path = folder / "base_unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(b"WEIGHTS " * 100)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    edit(
        folder,
        lambda values: [
            file.update(sha256=sha256)
            for file in values["files"]
            if file["path"].endswith(".safetensors")
        ],
    )


def test_a_bundle_is_read_as_it_was_written(folder: Path) -> None:
    assert is_bundle(folder)
    bundle = open_bundle(folder)
    assert bundle == Bundle(folder, describe(folder))
    assert {file.path for file in bundle.manifest.files} == set(FILES)
    assert bundle.manifest.size_bytes == sum(map(len, FILES.values()))
    assert bundle.graph_path("denoise_step") == folder / "denoise_step.onnx"
    assert bundle.read_graph("denoise_step") == b"a graph"


REFUSALS: list[tuple[str, Callable[[Path], object], str]] = [
    ("no manifest", lambda f: (f / "manifest.json").unlink(), "manifest.json is missing"),
    ("empty manifest", lambda f: (f / "manifest.json").write_text(""), "not valid json"),
    (
        "truncated manifest",
        lambda f: os.truncate(f / "manifest.json", 400),
        "not valid json .*build it again",
    ),
    (
        "no object",
        lambda f: (f / "manifest.json").write_text("[]"),
        "missing required field `format`",
    ),
    ("binary manifest", lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe"), "not valid json"),
    ("deep", lambda f: (f / "manifest.json").write_text("[" * 100_000), "not valid json"),
    ("newer format", lambda f: edit(f, lambda v: v.update(format=2)), "newer bootpig-rt.*upgrade"),
    (
        "format as text",
        lambda f: edit(f, lambda v: v.update(format="1")),
        r"got `str` - at `\$.format`",
    ),
    (
        "format true",
        lambda f: edit(f, lambda v: v.update(format=True)),
        r"got `bool` - at `\$.format`",
    ),
    ("unknown field", lambda f: edit(f, lambda v: v.update(run="me")), "unknown field `run`"),
    ("field missing", lambda f: edit(f, lambda v: v.pop("pair")), "missing required field `pair`"),
    (
        "unknown target",
        lambda f: edit(f, lambda v: v.update(target="sm_90")),
        r"'sm_90' - at `\$.target`",
    ),
    ("sizes", lambda f: edit(f, lambda v: v.update(size_bytes=1)), "sum of the files"),
    ("flipped byte in weights", lambda f: flip(next(f.glob("*/*.safetensors"))), "is damaged"),
    ("flipped byte in a graph", lambda f: flip(f / "denoise_step.onnx"), "is damaged"),
    (
        "truncated weights",
        lambda f: os.truncate(next(f.glob("*/*.safetensors")), 80),
        "has 80 bytes, expected 800",
    ),
    ("empty graph", lambda f: os.truncate(f / "denoise_step.onnx", 0), "has 0 bytes, expected 7"),
    ("missing graph", lambda f: (f / "denoise_step.onnx").unlink(), "denoise_step.onnx is missing"),
    ("missing folder", lambda f: shutil.rmtree(f / "tokenizer"), "vocab.json is missing"),
    ("file added", lambda f: (f / "tokenizer/tokenizer.json").touch(), "is not in the manifest"),
    ("linked file", lambda f: replace_by_link(f / "base_unet/config.json"), "symbolic link"),
    ("linked folder", lambda f: link_folder(f / "tokenizer"), "symbolic link.*cp -rL"),
    (
        "linked folder added",
        lambda f: (f / "extra").symlink_to(f / "tokenizer", target_is_directory=True),
        "extra is not in the manifest",
    ),
    (
        "linked folder added below",
        lambda f: (f / "tokenizer" / "x").symlink_to("/", target_is_directory=True),
        "x is not in the manifest",
    ),
    ("linked manifest", lambda f: replace_by_link(f / "manifest.json"), "symbolic link"),
    (
        "folder in place of a file",
        lambda f: replace_by_folder(f / "pair.json"),
        "pair.json is missing",
    ),
    ("leaves", lambda f: edit(f, lambda v: rename_file(v, "../x")), "a path within the folder"),
    (
        "leaves inside",
        lambda f: edit(f, lambda v: rename_file(v, "a/../../x")),
        "within the folder",
    ),
    ("absolute", lambda f: edit(f, lambda v: rename_file(v, "/etc/passwd")), "within the folder"),
    ("drive", lambda f: edit(f, lambda v: rename_file(v, "C:/x")), "within the folder"),
    ("backslash", lambda f: edit(f, lambda v: rename_file(v, "..\\x")), "within the folder"),
    ("NUL", lambda f: edit(f, lambda v: rename_file(v, "a\0b")), "within the folder"),
    ("dot", lambda f: edit(f, lambda v: rename_file(v, "./pair.json")), "within the folder"),
    ("long name", lambda f: edit(f, lambda v: rename_file(v, "a" * 256)), "within the folder"),
    ("long path", lambda f: edit(f, lambda v: rename_file(v, "a/" * 999 + "a")), "within"),
    ("empty path", lambda f: edit(f, lambda v: rename_file(v, "")), "within the folder"),
    (
        "listed twice",
        lambda f: edit(f, lambda v: rename_file(v, v["files"][1]["path"])),
        "must not list .* twice",
    ),
    (
        "graph outside the list",
        lambda f: edit(f, lambda v: v["graphs"][0].update(file="../evil.onnx")),
        "disagree about '../evil.onnx'",
    ),
    ("other weights", swap_weights, "weights files are not those of the pair"),
    (
        "other configuration",
        lambda f: edit(f, lambda v: v["pair"].update(config_sha256="0" * 64)),
        "configuration files are not those",
    ),
]


@pytest.mark.parametrize(
    ("spoil", "message"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS]
)
def test_a_spoiled_bundle_is_refused(
    folder: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(folder)
    with pytest.raises(BundleError, match=message) as caught:
        open_bundle(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_manifest_is_no_bundle(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    assert not is_bundle(folder)


def test_texts_and_hidden_files_may_lie_beside_a_bundle(folder: Path) -> None:
    (folder / "README.md").write_text("about")
    (folder / ".gitattributes").write_text("")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__/some.pyc").write_bytes(b"")
    listed = {file.path for file in open_bundle(folder).manifest.files}
    assert "denoise_step.onnx" in listed
    assert listed.isdisjoint({"README.md", ".gitattributes", "__pycache__/some.pyc"})


def test_weights_and_configuration_of_a_pair_are_told_apart_from_its_graphs() -> None:
    paths = (
        "unet/model.safetensors", "unet/config.json", "pair.json", "manifest_of.json", "step.onnx"
    )  # fmt: skip
    weights, others = split_pair_files([FileInfo(path, 1, "0" * 64) for path in paths])
    assert [file.path for file in weights] == ["unet/model.safetensors"]
    assert [file.path for file in others] == ["unet/config.json", "pair.json"]


RUNTIMES: list[tuple[str, dict[str, Any], tuple[Any, ...], str | None]] = [
    ("fits", {}, ("onnxruntime", "1.32.0"), None),
    ("newer runs", {}, ("onnxruntime", "2.1"), None),
    ("older", {}, ("onnxruntime", "1.9.1"), "needs onnxruntime 1.23 or newer.*pip install"),
    ("the oldest", {}, ("onnxruntime", "1.23"), None),
    ("just older", {}, ("onnxruntime", "1.22.9"), "needs onnxruntime 1.23 or newer"),
    ("of another build", {}, ("onnxruntime", "1.23.0+cu12"), None),
    ("ahead of the oldest", {}, ("onnxruntime", "1.23.0rc1"), "needs onnxruntime 1.23 or newer"),
    ("no version", {"minimum_version": "1..2"}, ("onnxruntime", "1.32.0"), "expected a version"),
    ("another runtime", {}, ("tensorrt_rtx", "1.7"), "built for onnxruntime .*another --target"),
    ("same engine", {"minimum_version": None}, ("onnxruntime", "1.32.0"), None),
    ("other engine", {"minimum_version": None}, ("onnxruntime", "1.33.0"), "onnxruntime==1.32.0"),
    ("its GPU", {"architecture": "sm_89"}, ("onnxruntime", "1.32.0", "sm_89"), None),
    (
        "other GPU",
        {"architecture": "sm_89"},
        ("onnxruntime", "1.32.0", "sm_86"),
        "built for sm_89, this device is sm_86; build again with --target sm_86",
    ),
]


@pytest.mark.parametrize(
    ("changes", "arguments", "message"), [r[1:] for r in RUNTIMES], ids=[r[0] for r in RUNTIMES]
)
def test_a_bundle_runs_only_where_it_was_built_for(
    folder: Path, changes: dict[str, Any], arguments: tuple[Any, ...], message: str | None
) -> None:
    runtime = RuntimeInfo(
        **{"name": "onnxruntime", "version": "1.32.0", "minimum_version": "1.23"} | changes
    )
    bundle = write_manifest(folder, describe(folder, runtime=runtime))
    if message is None:
        bundle.check_runtime(*arguments)
    else:
        with pytest.raises(BundleError, match=message):
            bundle.check_runtime(*arguments)


def test_a_graph_that_is_not_there_is_named(folder: Path) -> None:
    bundle = open_bundle(folder)
    with pytest.raises(BundleError, match="no graph 'denoise_step_mean', only denoise_step"):
        bundle.graph("denoise_step_mean")


def test_bytes_that_changed_after_the_check_are_not_returned(folder: Path) -> None:
    bundle = open_bundle(folder)
    flip(folder / "denoise_step.onnx")
    with pytest.raises(BundleError, match="has changed since"):
        bundle.read_graph("denoise_step")


# Signatures


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`a.pem`, `b.pem` with their public keys, and an RSA key."""
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    folder = tmp_path_factory.mktemp("keys")
    private: Any
    for name, private in (
        ("a", ed25519.Ed25519PrivateKey.generate()),
        ("b", ed25519.Ed25519PrivateKey.generate()),
        ("rsa", rsa.generate_private_key(65537, 2048)),
    ):
        pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        plain = serialization.NoEncryption()
        (folder / f"{name}.pem").write_bytes(private.private_bytes(pem, pkcs8, plain))
        public = private.public_key().public_bytes(
            pem, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (folder / f"{name}.pub.pem").write_bytes(public)
    secret = serialization.BestAvailableEncryption(b"secret")
    locked = ed25519.Ed25519PrivateKey.generate().private_bytes(pem, pkcs8, secret)
    (folder / "locked.pem").write_bytes(locked)
    (folder / "text.pem").write_text("no key")
    return folder


def test_a_signed_bundle_opens_with_the_key_that_belongs_to_it(folder: Path, keys: Path) -> None:
    manifest = describe(folder)
    write_manifest(folder, manifest, key=keys / "a.pem")
    assert open_bundle(folder, trust=keys / "a.pub.pem").manifest == manifest
    assert open_bundle(folder).manifest == manifest
    said = json.loads((folder / "manifest.sig").read_text())
    assert list(said) == ["algorithm", "public_key", "signature"]
    assert said["algorithm"] == "ed25519"


def test_an_unsigned_bundle_is_refused_where_trust_is_demanded(folder: Path, keys: Path) -> None:
    with pytest.raises(BundleError, match="is not signed.*--sign KEY"):
        open_bundle(folder, trust=keys / "a.pub.pem")


SIGNED_REFUSALS: list[tuple[str, Callable[[Path], object], str]] = [
    ("changed manifest", lambda f: edit(f, lambda v: v["pair"].update(name="x")), "was changed"),
    ("reformatted manifest", lambda f: edit(f, lambda v: None), "was changed"),
    ("signature of text", lambda f: (f / "manifest.sig").write_text("x"), "signature is damaged"),
    ("empty signature", lambda f: (f / "manifest.sig").write_text("{}"), "signature is damaged"),
    ("linked signature", lambda f: replace_by_link(f / "manifest.sig"), "symbolic link"),
    ("flipped weights", lambda f: flip(next(f.glob("*/*.safetensors"))), "is damaged"),
]


@pytest.mark.parametrize(
    ("spoil", "message"), [r[1:] for r in SIGNED_REFUSALS], ids=[r[0] for r in SIGNED_REFUSALS]
)
def test_a_signed_bundle_that_was_changed_is_refused(
    folder: Path, keys: Path, spoil: Callable[[Path], object], message: str
) -> None:
    write_manifest(folder, describe(folder), key=keys / "a.pem")
    spoil(folder)
    with pytest.raises(BundleError, match=message):
        open_bundle(folder, trust=keys / "a.pub.pem")


def test_a_bundle_signed_with_another_key_is_refused(folder: Path, keys: Path) -> None:
    write_manifest(folder, describe(folder), key=keys / "b.pem")
    with pytest.raises(BundleError, match="signed with another key"):
        open_bundle(folder, trust=keys / "a.pub.pem")


@pytest.mark.parametrize("name", ["rsa.pub.pem", "text.pem", "a.pem", "none.pem"])
def test_what_is_no_public_key_is_refused_as_a_parameter(
    folder: Path, keys: Path, name: str
) -> None:
    write_manifest(folder, describe(folder), key=keys / "a.pem")
    with pytest.raises(ParameterError, match="public key"):
        open_bundle(folder, trust=keys / name)


@pytest.mark.parametrize("name", ["rsa.pem", "text.pem", "a.pub.pem", "locked.pem", "none.pem"])
def test_what_is_no_private_key_is_refused_and_the_bundle_stays(
    folder: Path, keys: Path, name: str
) -> None:
    with pytest.raises(ParameterError, match="private key"):
        write_manifest(folder, describe(folder), key=keys / name)
    open_bundle(folder)


def test_signing_without_the_package_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    with pytest.raises(BackendUnavailable, match="pip install 'bootpig-rt\\[sign\\]'"):
        write_manifest(folder, describe(folder), key=folder / "key.pem")


def test_a_later_parity_report_is_recorded_and_signed_again(folder: Path, keys: Path) -> None:
    bundle = write_manifest(folder, describe(folder), key=keys / "a.pem")
    report = ParityReport("failed", "", "onnxruntime", "cpu")
    with pytest.raises(BundleError, match="needs a new signature"):
        record_parity(bundle, report)
    record_parity(bundle, report, key=keys / "a.pem")
    assert open_bundle(folder, trust=keys / "a.pub.pem").manifest.parity == report


def test_writing_without_a_key_removes_an_old_signature(folder: Path, keys: Path) -> None:
    write_manifest(folder, describe(folder), key=keys / "a.pem")
    write_manifest(folder, describe(folder))
    assert not (folder / "manifest.sig").exists()


# The manifest

FIELDS: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("a field more within", lambda v: v["pair"].update(run=1), r"field `run` - at `\$.pair`"),
    ("a field less within", lambda v: v["files"][2].pop("sha256"), r"at `\$.files\[2\]`"),
    ("text for a number", lambda v: v.update(opset="1"), r"got `str` - at `\$.opset`"),
    ("true for a number", lambda v: v.update(opset=True), r"got `bool` - at `\$.opset`"),
    ("a fraction", lambda v: v["profile"].update(max_batch=1.5), r"at `\$.profile.max_batch`"),
    ("below the least", lambda v: v["profile"].update(max_steps=0), r">= 1 - at `\$.profile.max"),
    ("two sides of three", lambda v: v["profile"]["resolution_px"].pop(), "length 3"),
    ("a small side", lambda v: v["profile"].update(resolution_px=[7, 8, 8]), ">= 8 - at"),
    (
        "no hash",
        lambda v: v["pair"].update(fingerprint="F" * 64),
        r"regex .* `\$.pair.fingerprint`",
    ),
    ("a long hash", lambda v: v["pair"].update(weights_sha256="f" * 65), "weights_sha256"),
    ("no version", lambda v: v["runtime"].update(version="one"), r"at `\$.runtime.version`"),
    ("no architecture", lambda v: v["runtime"].update(architecture="89"), "architecture"),
    ("another merge", lambda v: v.update(merges=["median"]), r"'median' - at `\$.merges\[0\]`"),
    (
        "another solver",
        lambda v: v["solver"].update(name="euler"),
        r"'euler' - at `\$.solver.name`",
    ),
    ("another status", lambda v: v["parity"].update(status="ok"), r"'ok' - at `\$.parity.status`"),
    (
        "a negative limit",
        lambda v: v["parity"]["results"][0].update(relative_limit=-1),
        ">= 0.0 - at",
    ),
    ("a negative size", lambda v: v["graphs"][0].update(size_bytes=-1), ">= 0 - at"),
    ("a graph in capitals", lambda v: v["graphs"][0].update(name="Step"), r"\$.graphs\[0\].name"),
    ("an odd type", lambda v: v["graphs"][0]["inputs"][0].update(dtype="int4"), "'int4'"),
    ("a version of a number", lambda v: v["tools"].update(onnx=1), r"at `\$.tools\[...\]`"),
    ("no sum", lambda v: v.pop("size_bytes"), "missing required field `size_bytes`"),
    ("no format", lambda v: v.pop("format"), "missing required field `format`"),
    ("format 0", lambda v: v.update(format=0), r"invalid enum value 0 - at `\$.format`"),
]


@pytest.mark.parametrize(("change", "message"), [f[1:] for f in FIELDS], ids=[f[0] for f in FIELDS])
def test_a_wrong_field_of_the_manifest_is_named(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit(folder, change)
    with pytest.raises(BundleError, match=f"(?i){message}") as caught:
        read_manifest(folder)
    assert "manifest.json" in str(caught.value)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_spoiled_manifest_is_read_as_it_is_or_refused(folder: Path, data: st.DataObject) -> None:
    """Nothing is dropped, clamped or converted on the way."""
    values = json.loads(describe(folder).to_json())
    place: Any = values
    while True:
        key = data.draw(
            st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place)))
        )
        inner = place[key]
        if isinstance(inner, (dict, list)) and inner and data.draw(st.booleans()):
            place = inner
            continue
        place[key] = data.draw(
            st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.just([]))
        )
        break
    try:
        manifest = Manifest.from_dict(values)
    except msgspec.ValidationError:
        return
    assert json.loads(manifest.to_json()) == values


def test_the_manifest_of_the_shipped_pair_is_written_as_it_lies_there() -> None:
    """Byte for byte: a signature of it still holds after it was read and written again."""
    text = (default_model() / "manifest.json").read_bytes()
    assert read_manifest(default_model()).to_json().encode() == text


def test_numbers_that_json_cannot_hold_are_left_out_of_a_manifest() -> None:
    numbers = (float("nan"), float("inf"), float("-inf"), 0.5, 0.0)
    assert [finite_or_none(number) for number in numbers] == [None, None, None, 0.5, 0.0]


def test_a_manifest_that_does_not_describe_the_folder_is_not_written(folder: Path) -> None:
    manifest = describe(folder, graphs=())
    with pytest.raises(BundleError, match=r"length >= 1 - at `\$.graphs`"):
        write_manifest(folder, manifest)
    wrong = describe(folder, files=(FileInfo("../x", 1, "0" * 64),))
    with pytest.raises(BundleError, match="within the folder"):
        write_manifest(folder, wrong)
    open_bundle(folder)


@pytest.mark.parametrize(("limit", "is_read"), [(0, True), (-1, False)])
def test_a_manifest_is_read_up_to_the_limit(
    folder: Path, monkeypatch: pytest.MonkeyPatch, limit: int, is_read: bool
) -> None:
    size = (folder / "manifest.json").stat().st_size
    monkeypatch.setattr(files, "_MAX_SMALL_BYTES", size + limit)
    if is_read:
        read_manifest(folder)
    else:
        with pytest.raises(BundleError, match="is over"):
            read_manifest(folder)


def test_reading_a_manifest_alone_touches_no_other_file(folder: Path) -> None:
    shutil.rmtree(folder / "base_unet")
    assert read_manifest(folder).target == "cpu"


def test_the_bundle_module_needs_numpy_alone(root: Path) -> None:
    code = (
        "import sys, bootpig_rt.bundle.bundle\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'cryptography', 'jsonschema', 'PIL'}\n"
        "print(sorted(heavy & {name.partition('.')[0] for name in sys.modules}))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"
