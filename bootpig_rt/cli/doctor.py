"""`bootpig-rt doctor`: what is installed, what can be built and run here, and what is missing."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
from dataclasses import asdict
from typing import Any

from bootpig_rt.errors import EXIT_OK, BootPIGError

NAME = "doctor"
HELP = "show what is installed, which targets can be built and run here, and what is missing"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = "examples:\n  bootpig-rt doctor\n  bootpig-rt doctor --config serve.toml"
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="of `bootpig-rt serve`: look at what a service with these options needs",
    )
    parser.add_argument("--json", action="store_true", help="print a json object on stdout")


def run(args: argparse.Namespace) -> int:
    """Print the findings; nothing that is missing is an error."""
    findings = _findings() | {"service": _service(args)}
    if args.json:
        print(json.dumps(findings, indent=2))
        return EXIT_OK
    print("\n".join(_lines(findings)))
    return EXIT_OK


def _findings() -> dict[str, Any]:
    from bootpig_rt import __version__
    from bootpig_rt.backends import BACKENDS, available_backends
    from bootpig_rt.backends.cuda.devices import cuda_devices
    from bootpig_rt.export.targets import all_targets, tool_versions
    from bootpig_rt.kernels.tiles import measured_rows

    return {
        "version": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": _num_cpus(),
        "free_disk_bytes": shutil.disk_usage(".").free,
        "devices": [
            {
                "name": f"cuda:{device.index}",
                "model": device.name,
                "architecture": device.architecture,
                "memory_bytes": device.memory_bytes,
            }
            for device in cuda_devices()
        ],
        "packages": tool_versions(),
        "tiles": {
            f"sm_{number}": {"measured": measured, "rows": rows}
            for number, (measured, rows) in measured_rows().items()
        },
        "pair": _shipped_pair(),
        "backends": {name: name in available_backends() for name in BACKENDS},
        "install_backend": {
            name: entry.install
            for name, entry in BACKENDS.items()
            if name not in available_backends()
        },
        "targets": [status.to_dict() for status in all_targets()],
    }


def _service(args: argparse.Namespace) -> dict[str, Any]:
    """What a service needs and finds here, with the options of `--config` and the environment."""
    from bootpig_rt.server.config import options_of
    from bootpig_rt.server.needs import Need, needs_of

    try:
        needs = needs_of(options_of(args))
    except BootPIGError as error:
        found, _, fix = str(error).partition("; ")
        needs = [Need("options", False, found, fix)]
    return {"is_ready": all(need.is_met for need in needs), "needs": [asdict(n) for n in needs]}


def _num_cpus() -> int:
    """CPUs that this process may use; all of them where the system cannot tell."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _shipped_pair() -> dict[str, Any]:
    """The pair inside the package, and whether its files are whole."""
    from bootpig_rt.bundle.bundle import is_bundle, open_bundle
    from bootpig_rt.bundle.shipped import default_model

    try:
        folder = default_model()
        if is_bundle(folder):
            open_bundle(folder)
    except BootPIGError as error:
        return {"is_usable": False, "problem": str(error)}
    return {"is_usable": True, "folder": str(folder), "is_bundle": is_bundle(folder)}


def _lines(findings: dict[str, Any]) -> list[str]:
    packages = ", ".join(f"{name} {v}" for name, v in findings["packages"].items())
    devices = [
        f"{device['name']} {device['model']}, {device['architecture']}, "
        f"{device['memory_bytes'] / 1e9:.0f} GB"
        for device in findings["devices"]
    ]
    pair = findings["pair"]
    state = "torch only, no manifest"
    if not pair["is_usable"]:
        state = pair["problem"]
    elif pair["is_bundle"]:
        state = "a whole bundle"
    lines = [
        f"bootpig-rt {findings['version']}, Python {findings['python']}, {findings['platform']}",
        f"machine    {findings['cpus']} CPUs, {'; '.join(devices) or 'no NVIDIA GPU found'}, "
        f"{findings['free_disk_bytes'] / 1e9:.0f} GB free in this folder",
        f"packages   {packages}",
        f"tiles      {_tiles(findings['tiles'])}",
        f"pair       the shipped one: {state}",
        "",
    ]
    for name, is_available in findings["backends"].items():
        fix = "" if is_available else f": {findings['install_backend'][name]}"
        lines.append(f"backend    {name:<12} {'yes' if is_available else 'not installed' + fix}")
    lines += ["", f"{'target':<8} {'build':<6} {'run':<5} missing"]
    for target in findings["targets"]:
        missing = sorted({*target["missing_to_build"], *target["missing_to_run"]})
        text = ", ".join(missing)
        if target["install"]:
            text += f"; {'; '.join(target['install'])}"
        lines.append(
            f"{target['target']:<8} {_yes(target['can_build']):<6} {_yes(target['can_run']):<5} "
            f"{text}"
        )
    lines += ["", f"{'service':<24} {'met':<5} found"]
    for need in findings["service"]["needs"]:
        fix = f"; {need['fix']}" if need["fix"] else ""
        lines.append(f"{need['name']:<24} {_yes(need['is_met']):<5} {need['found']}{fix}")
    return lines


def _tiles(tiles: dict[str, dict[str, int]]) -> str:
    """Which tile configurations of the kernels were measured on their GPU."""
    measured = [
        f"{one['measured']} of {one['rows']} for {name}"
        for name, one in tiles.items()
        if one["measured"]
    ]
    others = [name for name, one in tiles.items() if not one["measured"]]
    return (
        f"measured: {', '.join(measured) or 'none'}; all others from compiled code "
        f"({', '.join(others)}): tune-kernels measures them"
    )


def _yes(value: bool) -> str:
    return "yes" if value else "no"
