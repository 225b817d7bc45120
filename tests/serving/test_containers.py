"""Dockerfiles and the compose file: linted, and telling the command what it knows.

No daemon is asked. The slow test runs by hand what the first stage runs, and starts the service
from what the second one would get.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from bootpig_rt.cli.main import build_parser
from bootpig_rt.server.config import options_of

DOCKERFILES = ("Dockerfile", "Dockerfile.cuda")
BUILD_TOOLS = ("gcc", "g++", "build-essential", "cmake", "make", "git", "pip")


def stages(path: Path) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each stage by its name, with its instructions."""
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.M).replace("\\\n", " ")
    found: list[tuple[str, list[tuple[str, str]]]] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            found.append((rest.partition(" AS ")[2], [("FROM", rest)]))
        elif found:
            found[-1][1].append((word, rest.strip()))
    return found


def final(path: Path) -> list[tuple[str, str]]:
    """Instructions of the last stage, and of those that it stands on."""
    by_name = dict(stages(path))
    _, instructions = stages(path)[-1]
    while (base := instructions[0][1].partition(" ")[0]) in by_name:
        instructions = [*by_name[base], *instructions[1:]]
    return instructions


@pytest.fixture(params=DOCKERFILES)
def dockerfile(request: pytest.FixtureRequest, root: Path) -> Path:
    """One of the Dockerfiles."""
    return root / "deploy" / str(request.param)


def test_hadolint_finds_nothing(dockerfile: Path) -> None:
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    if not hadolint.exists():
        pytest.skip("needs the extra deploy")
    done = subprocess.run([hadolint, dockerfile], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 0)


def test_the_last_stage_has_no_build_tools_and_is_nobody(dockerfile: Path) -> None:
    instructions = final(dockerfile)
    assert instructions[0][1].partition(" ")[0].endswith("-slim")
    ran = " ".join(rest for word, rest in instructions if word == "RUN")
    assert set(shlex.split(ran)).isdisjoint(BUILD_TOOLS)
    users = [rest for word, rest in instructions if word == "USER"]
    assert users[-1] == "10001:10001"
    copied = [rest for word, rest in instructions if word == "COPY"]
    assert copied == ["--from=build /venv /venv"]  # and no sources


def test_what_it_runs_is_the_command_with_options_that_there_are(dockerfile: Path) -> None:
    told = {word: rest for word, rest in final(dockerfile) if word in ("CMD", "ENTRYPOINT")}
    assert json.loads(told["ENTRYPOINT"]) == ["bootpig-rt", "serve"]
    args = build_parser(["serve"]).parse_args(["serve", *json.loads(told["CMD"])])
    options = options_of(args)
    assert options.host == "0.0.0.0"
    assert options.keys is not None


def test_its_health_is_readiness(dockerfile: Path) -> None:
    (check,) = [rest for word, rest in final(dockerfile) if word == "HEALTHCHECK"]
    program, flag, code = json.loads(check.partition("CMD ")[2])
    assert (program, flag) == ("python", "-c")
    compile(code, "HEALTHCHECK", "exec")
    assert "/readyz" in code


@pytest.fixture(scope="module")
def compose(root: Path) -> Any:
    """The compose file, as its specification reads it."""
    compose_spec = pytest.importorskip("compose_spec")
    text = (root / "deploy" / "compose.yaml").read_text()
    file = compose_spec.PyCompose.from_yaml(text)
    file.validate()
    file.to_spec()
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(text)


def test_compose_gives_the_service_options_that_it_has(compose: Any) -> None:
    service = compose["services"]["bootpig"]
    args = build_parser(["serve"]).parse_args(["serve", *service["command"]])
    options = options_of(args)
    assert service["stop_grace_period"] == "45s"
    assert options.drain_s < 40
    assert options.allowed_hosts == ("bootpig",)
    mounts = [one.split(":")[1] for one in service["volumes"]]
    for path in (options.keys, options.store, options.subject_folder):
        assert any(str(path).startswith(mount) for mount in mounts)
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]


def test_compose_opens_ports_of_this_machine_alone(compose: Any) -> None:
    ports = [port for one in compose["services"].values() for port in one.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert "ports" not in compose["services"]["prometheus"]


def test_compose_mounts_what_is_there(compose: Any, root: Path) -> None:
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (root / "deploy" / source).is_dir()
    assert (root / compose["services"]["bootpig"]["build"]["dockerfile"]).is_file()


def is_in_context(path: str, patterns: list[str]) -> bool:
    """Whether the builder gets a file: the last pattern that fits it or its folder decides."""
    is_in = True
    parts = path.split("/")
    places = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    for pattern in patterns:
        bare = pattern.removeprefix("!")
        plain = bare.removeprefix("**/")
        names = parts if bare.startswith("**/") else places
        if any(fnmatch.fnmatchcase(one, plain) for one in names):
            is_in = pattern.startswith("!")
    return is_in


def context(root: Path) -> list[str]:
    """Files of the repository that the builder gets."""
    lines = (root / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return [path for path in listed if is_in_context(path, patterns)]


def test_the_context_has_what_a_wheel_is_made_of_and_nothing_of_tests(root: Path) -> None:
    files = context(root)
    assert {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"} <= set(files)
    assert "bootpig_rt/server/app.py" in files
    assert "bootpig_rt/kernels" in files or "bootpig_rt/kernels/__init__.py" in files
    assert "kernels/__init__.py" in files
    assert not [path for path in files if path.startswith(("tests/", "docs/", ".git"))]


@pytest.mark.slow
def test_the_first_stage_builds_what_the_second_one_serves(root: Path, tmp_path: Path) -> None:
    """Its commands as they stand, in folders of this test, with the packages of an index."""
    source, venv = tmp_path / "src", tmp_path / "venv"
    for name in context(root):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, target, follow_symlinks=False)
    (_, instructions), *_ = stages(root / "deploy" / "Dockerfile")
    (command,) = [rest for word, rest in instructions if word == "RUN"]
    for path in ("/venv", "/wheels"):
        command = command.replace(path, str(tmp_path / path.strip("/")))
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
    }
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", command],
        cwd=source,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    programs = {path.name for path in (venv / "bin").iterdir()}
    assert "bootpig-rt" in programs
    assert "pip" not in programs
    (packages,) = (venv / "lib").glob("python*/site-packages")
    assert not (packages / "pip").exists()
    assert (packages / "onnxruntime").is_dir()
    assert not (packages / "torch").exists()
    _serves(venv, tmp_path)


def _serves(venv: Path, folder: Path) -> None:
    """The entry point comes up, and the health check agrees."""
    process = subprocess.Popen(
        [venv / "bin" / "bootpig-rt", "serve", "--port", "0"],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        env={
            "PATH": f"{venv / 'bin'}:/usr/bin:/bin",
            "PYTHONSAFEPATH": "1",
            "OMP_NUM_THREADS": "1",
        },
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        ends = time.monotonic() + 60
        while True:
            with urllib.request.urlopen(f"{address}/readyz", timeout=10) as answer:
                if answer.status == 200:
                    break
            assert time.monotonic() < ends
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0
