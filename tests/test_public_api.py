"""The names that users import, and the tree of errors."""

from __future__ import annotations

import errno
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bootpig_rt
from bootpig_rt import errors


@pytest.mark.parametrize("name", bootpig_rt.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(bootpig_rt, name) is not None
    assert name in dir(bootpig_rt)


def test_the_lazy_table_and_the_public_names_agree() -> None:
    assert set(bootpig_rt._MODULE_OF_NAME) | {"__version__"} == set(bootpig_rt.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Pipelin'"):
        bootpig_rt.Pipelin  # noqa: B018


def test_public_callables_are_documented() -> None:
    named = {name: getattr(bootpig_rt, name) for name in bootpig_rt.__all__ if name[0] != "_"}
    assert [name for name, value in named.items() if not value.__doc__] == []


def error_types() -> list[type[errors.BootPIGError]]:
    found: list[type[errors.BootPIGError]] = []
    todo = [errors.BootPIGError]
    while todo:
        todo += todo[0].__subclasses__()
        found.append(todo.pop(0))
    return [kind for kind in found if kind.__module__ == "bootpig_rt.errors"]


def test_every_error_is_public_and_in_the_drawing_of_the_tree() -> None:
    names = {kind.__name__ for kind in error_types()}
    assert names <= set(bootpig_rt.__all__)
    assert names == set(re.findall(r"^[ │├└─]*([A-Z]\w+)", errors.__doc__ or "", re.M)) & names


@pytest.mark.parametrize(
    ("kind", "builtin", "code"),
    [
        ("InputError", ValueError, 2),
        ("PromptError", ValueError, 2),
        ("ImageError", ValueError, 2),
        ("ParameterError", ValueError, 2),
        ("ConfigError", ValueError, 2),
        ("CheckpointError", Exception, 2),
        ("BundleError", errors.CheckpointError, 2),
        ("BackendUnavailable", ImportError, 2),
        ("SubjectMismatch", Exception, 2),
        ("StorageError", OSError, 1),
        ("NumericalError", Exception, 1),
        ("EngineError", Exception, 1),
        ("EndpointError", Exception, 1),
        ("ProcessLost", Exception, 1),
        ("DeadlineExceeded", TimeoutError, 1),
        ("ParityError", Exception, 1),
        ("Cancelled", Exception, 130),
    ],
)
def test_errors_are_caught_as_their_builtin_kind(
    kind: str, builtin: type[Exception], code: int
) -> None:
    error = getattr(errors, kind)("what was wrong")
    assert isinstance(error, errors.BootPIGError)
    assert isinstance(error, builtin)
    assert str(error) == "what was wrong"
    assert error.exit_code == code


def test_a_full_engine_says_when_to_try_again() -> None:
    error = errors.EngineFull("no place is free", 1.5)
    assert isinstance(error, errors.BootPIGError)
    assert (str(error), error.retry_after_s, error.exit_code) == ("no place is free", 1.5, 1)


@pytest.mark.parametrize(
    "error",
    [
        errors.ParameterError("steps is 0, expected 1..1000"),
        errors.CheckpointError("truncated", "vae/config.json"),
        errors.OutOfDeviceMemory("drawing", asked_bytes=1 << 30),
        errors.EngineFull("no place is free", 1.5),
        errors.EngineLost("its replica has died"),
        errors.BackendUnavailable("no onnxruntime"),
        errors.StorageError("cannot write"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_cross_processes_whole(error: errors.BootPIGError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), vars(again)) == (str(error), vars(error))


def test_a_checkpoint_error_names_its_file() -> None:
    assert errors.CheckpointError("truncated", Path("vae/config.json")).path == Path(
        "vae/config.json"
    )
    assert errors.CheckpointError("truncated").path is None


def test_a_full_disk_is_described_with_a_fix() -> None:
    text = errors.describe_os_error(OSError(errno.ENOSPC, "No space left on device", "out.png"))
    assert text == "no space left on device (out.png); free some space or write to another disk"


def test_an_unknown_os_error_is_described_by_what_it_says() -> None:
    assert errors.describe_os_error(OSError("odd")) == "odd"


LOAD_A_GRAPH = """
import os, sys
if sys.argv[2] == "ours":
    import bootpig_rt
import onnxruntime
onnxruntime.InferenceSession(sys.argv[1])
print(os.environ.get("ORT_DISABLE_TELEMETRY"), os.environ.get("RAY_USAGE_STATS_ENABLED"))
"""


@pytest.mark.parametrize(
    ("whose", "environment", "said", "keeps_a_number"),
    [
        ("ours", {}, "1 0", False),
        ("ours", {"ORT_DISABLE_TELEMETRY": "0"}, "0 0", True),  # somebody wants it
        ("theirs", {}, "None None", True),  # else this test would see nothing
    ],
)
def test_nothing_is_reported_to_the_makers_of_libraries_unless_it_is_asked_for(
    root: Path,
    tmp_path: Path,
    whose: str,
    environment: dict[str, str],
    said: str,
    keeps_a_number: bool,
) -> None:
    """That of ONNX Runtime begins with a number for the machine, kept in the home folder."""
    pytest.importorskip("onnxruntime", minversion="1.29", reason="older ones report nothing")
    decisive = ["CI", "GITHUB_ACTIONS", "TF_BUILD", "XDG_CACHE_HOME"]
    decisive += ["ORT_DISABLE_TELEMETRY", "RAY_USAGE_STATS_ENABLED"]
    clean = {name: value for name, value in os.environ.items() if name not in decisive}
    graph = root / "tests" / "data" / "tiny" / "text_kv.onnx"
    done = subprocess.run(
        [sys.executable, "-c", LOAD_A_GRAPH, str(graph), whose],
        env=clean | {"HOME": str(tmp_path)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == said
    assert any(path.name == "deviceid" for path in tmp_path.rglob("*")) == keeps_a_number
