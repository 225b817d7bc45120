"""Which media type a caller prefers, by the qualities and the precedence of RFC 9110."""

from __future__ import annotations

import pytest

from bootpig_rt.server.accept import preferred

JSON, PNG = "application/json", "image/png"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ([], JSON),
        ([""], JSON),
        (["*/*"], JSON),
        (["application/json, image/*"], JSON),
        (["image/*, application/json"], JSON),
        (["image/png"], PNG),
        (["IMAGE/PNG"], PNG),
        (["image/*"], PNG),
        (["image/png, */*;q=0.1"], PNG),
        (["image/png;q=0.9, application/json"], JSON),
        (["image/png, application/json;q=0.999"], PNG),
        (["image/png", "application/json;q=0.2"], PNG),
        (["*/*, application/json;q=0"], PNG),
        (["*/*;q=0.5, image/*;q=0.4, image/png;q=0.8"], PNG),
        (["image/*, image/png;q=0.1, application/json;q=0.5"], JSON),
        (["application/*;q=0.3, image/png;q=0.2"], JSON),
        (["application/json ; q=0.2 , image/png ; q=1.000"], PNG),
        (['text/plain;note="a, image/png", application/json'], JSON),
    ],
)
def test_the_highest_quality_wins_and_of_equal_ones_the_first_offer(
    accept: list[str], expected: str
) -> None:
    assert preferred(accept, [JSON, PNG]) == expected


@pytest.mark.parametrize(
    "accept", ["text/html", "image/webp", "*/*;q=0", "image/*;q=0.0", "text/*, image/png;q=0.000"]
)
def test_where_nothing_is_acceptable_nothing_is_preferred(accept: str) -> None:
    assert preferred([accept], [JSON, PNG]) is None


@pytest.mark.parametrize(
    "accept",
    ["image", "image/png/x", ";;;", "image/png;q=2", "image/png;q=-1", "image/png;v=1", '"'],
)
def test_what_is_no_range_or_one_of_parameters_is_passed_over(accept: str) -> None:
    assert preferred([accept], [JSON, PNG]) == JSON
    assert preferred([accept, "image/*"], [JSON, PNG]) == PNG
