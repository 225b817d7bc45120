"""Subjects as files: what goes in comes out, and nothing else is let in."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from bootpig_rt.errors import (
    CheckpointError,
    NumericalError,
    ParameterError,
    StorageError,
    SubjectMismatch,
)
from bootpig_rt.files.tensor_file import Tensor, read_tensor_file, write_tensor_file
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.reference.subject import Subject
from bootpig_rt.reference.subject_file import read_facts
from bootpig_rt.reference.table_options import TableOptions
from bootpig_rt.request import Request
from tests.one_backend import pipeline_over

PROMPT = "a photo of a dog, on a beach"


@pytest.fixture(scope="module")
def full(pipeline: Pipeline, red: Image.Image, blue: Image.Image) -> Subject:
    """A subject that keeps the table of two steps."""
    params: dict[str, Any] = {"num_inference_steps": 2, "reference_schedule": "exact"}
    return pipeline.encode_subject([red, blue], "a toy", keep_table=True, **params)


def test_a_light_subject_draws_what_the_encoded_one_draws(
    pipeline: Pipeline, dog: Subject, tmp_path: Path
) -> None:
    dog.save(tmp_path / "dog.subject")
    read = pipeline.load_subject(tmp_path / "dog.subject")
    assert read.fingerprint == dog.fingerprint
    assert (read.form, read.pixels) == ("light", None)
    assert dog.prompt_states is not None
    np.testing.assert_array_equal(read.prompt_states, dog.prompt_states)
    pipeline.store.clear()
    drawn = [pipeline(PROMPT, subject=subject, seed=1).images[0] for subject in (dog, read)]
    assert drawn[0].tobytes() == drawn[1].tobytes()
    assert (tmp_path / "dog.subject").stat().st_size < 40_000
    (preview,) = read.reference_images()
    assert preview.size == (32, 32)
    np.testing.assert_array_equal(np.asarray(preview), np.asarray(dog.reference_images()[0]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8", "int8"])
def test_a_full_subject_needs_no_reference_pass(
    tiny_pair_folder: Path, pipeline: Pipeline, red: Image.Image, tmp_path: Path, dtype: Any
) -> None:
    tables = TableOptions(dtype=dtype)
    first = pipeline_over(pipeline, tiny_pair_folder, tables=tables)
    params: dict[str, Any] = {"num_inference_steps": 3, "reference_schedule": "exact"}
    subject = first.encode_subject(red, "a dog", keep_table=True, **params)
    subject.save(tmp_path / "dog.subject", form="full")
    second = pipeline_over(pipeline, tiny_pair_folder, tables=tables)
    read = second.load_subject(tmp_path / "dog.subject")
    assert (read.form, read.fingerprint) == ("full", subject.fingerprint)
    settings: dict[str, Any] = {
        "num_inference_steps": 3,
        "seed": 1,
        "reference_schedule": "exact",
    }
    result = second(PROMPT, subject=read, **settings)
    assert result.reference_passes == 0
    expected = first(PROMPT, subject=subject, **settings).images[0]
    assert result.images[0].tobytes() == expected.tobytes()
    assert second(PROMPT, subject=read, seed=1).reference_passes == 2  # another schedule


def test_the_library_reads_the_file_as_well(full: Subject, tmp_path: Path) -> None:
    full.save(tmp_path / "toy.subject", form="full")
    with safe_open(tmp_path / "toy.subject", framework="np") as stream:
        np.testing.assert_array_equal(stream.get_tensor("latents"), full.latents)
        assert stream.metadata()["schema"] == "2"
        assert "table.0.0.k" in stream.keys()


def test_an_unknown_form_and_a_full_form_without_a_table_are_refused(
    dog: Subject, tmp_path: Path
) -> None:
    with pytest.raises(ParameterError, match="expected light or full"):
        dog.save(tmp_path / "x.subject", form="heavy")
    with pytest.raises(ParameterError, match="encode it with keep_table=True"):
        dog.save(tmp_path / "x.subject", form="full")
    assert list(tmp_path.iterdir()) == []


# Damage to a full subject's file, one row each. A function of the bytes gives the new bytes.


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def with_header(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    """Rewrite the header; the digest stays that of the old one unless it is made anew."""

    def damage(data: bytes) -> bytes:
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        header = change(header) or header
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + length :]

    return damage


def offsets(name: str, value: Any) -> Callable[[bytes], bytes]:
    return with_header(lambda h: h[name].update(data_offsets=value))


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda d: b"", "no header"),
    "seven bytes": (lambda d: d[:7], "no header"),
    "half": (lambda d: d[: len(d) // 2], "truncated"),
    "one byte short": (lambda d: d[:-1], "truncated"),
    "one byte too long": (lambda d: d + b"\0", "too long"),
    "header length of 2**63": (lambda d: b"\xff" * 8 + d[8:], "no header"),
    "header is no JSON": (lambda d: d[:8] + b"\xff" + d[9:], "not JSON"),
    "header is a list": (with_header(lambda h: [1]), "not a table of tensors"),
    "a flipped bit in the data": (lambda d: flip(d, len(d) - 9), "not those that were written"),
    "a pickle": (lambda d: pickle.dumps({"latents": [1, 2, 3]}) * 10, "no header"),
    "a picture": (lambda d: b"\x89PNG\r\n\x1a\n" + d, "no header"),
    "a deep header": (
        lambda d: struct.pack("<Q", 200_000) + b"[" * 200_000 + d,
        "not JSON",
    ),
    "no metadata": (with_header(lambda h: h.pop("__metadata__") and None), "no metadata"),
    "metadata of numbers": (with_header(lambda h: h.update(__metadata__={"a": 1})), "no metadata"),
    "overlapping tensors": (offsets("latents", [4, 2052]), "overlaps another"),
    "negative offsets": (offsets("latents", [-8, 0]), "no offsets"),
    "offsets that are no numbers": (offsets("latents", ["0", "8"]), "no offsets"),
    "an unknown type": (with_header(lambda h: h["latents"].update(dtype="F64")), "of type 'F64'"),
    "a negative shape": (with_header(lambda h: h["latents"].update(shape=[-1, 4])), "has shape"),
    "another shape of the same size": (
        with_header(lambda h: h["latents"].update(shape=h["latents"]["shape"][::-1])),
        "not those that were written",
    ),
    "another prompt in the header": (
        lambda d: d.replace(b"a toy", b"a cat"),
        "not those that were written",
    ),
}


HEADER_IS_FINE = (
    "a flipped bit in the data",
    "another shape of the same size",
    "another prompt in the header",
)
"""Only the digest over the whole file tells."""


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_refused(full: Subject, tmp_path: Path, name: str) -> None:
    damage, message = DAMAGE[name]
    path = tmp_path / "toy.subject"
    full.save(path, form="full")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=message) as caught:
        Subject.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", [name for name in DAMAGE if name not in HEADER_IS_FINE])
def test_a_damaged_header_is_refused_without_reading_on(
    full: Subject, tmp_path: Path, name: str
) -> None:
    damage, message = DAMAGE[name]
    path = tmp_path / "toy.subject"
    full.save(path, form="full")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=message):
        read_facts(path, max_bytes=1 << 30)


def test_the_header_says_what_the_whole_file_holds(full: Subject, tmp_path: Path) -> None:
    path = tmp_path / "toy.subject"
    full.save(path, form="full")
    facts = read_facts(path, max_bytes=1 << 30)
    assert (facts.fingerprint, facts.form) == (full.fingerprint, "full")
    assert (facts.reference_prompt, facts.num_references) == ("a toy", 2)
    assert facts.latents == full.latents.shape
    assert [table.bytes for table in facts.tables] == [full.tables[0].size_bytes]


# Files that are whole and signed with a right digest, but hold what no subject holds.


def tampered(
    subject: Subject, path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], object]
) -> None:
    subject.save(path, form="full")
    file = read_tensor_file(path, max_bytes=1 << 30)
    values = json.loads(file.metadata["subject"])
    tensors = {name: Tensor(t.kind, np.array(t.array)) for name, t in file.tensors.items()}
    change(values, tensors)
    metadata = dict(file.metadata) | {"subject": json.dumps(values)}
    metadata["schema"] = values.pop("schema", metadata["schema"])
    metadata["format"] = values.pop("format", metadata["format"])
    write_tensor_file(path, tensors, metadata | {"subject": json.dumps(values)})


def put_nan(tensors: dict[str, Tensor], name: str) -> None:
    tensors[name].array.reshape(-1)[3] = np.nan


TAMPERED: dict[str, tuple[Callable[[dict[str, Any], dict[str, Tensor]], object], str]] = {
    "another format": (lambda v, t: v.update(format="x"), "not the file of a subject"),
    "a later schema": (lambda v, t: v.update(schema="3"), "schema '3', expected 2"),
    "an earlier schema": (lambda v, t: v.update(schema="1"), "or encode the subject again"),
    "a field more": (lambda v, t: v.update(run="rm"), "unknown field `run`"),
    "a field whose name is no text": (lambda v, t: v.update({"\ud800": 1}), "its header is wrong"),
    "a type that is no text": (
        lambda v, t: v["tables"][0].update(dtype="\ud800"),
        "key of a table",
    ),
    "a field less": (lambda v, t: v.pop("noise_seed"), "missing .* `noise_seed`"),
    "a seed of text": (lambda v, t: v.update(noise_seed="0"), r"got `str` - at `\$.noise_seed`"),
    "a seed of truth": (lambda v, t: v.update(noise_seed=True), r"got `bool` - at `\$.noise_seed`"),
    "a negative seed": (lambda v, t: v.update(noise_seed=-1), r">= 0 - at `\$.noise_seed`"),
    "an empty prompt": (lambda v, t: v.update(reference_prompt=" "), "prompt is empty"),
    "a huge prompt": (
        lambda v, t: v.update(reference_prompt="a" * 10_001),
        r"<= 10000 - at `\$.reference",
    ),
    "another prompt": (lambda v, t: v.update(reference_prompt="a cat"), "fingerprint is not"),
    "another pair": (lambda v, t: v.update(pair_fingerprint="0" * 64), "of another pair"),
    "other latents": (lambda v, t: t["latents"].array.fill(0), "fingerprint is not"),
    "other text states": (lambda v, t: t["prompt_states"].array.fill(0), "fingerprint is not"),
    "no text states": (lambda v, t: t.pop("prompt_states"), "fingerprint is not"),
    "NaN in the latents": (lambda v, t: put_nan(t, "latents"), "'latents' holds NaN"),
    "NaN in the text": (lambda v, t: put_nan(t, "prompt_states"), "'prompt_states' holds NaN"),
    "NaN in a table": (lambda v, t: put_nan(t, "table.0.2.v"), "NaN or Inf in the reference"),
    "no latents": (lambda v, t: t.pop("latents"), "'latents' is missing"),
    "a tensor more": (lambda v, t: t.update(x=t["latents"]), "holds 'x'"),
    "a layer without values": (lambda v, t: t.pop("table.0.1.v"), r"'table.0.1.v' is missing"),
    "a missing table": (
        lambda v, t: [t.pop(n) for n in list(t) if n.startswith("table.0.")],
        "no layer",
    ),
    "a table of another subject": (
        lambda v, t: v["tables"][0].update(subject="0" * 64),
        "of another subject",
    ),
    "a table of more steps": (
        lambda v, t: v["tables"][0]["timesteps"].append(1),
        "has shape",
    ),
    "an unknown number type": (
        lambda v, t: v["tables"][0].update(dtype="float4"),
        "'float4' - at",
    ),
    "latents of no width": (
        lambda v, t: t.update(latents=Tensor("F32", np.zeros((1, 4, 8, 0), np.float32))),
        r"'latents' has shape \[1, 4, 8, 0\]",
    ),
    "no references": (
        lambda v, t: t.update(latents=Tensor("F32", np.zeros((0, 4, 8, 8), np.float32))),
        r"'latents' has shape \[0, 4, 8, 8\]",
    ),
    "one reference too many": (
        lambda v, t: t.update(latents=Tensor("F32", np.zeros((1025, 1, 1, 1), np.float32))),
        "its latents have shape",
    ),
    "text states of no length": (
        lambda v, t: t.update(prompt_states=Tensor("F32", np.zeros((0, 8), np.float32))),
        r"'prompt_states' has shape \[0, 8\]",
    ),
    "text states of three dimensions": (
        lambda v, t: t.update(prompt_states=Tensor("F32", np.zeros((1, 4, 8), np.float32))),
        "not of 2 dimensions",
    ),
    "a table of another size": (
        lambda v, t: v["tables"][0].update(size=[8, 16]),
        "of another size",
    ),
    "a huge preview": (
        lambda v, t: t.update(preview=Tensor("U8", np.zeros((2000, 2000, 3), np.uint8))),
        "preview has shape",
    ),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_tampered_file_is_refused(full: Subject, tmp_path: Path, name: str) -> None:
    change, message = TAMPERED[name]
    path = tmp_path / "toy.subject"
    tampered(full, path, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        Subject.load(path)
    assert "\n" not in str(caught.value)


# Files of a stranger that are whole, and pass for those of a known subject.


def with_other_table(path: Path) -> Subject:
    """The file again with a table of other numbers, and no other change."""
    subject = Subject.load(path)

    def change(values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if name.startswith("table."):
                tensor.array[:] = -3.0 * tensor.array

    other = path.with_name("other.subject")
    tampered(subject, other, change)
    return Subject.load(other)


def levels_apart(one: Image.Image, other: Image.Image) -> int:
    """Largest difference of two pictures, in steps of 255. A batch of another size may round."""
    left, right = (np.asarray(image, dtype=np.int64) for image in (one, other))
    return int(np.abs(left - right).max())


def test_a_table_that_a_file_brings_along_reaches_no_other_request(
    tiny_pair_folder: Path, pipeline: Pipeline, full: Subject, tmp_path: Path
) -> None:
    full.save(tmp_path / "toy.subject", form="full")
    honest = Subject.load(tmp_path / "toy.subject")
    stranger = with_other_table(tmp_path / "toy.subject")
    assert stranger.fingerprint == honest.fingerprint
    tables = TableOptions(folder=tmp_path / "store")
    pipeline = pipeline_over(pipeline, tiny_pair_folder, tables=tables, max_batch=4)
    params: dict[str, Any] = {"num_inference_steps": 2, "reference_schedule": "exact"}
    light = replace(full, tables=())
    requests = [
        Request(prompt=PROMPT, subject=s, seed=1, **params) for s in (stranger, honest, light)
    ]
    strange, right, made = pipeline.generate(requests).images  # in one batch
    assert made.tobytes() == right.tobytes()
    assert levels_apart(strange, right) > 8
    alone = [pipeline.generate([request]) for request in requests]
    assert [one.reference_passes for one in alone] == [0, 0, 0]
    for result, image in zip(alone, (strange, right, made), strict=True):
        assert levels_apart(result.images[0], image) <= 1
    assert alone[1].images[0].tobytes() == alone[2].images[0].tobytes()
    streamed = [result.images[0].tobytes() for result in pipeline.map(requests)]
    assert streamed == [image.tobytes() for image in (strange, right, made)]
    again = pipeline_over(pipeline, tiny_pair_folder, tables=tables)
    stored = again.generate([requests[2]]).images[0]
    assert stored.tobytes() == alone[2].images[0].tobytes()


def test_a_file_that_is_read_twice_brings_one_table(
    tiny_pair_folder: Path, pipeline: Pipeline, full: Subject, tmp_path: Path
) -> None:
    full.save(tmp_path / "toy.subject", form="full")
    pipeline = pipeline_over(pipeline, tiny_pair_folder)
    settings: dict[str, Any] = {"num_inference_steps": 2, "reference_schedule": "exact"}
    for _ in range(2):
        subject = Subject.load(tmp_path / "toy.subject")
        assert pipeline(PROMPT, subject=subject, **settings).reference_passes == 0
    stats = pipeline.store.stats()
    assert (stats.disk_hits, stats.device_hits) == (1, 1)
    subject.save(tmp_path / "copy.subject", form="full")  # a loaded one can be saved again
    assert (tmp_path / "copy.subject").read_bytes() == (tmp_path / "toy.subject").read_bytes()


def test_other_text_states_are_another_subject(dog: Subject) -> None:
    assert dog.prompt_states is not None
    for states in (dog.prompt_states + 1, None):
        assert replace(dog, prompt_states=states).fingerprint != dog.fingerprint
    same = np.array(dog.prompt_states)
    assert replace(dog, prompt_states=same).fingerprint == dog.fingerprint


@pytest.mark.parametrize(
    ("options", "settings", "why"),
    [
        ({}, {"num_inference_steps": 3}, r"was made with timesteps \("),
        ({}, {"reference_schedule": "clean"}, "was made with is_noised True, expected False"),
        (
            {"tables": TableOptions(dtype="int8")},
            {},
            "was made with dtype 'float32', expected 'int8'",
        ),
    ],
)
def test_a_table_that_does_not_fit_the_call_is_told_with_the_first_difference(
    tiny_pair_folder: Path,
    pipeline: Pipeline,
    full: Subject,
    caplog: pytest.LogCaptureFixture,
    options: dict[str, Any],
    settings: dict[str, Any],
    why: str,
) -> None:
    pipeline = pipeline_over(pipeline, tiny_pair_folder, **options)
    call = {"num_inference_steps": 2, "reference_schedule": "exact", **settings}
    with caplog.at_level(logging.INFO, "bootpig_rt"):
        assert pipeline(PROMPT, subject=full, **call).reference_passes > 0
    assert re.search(f"a table of [0-9a-f]{{12}} is not used: it {why}", caplog.text)


def test_an_oversized_file_is_refused_before_it_is_read(dog: Subject, tmp_path: Path) -> None:
    path = tmp_path / "dog.subject"
    dog.save(path)
    with pytest.raises(CheckpointError, match=r"bytes, expected at most 1000"):
        Subject.load(path, max_bytes=1000)
    with path.open("r+b") as stream:
        stream.truncate(1 << 40)  # a hole: no disk is used
    with pytest.raises(CheckpointError, match="expected at most"):
        Subject.load(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read: no such file"):
        Subject.load(tmp_path / "none.subject")
    with pytest.raises(CheckpointError, match="is not a file"):
        Subject.load(tmp_path)


def test_a_subject_of_another_pair_or_size_is_refused(
    pipeline: Pipeline, make_tiny_pair: Any, dog: Subject, tmp_path: Path
) -> None:
    dog.save(tmp_path / "dog.subject")
    other = Pipeline(make_tiny_pair(tmp_path / "o", seed=1), backend="torch", device="cpu")
    with pytest.raises(SubjectMismatch, match="encode the reference images again"):
        other.load_subject(tmp_path / "dog.subject")
    wide = Subject(None, np.zeros((1, 4, 8, 16), np.float32), "a dog", 0, pipeline.spec.fingerprint)
    with pytest.raises(SubjectMismatch, match=r"shape \[4, 8, 16\], expected \[4, 8, 8\]"):
        pipeline(PROMPT, subject=wide)
    # The pair's own states are checked ahead of a launch: the runtime's error would say nothing.
    length, width = pipeline.spec.text_shape or (0, 0)
    for shape in ((length + 1, width), (length, width + 1), (width, length)):
        states = np.zeros(shape, np.float32)
        told = Subject(
            None,
            np.zeros((1, 4, 8, 8), np.float32),
            "a dog",
            0,
            pipeline.spec.fingerprint,
            prompt_states=states,
        )
        told.save(tmp_path / "told.subject")
        with pytest.raises(SubjectMismatch, match=rf"states of shape \[{shape[0]}, {shape[1]}\]"):
            pipeline(PROMPT, subject=Subject.load(tmp_path / "told.subject"))
    many = Subject(None, np.zeros((5, 4, 8, 8), np.float32), "a dog", 0, pipeline.spec.fingerprint)
    with pytest.raises(ParameterError, match=r"5 references, expected 1\.\.4"):
        pipeline(PROMPT, subject=many)


def test_nan_in_a_reference_pass_is_an_error_and_is_not_kept(
    tiny_pair_folder: Path, pipeline: Pipeline, dog: Subject
) -> None:
    pipeline = pipeline_over(pipeline, tiny_pair_folder)
    broken = Subject(
        None, np.full((1, 4, 8, 8), np.nan, np.float32), "a dog", 0, pipeline.spec.fingerprint
    )
    with pytest.raises(NumericalError, match="NaN or Inf in the reference table"):
        pipeline(PROMPT, subject=broken)
    assert pipeline.store.stats().device_bytes == 0
    assert pipeline(PROMPT, subject=dog).images


def test_a_full_disk_keeps_the_old_file(
    full: Subject, dog: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "dog.subject"
    dog.save(path)
    before = path.read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(StorageError, match="no space left on device"):
        full.save(path, form="full")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_process_killed_while_saving_keeps_the_old_file(dog: Subject, tmp_path: Path) -> None:
    path = tmp_path / "dog.subject"
    dog.save(path)
    before = path.read_bytes()
    script = (
        "import os, sys, time; from bootpig_rt.reference.subject import Subject\n"
        "subject = Subject.load(sys.argv[1])\n"
        "def hang(descriptor): print('saving', flush=True); time.sleep(60)\n"
        "os.fsync = hang\n"
        "subject.save(sys.argv[1])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "saving\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert path.read_bytes() == before
    assert Subject.load(path).fingerprint == dog.fingerprint


def test_cancelling_while_encoding_leaves_the_pipeline_as_it_was(
    tiny_pair_folder: Path, pipeline: Pipeline, red: Image.Image
) -> None:
    tables = TableOptions(rows_per_launch=1)
    pipeline = pipeline_over(pipeline, tiny_pair_folder, tables=tables)
    params: dict[str, Any] = {"num_inference_steps": 4, "reference_schedule": "exact"}

    def stop(event: Any) -> None:
        if event.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.encode_subject(red, "a dog", **params, on_event=stop)
    stats = pipeline.store.stats()
    assert (stats.device_bytes, stats.misses) == (0, 0)
    subject = pipeline.encode_subject(red, "a dog", **params)
    assert pipeline.store.stats().misses == 1
    assert subject.num_references == 1
