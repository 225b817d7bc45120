"""What a process takes: memory, its peak, processor time, open files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """Of one process, where the system tells.

    Attributes:
        process: Its id; `self` for this one.
    """

    process: int | str = "self"

    def memory_mib(self) -> float:
        """Resident now."""
        return self._status("VmRSS") / 1024

    def forget_peak(self) -> None:
        """The peak begins anew."""
        (self._folder / "clear_refs").write_text("5")

    def peak_mib(self) -> float:
        """Most that was resident since the peak was forgotten."""
        return self._status("VmHWM") / 1024

    def cpu_s(self) -> float:
        """Processor time so far."""
        fields = (self._folder / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def num_files(self) -> int:
        """Open files and sockets."""
        return len(os.listdir(self._folder / "fd"))

    @property
    def _folder(self) -> Path:
        return Path("/proc") / str(self.process)

    def _status(self, name: str) -> int:
        for line in (self._folder / "status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
        raise OSError(f"the system does not tell {name}")
