"""Options of reference tables: what is wrong is refused by its name, and nothing is dropped."""

from __future__ import annotations

from typing import Any

import pytest

from bootpig_rt.errors import ParameterError
from bootpig_rt.reference.table_options import TableOptions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float7"}, "dtype is 'float7', expected one of: float32, float16"),
        ({"budget_bytes": -1}, "budget_bytes is -1, expected 0.."),
        ({"budget_bytes": 1.5}, "budget_bytes is 1.5"),
        ({"rows_per_launch": 0}, r"rows_per_launch is 0, expected 1..4096"),
        ({"device_bytes": "1 GiB"}, "device_bytes is '1 GiB'"),
        ({"host_bytes": True}, "host_bytes is True"),
        ({"folder_bytes": -1}, "folder_bytes is -1"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        TableOptions(**options)


def test_an_unknown_option_is_refused() -> None:
    wrong: dict[str, Any] = {"table_dtype": "int8"}
    with pytest.raises(TypeError, match="table_dtype"):
        TableOptions(**wrong)


def test_options_cannot_change_under_a_store() -> None:
    options: Any = TableOptions()
    with pytest.raises(AttributeError):
        options.device_bytes = 0
