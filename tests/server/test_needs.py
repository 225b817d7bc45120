"""What `doctor` finds of what a service needs, before it runs, and the fix that it names."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from bootpig_rt.backends.cuda.devices import CudaDevice
from bootpig_rt.cli.main import main
from bootpig_rt.server import needs
from bootpig_rt.server.guard.key_changes import add_key
from bootpig_rt.server.needs import Need, needs_of
from bootpig_rt.server.options import ServerOptions

GPU = CudaDevice(0, "NVIDIA H200", "sm_90", 139 << 30)


@pytest.fixture
def need() -> Callable[..., Need]:
    """What is found of one need, with some options."""

    def of(name: str, **options: Any) -> Need:
        settings: dict[str, Any] = {"port": 0, **options}
        (found,) = [one for one in needs_of(ServerOptions(**settings)) if one.name == name]
        return found

    return of


def test_a_machine_of_the_tests_has_all_that_a_service_needs() -> None:
    unmet = [one for one in needs_of(ServerOptions(port=0)) if not one.is_met]
    assert [one for one in unmet if one.name != "open files"] == []


def test_missing_packages_are_named_with_what_installs_them(
    need: Callable[..., Need], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(needs, "version", missing)
    found = need("packages")
    assert not found.is_met
    assert "fastapi, uvicorn, python-multipart, prometheus-client missing" in found.found
    assert found.fix == "pip install 'bootpig-rt[serve]'"


def test_packages_are_asked_for_as_the_options_need_them() -> None:
    options = ServerOptions(port=0, traces=True, credentials_certificate="a", credentials_key="b")
    told = [one.found for one in needs_of(options) if one.name == "packages"]
    assert len(told) == 3
    assert "opentelemetry-sdk" in told[1]


def test_a_port_in_use_is_found(need: Callable[..., Need]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        found = need("port", port=port)
        assert (found.is_met, found.found) == (False, f"127.0.0.1:{port} is in use")
        assert "--port" in found.fix
    assert need("port", port=port).is_met


def test_an_address_of_another_machine_is_found(need: Callable[..., Need]) -> None:
    found = need("port", host="192.0.2.1", port=8000)
    assert not found.is_met
    assert "--host" in found.fix


@pytest.mark.parametrize(
    ("options", "is_met"),
    [
        ({"host": "0.0.0.0"}, False),
        ({"host": "0.0.0.0", "insecure": True}, True),
        ({"host": "::1"}, True),
    ],
)
def test_an_open_address_needs_keys(
    need: Callable[..., Need], options: dict[str, object], is_met: bool
) -> None:
    found = need("address", **options)
    assert found.is_met is is_met
    assert is_met or "--keys FILE" in found.fix


def test_a_file_of_keys_that_others_may_read_is_found(
    need: Callable[..., Need], tmp_path: Path
) -> None:
    path = tmp_path / "keys.json"
    assert not need("keys", keys=str(path)).is_met
    add_key(path, "lab")
    assert need("keys", keys=str(path)).found == f"1 in {path}"
    path.chmod(0o644)
    found = need("keys", keys=str(path))
    assert not found.is_met
    assert "chmod" in found.fix


def test_a_missing_gpu_and_an_old_driver_are_found(
    need: Callable[..., Need], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(needs, "cuda_version", lambda: None)
    monkeypatch.setattr(needs, "cuda_devices", lambda: ())
    assert need("device", device="cpu").is_met
    found = need("device", device="cuda")
    assert not found.is_met
    assert "NVIDIA's driver" in found.fix
    monkeypatch.setattr(needs, "cuda_version", lambda: (11, 4))
    monkeypatch.setattr(needs, "cuda_devices", lambda: (GPU,))
    found = need("device", device="cuda:0")
    assert (found.is_met, found.fix) == (False, "install a newer driver")
    assert "CUDA 11.4, expected 12.0" in found.found
    monkeypatch.setattr(needs, "cuda_version", lambda: (12, 8))
    assert need("device", device="cuda").found == "NVIDIA H200, driver for CUDA 12.8"
    assert not need("device", device="cuda:1").is_met


def test_a_batch_that_has_no_room_is_found(
    need: Callable[..., Need], monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = need("memory", max_batch=1).found, need("memory", max_batch=64).found
    assert small != large
    assert "64 pictures at once" in large
    monkeypatch.setattr(needs, "free_memory_bytes", lambda: 100 << 20)
    found = need("memory")
    assert not found.is_met
    assert found.fix.startswith("lower max_batch")


def test_a_low_limit_of_open_files_is_found(
    need: Callable[..., Need], monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1 << 20))
    found = need("open files")
    wanted = 512 + 64 + 2 * 16 * 33 + 256  # connections, probes, uploads, and the rest
    assert (found.is_met, found.fix) == (False, f"ulimit -n {wanted}")
    assert need("open files", max_connections=100_512).fix == f"ulimit -n {100_000 + wanted}"
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 512))
    assert need("open files").fix == f"raise the hard limit to {wanted}"


def test_folders_and_files_that_cannot_be_used_are_found(
    need: Callable[..., Need], tmp_path: Path
) -> None:
    assert need("store", store=str(tmp_path / "new" / "store")).is_met
    (tmp_path / "file").touch()
    assert not need("store", store=str(tmp_path / "file")).is_met
    assert need("model", model=str(tmp_path / "none")).fix == "check the path"
    assert not need("blocklist", blocklist=str(tmp_path / "none")).is_met


def test_doctor_looks_at_the_options_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "serve.toml"
    config.write_text('host = "0.0.0.0"\nport = 0\n')
    assert main(["doctor", "--json", "--config", str(config)]) == 0
    service = json.loads(capsys.readouterr().out)["service"]
    assert service["is_ready"] is False
    assert {"address"} <= {one["name"] for one in service["needs"] if not one["is_met"]}
    assert main(["doctor", "--config", str(config)]) == 0
    assert "give --keys FILE" in capsys.readouterr().out
    config.write_text("prot = 0\n")
    assert main(["doctor", "--json", "--config", str(config)]) == 0
    (need,) = json.loads(capsys.readouterr().out)["service"]["needs"]
    assert need["name"] == "options"
    assert need["fix"] == "did you mean port?"


def test_doctor_tells_of_an_unknown_variable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "BOOTPIG_RT_OPTION_PROT", "1")
    assert main(["doctor"]) == 0
    assert "did you mean port?" in capsys.readouterr().out


def test_what_checks_and_signs_pictures_is_looked_at(
    need: Callable[..., Need],
    make_certificates: Callable[..., tuple[Path, Path, Path]],
    tmp_path: Path,
) -> None:
    (tmp_path / "b.txt").write_text("one\ntwo\n")
    found = need("blocklist", blocklist=str(tmp_path / "b.txt"))
    assert found == Need("blocklist", True, f"2 entries in {tmp_path / 'b.txt'}")
    (tmp_path / "b.txt").write_text("re: (\n")
    found = need("blocklist", blocklist=str(tmp_path / "b.txt"))
    assert (found.is_met, found.fix) == (False, "repair it")
    found = need("safety checker", safety_model=str(tmp_path / "none.onnx"))
    assert (found.is_met, found.fix) == (False, "check the path")
    for days, is_met, expected in (
        ((-1, 90), True, "es256, until 2"),
        ((-9, -1), False, "expired"),
    ):
        chain, key, _ = make_certificates(days=days)
        files = {"credentials_certificate": str(chain), "credentials_key": str(key)}
        found = need("credentials", **files)
        assert found.is_met == is_met
        assert expected in found.found
