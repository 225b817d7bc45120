from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootpig_rt.engine.rows import GuidanceRows, PictureBranches, plan_guidance

SCALES = st.sampled_from([0.0, 0.5, 1.0, 3.0, 7.5])
PICTURES = st.lists(
    st.builds(
        PictureBranches,
        prompt=st.integers(0, 3),
        negative_prompt=st.integers(0, 3),
        references=st.lists(st.integers(0, 5), unique=True, max_size=3).map(tuple),
        image_guidance_scale=SCALES,
        text_guidance_scale=SCALES,
    ),
    min_size=1,
    max_size=5,
)


def picture(references: tuple[int, ...] = (0,), *, image: float, text: float) -> PictureBranches:
    return PictureBranches(
        prompt=1,
        negative_prompt=0,
        references=references,
        image_guidance_scale=image,
        text_guidance_scale=text,
    )


def content(rows: GuidanceRows, row: int) -> tuple[int, int, tuple[int, ...]]:
    references = tuple(int(ref) for ref in rows.ref_of_row[row] if ref != -1)
    return int(rows.picture_of_row[row]), int(rows.text_of_row[row]), references


def output_of_row(row: tuple[int, int, tuple[int, ...]]) -> float:
    """Any function of what a row reads: equal rows give equal outputs, others do not."""
    return float(np.random.default_rng([row[0], row[1], len(row[2]), *row[2]]).standard_normal())


@given(PICTURES)
def test_leaving_rows_out_never_changes_the_guided_output(pictures: list[PictureBranches]) -> None:
    rows = plan_guidance(pictures)
    outputs = np.array([output_of_row(content(rows, i)) for i in range(len(rows.text_of_row))])
    for number, one in enumerate(pictures):
        uncond = output_of_row((number, one.negative_prompt, ()))
        image = output_of_row((number, one.negative_prompt, one.references))
        text = output_of_row((number, one.prompt, one.references))
        s_image, s_text = one.image_guidance_scale, one.text_guidance_scale
        full = uncond + s_image * (image - uncond) + s_text * (text - image)
        u, i, t = outputs[rows.rows_of_picture[:, number]]
        assert u + s_image * (i - u) + s_text * (t - i) == pytest.approx(full, abs=1e-12)


@given(PICTURES)
def test_no_row_is_computed_twice_and_those_with_fewest_references_come_first(
    pictures: list[PictureBranches],
) -> None:
    rows = plan_guidance(pictures)
    found = [content(rows, row) for row in range(len(rows.text_of_row))]
    assert len(set(found)) == len(found)
    assert [len(row[2]) for row in found] == sorted(len(row[2]) for row in found)
    assert set(rows.rows_of_picture.ravel().tolist()) == set(range(len(found)))


@pytest.mark.parametrize(
    ("image", "text", "num_rows"),
    [
        (4.0, 6.5, 3),  # all three
        (1.0, 6.5, 2),  # uncond cancels
        (4.0, 4.0, 2),  # image cancels
        (4.0, 0.0, 2),  # text_image cancels
        (1.0, 1.0, 1),  # no guidance: text_image alone
        (0.0, 0.0, 1),  # uncond alone
        (1.0, 0.0, 1),  # image alone
    ],
)
def test_only_rows_that_matter_are_computed(image: float, text: float, num_rows: int) -> None:
    assert len(plan_guidance([picture(image=image, text=text)]).text_of_row) == num_rows


def test_uncond_row_reads_no_reference() -> None:
    rows = plan_guidance([picture((2, 4), image=4.0, text=6.5)])
    uncond, image, text_image = rows.rows_of_picture[:, 0]
    assert rows.ref_of_row[uncond].tolist() == [-1, -1]
    assert rows.ref_of_row[image].tolist() == rows.ref_of_row[text_image].tolist() == [2, 4]
    assert rows.text_of_row[[uncond, image, text_image]].tolist() == [0, 0, 1]


def test_a_picture_without_a_subject_has_two_rows() -> None:
    rows = plan_guidance([picture((), image=4.0, text=6.5)])
    assert rows.text_of_row.tolist() == [0, 1]
    assert rows.rows_of_picture[:, 0].tolist() == [0, 0, 1]
