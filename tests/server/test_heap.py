"""Memory that is freed goes back to the system, in a process that has long run."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

HOLES = """
import os, sys
from bootpig_rt.server.heap import keep_heap_small
if sys.argv[1] == "small":
    assert keep_heap_small()
def resident_mb():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
bytearray(b"x") * (3 << 20)  # glibc: from now on blocks of this size are carved from the arena
before_mb = resident_mb()
kept, large = [], []
for _ in range(60):
    large.append(bytearray(b"x") * (3 << 20))
    kept.append(bytearray(b"x") * 2000)
del large
print(resident_mb() - before_mb)
"""

of_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")


def held_mb(word: str) -> int:
    """What a process holds after it freed 180 MB between small blocks that it keeps."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    plain.pop("GLIBC_TUNABLES", None)
    command = [sys.executable, "-c", HOLES, word]
    return int(subprocess.run(command, env=plain, check=True, capture_output=True).stdout)


@of_glibc
def test_large_blocks_go_back_to_the_system_when_they_are_freed() -> None:
    assert held_mb("small") < 20
    assert held_mb("as it is") > 100  # the control: that is what a service grew by


@of_glibc
@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_settings_of_the_environment_win(name: str) -> None:
    script = "from bootpig_rt.server.heap import keep_heap_small as keep; print(keep())"
    setting = {name: "4" if name.startswith("MALLOC") else "glibc.malloc.arena_max=4"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env={**os.environ, **setting}, check=True, capture_output=True)
    assert done.stdout.strip() == b"False"
