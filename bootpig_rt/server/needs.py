"""What a service needs of the machine that it is to run on, looked at before it runs.

For `bootpig-rt doctor`. Loads no model and needs none of the packages of the service: those that
are missing are the first thing that it tells.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bootpig_rt.backends.cuda.devices import cuda_devices, cuda_version
from bootpig_rt.backends.host_memory import free_memory_bytes
from bootpig_rt.bundle.pair_config import read_pair_config
from bootpig_rt.bundle.shipped import default_model
from bootpig_rt.errors import BootPIGError, describe_os_error
from bootpig_rt.export.build_options import build_options, size_multiple_px
from bootpig_rt.export.estimate import estimate
from bootpig_rt.images.signing_files import read_signing_files
from bootpig_rt.server.blocklist import Blocklist
from bootpig_rt.server.guard.authority import is_loopback
from bootpig_rt.server.guard.capacity import RESERVE
from bootpig_rt.server.guard.keys import read_keys
from bootpig_rt.server.nsfw import find_network
from bootpig_rt.server.options import ServerOptions

FILES_BESIDE_CLIENTS = 256
"""File descriptors of libraries, logs, model files and sockets that listen."""

_KINDS_OF_UPLOADS = 2
"""Images to draw with, and subjects: each has `max_uploads` places."""

OLDEST_CUDA = (12, 0)
"""What current builds of ONNX Runtime, PyTorch and TensorRT ask of a driver."""

_EXTRAS = {
    "serve": ("fastapi", "uvicorn", "python-multipart", "prometheus-client"),
    "otel": ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"),
    "provenance": ("c2pa-python",),
}


@dataclass(frozen=True)
class Need:
    """One thing that was looked at.

    Attributes:
        name: In a word.
        is_met: It is as it should be.
        found: What was found.
        fix: What to do, where it is not.
    """

    name: str
    is_met: bool
    found: str
    fix: str = ""


def needs_of(options: ServerOptions) -> list[Need]:
    """Everything that a service with these options needs, with what is there of it."""
    return [
        *_packages(options),
        _address(options),
        _port(options),
        *_keys(options),
        _device(options),
        _open_files(options),
        _memory(options),
        *_folders(options),
        *_output(options),
    ]


def _packages(options: ServerOptions) -> Iterator[Need]:
    extras = {"serve": True, "otel": options.traces}
    extras["provenance"] = options.credentials_certificate is not None
    for extra, is_wanted in extras.items():
        if not is_wanted:
            continue
        found = {name: _version(name) for name in _EXTRAS[extra]}
        missing = [name for name, number in found.items() if number is None]
        told = ", ".join(f"{name} {number}" for name, number in found.items() if number)
        if missing:
            fix = f"pip install 'bootpig-rt[{extra}]'"
            yield Need("packages", False, f"{', '.join(missing)} missing", fix)
        else:
            yield Need("packages", True, told)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _address(options: ServerOptions) -> Need:
    host = options.host
    if is_loopback(host):
        return Need("address", True, f"{host}: this machine alone")
    if options.keys is not None:
        return Need("address", True, f"{host}: the network, with keys")
    if options.insecure:
        return Need("address", True, f"{host}: the network, without keys, as --insecure says")
    fix = "give --keys FILE (`bootpig-rt keys add` makes one), or --insecure in a closed network"
    return Need("address", False, f"{host} is reached from the network, and there are no keys", fix)


def _port(options: ServerOptions) -> Need:
    if options.port == 0:
        return Need("port", True, "any free one")
    where = f"{options.host}:{options.port}"
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((options.host, options.port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                fix = "end who uses it, or choose another with --port, 0 for a free one"
                return Need("port", False, f"{where} is in use", fix)
            if error.errno == errno.EACCES:
                fix = "choose one above 1023 with --port"
                return Need("port", False, f"{where} is for the superuser", fix)
            fix = "give an address of this machine with --host"
            return Need("port", False, f"{where}: {describe_os_error(error)}", fix)
    return Need("port", True, f"{where} is free")


def _keys(options: ServerOptions) -> Iterator[Need]:
    if options.keys is None:
        return
    try:
        keys = read_keys(options.keys)
    except BootPIGError as error:
        found, _, fix = str(error).partition("; ")
        yield Need("keys", False, found, fix or "see `bootpig-rt keys --help`")
        return
    if keys:
        yield Need("keys", True, f"{len(keys)} in {options.keys}")
    else:
        yield Need("keys", False, f"none in {options.keys}", "`bootpig-rt keys add` makes one")


def _device(options: ServerOptions) -> Need:
    devices, driver = cuda_devices(), cuda_version()
    if not options.device.startswith("cuda"):
        told = ", ".join(device.name for device in devices) or "no GPU"
        return Need("device", True, f"{options.device}; {told}")
    if driver is None:
        fix = "install NVIDIA's driver, or start the container with --gpus all; or --device cpu"
        return Need("device", False, f"no NVIDIA driver for {options.device}", fix)
    number = ".".join(map(str, driver))
    if driver < OLDEST_CUDA:
        oldest = ".".join(map(str, OLDEST_CUDA))
        found = f"the NVIDIA driver is for CUDA {number}, expected {oldest} or later"
        return Need("device", False, found, "install a newer driver")
    index = int(options.device.partition(":")[2] or 0)
    if index >= len(devices):
        found = f"no {options.device}: the driver shows {len(devices)} GPUs"
        return Need("device", False, found, "look at CUDA_VISIBLE_DEVICES, and at `nvidia-smi`")
    return Need("device", True, f"{devices[index].name}, driver for CUDA {number}")


def _open_files(options: ServerOptions) -> Need:
    in_upload = 1 + (options.max_body_bytes >> 20)  # files of under 1 MiB stay in memory
    uploads = _KINDS_OF_UPLOADS * options.max_uploads * in_upload
    wanted = options.max_connections + RESERVE + uploads + FILES_BESIDE_CLIENTS
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return Need("open files", True, "no limit on this system")
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or limit >= wanted:
        return Need("open files", True, f"{'no limit' if limit < 0 else limit}")
    is_allowed = most == resource.RLIM_INFINITY or most >= wanted
    fix = f"ulimit -n {wanted}" if is_allowed else f"raise the hard limit to {wanted}"
    return Need("open files", False, f"{limit}, expected {wanted} for many clients", fix)


def _memory(options: ServerOptions) -> Need:
    """Host memory, and on a CPU that of the model as well."""
    uploads = options.max_uploads * options.max_body_bytes
    parts = {"bodies of uploads": uploads, "subjects of a tenant": options.tenant_subject_bytes}
    is_on_host = not options.device.startswith("cuda") and not (
        options.device == "auto" and cuda_devices()
    )
    if is_on_host:
        model = _model_bytes(options)
        if model is not None:
            parts[f"the model with {options.max_batch} pictures at once"] = model
        parts["reference tables"] = options.device_table_bytes
    total, free = sum(parts.values()), free_memory_bytes()
    told = ", ".join(f"{_mib(size)} {name}" for name, size in parts.items())
    if free is None:
        return Need("memory", True, f"{_mib(total)} at most: {told}")
    found = f"{_mib(free)} free, {_mib(total)} at most: {told}"
    fix = "lower max_batch, device_table_bytes, max_uploads or max_body_bytes"
    return Need("memory", free >= total, found, "" if free >= total else fix)


def _model_bytes(options: ServerOptions) -> int | None:
    """What a full batch of the model's own size takes with its weights; None where unknown."""
    folder = default_model() if options.model is None else Path(options.model)
    rest = folder if options.base_model is None else Path(options.base_model)
    try:
        config = read_pair_config(folder / "pair.json")
        order = build_options(
            config,
            size_multiple_px=size_multiple_px(folder, rest),
            resolution=str(config.sample_size_px),
            max_batch=options.max_batch,
        )
        memory = estimate(folder, rest, config, order, num_graphs=0).largest
    except BootPIGError:  # no pair with weights of its own: the command that loads it will say
        return None
    return memory.total_bytes - memory.table_bytes


