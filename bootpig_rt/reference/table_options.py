"""How reference tables are made and kept."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike

from bootpig_rt.backends.host_table import TABLE_DTYPES, TableDtype
from bootpig_rt.checks import check_int, check_name

_MOST = 1 << 50


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """How reference tables are made and kept.

    Attributes:
        dtype: How tables keep their numbers: `float32`, `float16`, `bfloat16`, `float8` or `int8`,
            the last two with a scale for each head. None: as the backend computes.
        budget_bytes: Device memory for the tables that one launch reads; a larger table stays on
            the host and is streamed step by step. None: no limit.
        rows_per_launch: (entry, reference) pairs that go through the Reference U-Net at once:
            bounds the memory of a pass.
        device_bytes: Device memory for tables that are kept between requests.
        host_bytes: Host memory for tables that left the device for lack of room, and for streamed
            ones. None: 4 GiB with a `budget_bytes`, else none.
        folder: Keeps tables and subjects on disk, between processes. None: the folder that the
            environment variable BOOTPIG_RT_STORE names, if it is set.
        folder_bytes: Disk space for those tables; the least recently used ones are removed.

    Raises:
        ParameterError: A value is unknown or out of range.
    """

    dtype: TableDtype | None = None
    budget_bytes: int | None = None
    rows_per_launch: int = 16
    device_bytes: int = 1 << 30
    host_bytes: int | None = None
    folder: str | PathLike[str] | None = None
    folder_bytes: int = 16 << 30

    def __post_init__(self) -> None:
        """Check every field."""
        if self.dtype is not None:
            check_name("dtype", self.dtype, TABLE_DTYPES)
        check_int("rows_per_launch", self.rows_per_launch, 1, 4096, "16 is usual")
        for name in ("budget_bytes", "device_bytes", "host_bytes", "folder_bytes"):
            value = getattr(self, name)
            if value is not None:
                check_int(name, value, 0, _MOST)
