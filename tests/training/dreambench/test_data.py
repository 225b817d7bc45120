"""The prompts file and the photographs, whole and broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootpig_rt.errors import ConfigError, ParameterError
from bootpig_rt.training.evaluation.dreambench.data import load_dreambench
from bootpig_rt.training.evaluation.dreambench.shots import (
    Part,
    all_shots,
    seed_of,
    shots_of_part,
)

PROMPTS = "dataset/prompts_and_classes.txt"


def change(folder: Path, old: str, new: str) -> None:
    text = (folder / PROMPTS).read_text()
    assert old in text
    (folder / PROMPTS).write_text(text.replace(old, new, 1))


def test_prompts_have_the_noun_and_no_token(bench_folder: Path) -> None:
    bench = load_dreambench(bench_folder)
    assert bench.names == ("dog", "dog2", "vase")
    assert bench.subjects[0].prompts[0].text == "a dog in garb 0"
    assert bench.subjects[2].prompts[0].text == "a vase in place 0"
    assert bench.subjects[2].prompts[24].text == "a cube shaped vase"
    assert bench.subjects[1].reference_prompt == "a photo of a dog"


def test_kinds_of_prompts_are_those_of_the_paper(bench_folder: Path) -> None:
    def kinds(row: int) -> list[str]:
        return [prompt.kind for prompt in load_dreambench(bench_folder).subjects[row].prompts]

    assert kinds(2) == ["recontext"] * 20 + ["property"] * 5
    assert kinds(0) == ["recontext"] * 10 + ["accessory"] * 10 + ["property"] * 5


def test_the_folder_dataset_may_be_named_itself(bench_folder: Path) -> None:
    inside = load_dreambench(bench_folder / "dataset")
    assert inside.digest == load_dreambench(bench_folder).digest


def test_the_digest_tells_other_photographs(bench_folder: Path) -> None:
    before = load_dreambench(bench_folder).digest
    dog, vase = (bench_folder / "dataset" / name / "00.png" for name in ("dog", "vase"))
    dog.write_bytes(vase.read_bytes())
    assert load_dreambench(bench_folder).digest != before


def test_a_missing_subject_is_named_and_may_be_left_out(bench_folder: Path) -> None:
    for photograph in (bench_folder / "dataset" / "dog2").iterdir():
        photograph.unlink()
    with pytest.raises(ConfigError, match="dog2 of 3 subjects .* fetch-data --set dreambench"):
        load_dreambench(bench_folder)
    assert load_dreambench(bench_folder, names=["vase", "dog"]).names == ("dog", "vase")


def test_one_photograph_is_too_few_for_an_oracle(bench_folder: Path) -> None:
    (bench_folder / "dataset" / "vase" / "01.png").unlink()
    with pytest.raises(ConfigError, match="fewer than two photographs"):
        load_dreambench(bench_folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("'a {0} {1} in place 3'.format(unique_token, class_token),\n", "", "has 24 lines under"),
        ("'a {0} {1} in place 3'", "'a {0} thing'", "line 16 is .*expected 'a {0} {1}"),
        ("'a {0} {1} in place 3'", "'a {0.x} {1}'", "line 16 is"),
        ("'a {0} {1} in place 3'", "'a {1} {'", "line 16 is"),
        ("'a {0} {1} in place 3'.format", "__import__('os').system", "line 16 is"),
        ("dog2,dog", "dog,cat", "line 5 is 'dog,cat', expected a new subject"),
        ("dog2,dog", "../dog,dog", "line 5 is"),
        ("dog2,dog", "dog2", "line 5 is 'dog2', expected a section, a subject or a prompt"),
        ("Live Subject Prompts", "Live prompts", "line 40 is 'Live prompts'"),
    ],
)
def test_a_malformed_prompts_file_is_refused_by_line(
    bench_folder: Path, old: str, new: str, message: str
) -> None:
    change(bench_folder, old, new)
    with pytest.raises(ConfigError, match=message):
        load_dreambench(bench_folder)


def test_a_prompts_file_that_is_none_is_refused(bench_folder: Path) -> None:
    path = bench_folder / PROMPTS
    path.write_bytes(b"x" * (11 << 20))
    with pytest.raises(ConfigError, match="over 1 MiB"):
        load_dreambench(bench_folder)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_dreambench(bench_folder)
    path.unlink()
    with pytest.raises(ConfigError, match="is missing, expected DreamBench"):
        load_dreambench(bench_folder)


def test_an_unknown_subject_is_refused(bench_folder: Path) -> None:
    with pytest.raises(ConfigError, match="subject 'cat' is not in .*: dog, dog2, vase"):
        load_dreambench(bench_folder, names=["cat"])


def test_parts_hold_every_picture_once_and_keep_subjects_together(bench_folder: Path) -> None:
    shots = all_shots(load_dreambench(bench_folder), 4)
    assert len(shots) == 3 * 25 * 4
    parts = [shots_of_part(shots, Part(k, 7)) for k in range(1, 8)]
    assert [shot for part in parts for shot in part] == shots
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert len({shot.subject for shot in parts[0]}) == 1


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "1", "a/b", "1/4/2", "-1/4", ""])
def test_a_part_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ParameterError, match="--part is"):
        Part.parse(text)


def test_a_seed_depends_on_its_own_picture_alone(bench_folder: Path) -> None:
    whole = load_dreambench(bench_folder)
    alone = load_dreambench(bench_folder, names=["vase"], num_prompts=3)
    by_name = {(s.prompt, s.number): seed_of(alone, s, 0) for s in all_shots(alone, 2)}
    for shot in all_shots(whole, 4):
        if shot.subject == 2 and (shot.prompt, shot.number) in by_name:
            assert seed_of(whole, shot, 0) == by_name[shot.prompt, shot.number]
    seeds = {seed_of(whole, shot, 0) for shot in all_shots(whole, 4)}
    assert len(seeds) == 300


def test_the_published_data_has_thirty_subjects_and_their_photographs(
    dreambench_folder: Path,
) -> None:
    bench = load_dreambench(dreambench_folder)
    assert len(bench.subjects) == 30
    assert sum(subject.is_live for subject in bench.subjects) == 9
    assert sum(len(subject.photographs) for subject in bench.subjects) == 158
    assert {len(subject.photographs) for subject in bench.subjects} == {4, 5, 6}
    texts = {prompt.text for subject in bench.subjects for prompt in subject.prompts}
    assert "a stuffed animal floating in an ocean of milk" in texts
    assert "a dog wearing a black top hat and a monocle" in texts
    assert not any("  " in text or "{" in text for text in texts)