def _folders(options: ServerOptions) -> Iterator[Need]:
    models = {"model": options.model, **options.models}
    for name, folder in models.items():
        if folder is not None and not Path(folder).is_dir():
            yield Need("model", False, f"no folder {folder!r} for {name}", "check the path")
    for name in ("store", "subject_folder"):
        folder = getattr(options, name)
        if folder is not None:
            yield _writable(name, Path(folder))
    if options.trust is not None and not os.access(options.trust, os.R_OK):
        fix = "check the path and permissions"
        yield Need("trust", False, f"{options.trust!r} cannot be read", fix)


def _output(options: ServerOptions) -> Iterator[Need]:
    """What pictures and prompts are checked and signed with: the errors that the server would give.

    The network of the checker is not run.
    """
    checks: dict[str, Callable[[], str]] = {}
    if options.blocklist is not None:
        checks["blocklist"] = partial(_blocklist, options.blocklist)
    if options.safety_model is not None:
        checks["safety checker"] = partial(_network, options.safety_model)
    if options.credentials_certificate is not None and options.credentials_key is not None:
        files = (options.credentials_certificate, options.credentials_key)
        checks["credentials"] = partial(_certificate, *files)
    for name, check in checks.items():
        try:
            yield Need(name, True, check())
        except BootPIGError as error:
            found, _, fix = str(error).rpartition("; ")
            yield Need(name, False, found or fix, fix if found else "")


def _blocklist(file: str) -> str:
    return f"{len(Blocklist.load(file).entries)} entries in {file}"


def _network(file: str) -> str:
    return str(find_network(file))


def _certificate(certificate: str, key: str) -> str:
    files = read_signing_files(certificate, key)
    files.check_time(datetime.now(UTC))
    return f"{files.algorithm}, until {files.ends:%Y-%m-%d}"


def _writable(name: str, folder: Path) -> Need:
    """Whether a folder, or the nearest one above it that there is, can be written to."""
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return Need(name, True, f"{folder} can be written to")
    return Need(
        name, False, f"{folder} cannot be written to", "choose another, or change its owner"
    )


def _mib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 1 << 30 else f"{size / 2**20:.0f} MiB"
