"""The store: one pass however many ask, three tiers, and nothing that breaks a running picture."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bootpig_rt.errors import ParameterError, SubjectMismatch
from bootpig_rt.pipeline import Pipeline, Request
from bootpig_rt.reference_kv import ReferenceKey, ReferenceKV
from bootpig_rt.store_folder import StoreFolder
from bootpig_rt.subject import SavedTable, Subject
from bootpig_rt.subject_store import SubjectStore
from bootpig_rt.table_storage import HostTable, pack_table

PROMPT = "a photo of a dog, on a beach"
SIZE = 2 * 4 * 2 * 3 * 4  # bytes of `table`


class HostBackend:
    """A backend whose device is the host: tables are `HostTable`."""

    name = "host"
    device = "cpu"

    class spec:
        reference_shapes = ((2, 3, 4),)

    def download_table(self, data: HostTable) -> HostTable:
        return data

    def upload_table(self, table: HostTable, *, is_resident: bool) -> HostTable:
        return table


BACKEND: Any = HostBackend()
NOBODY = Subject(None, np.zeros((1, 4, 8, 8), np.float32), "a dog", 0, "pair")


def key(name: str) -> ReferenceKey:
    return ReferenceKey(
        subject=name,
        pixels="p",
        reference_prompt="a dog",
        noise_seed=0,
        pair="pair",
        is_noised=False,
        timesteps=(0,),
        ref_scale=1.0,
        dtype="float32",
        size=(8, 8),
        num_references=1,
    )


def table(name: str) -> ReferenceKV:
    numbers = np.full((1, 1, 2, 3, 4), sum(map(ord, name)), np.float32)
    return ReferenceKV(key(name), pack_table([(numbers, numbers)], "float32"), SIZE)


class Asker:
    """Asks a store for tables and counts how often they are made."""

    def __init__(self, store: SubjectStore, delay_s: float = 0.0) -> None:
        self.store, self.delay_s = store, delay_s
        self.made: list[str] = []

    def __call__(self, name: str, tenant: str = "", **options: Any) -> ReferenceKV:
        def make() -> tuple[ReferenceKV, int]:
            self.made.append(name)
            time.sleep(self.delay_s)
            return table(name), 1

        found, _ = self.store.table(
            NOBODY, key(name), make, backend=BACKEND, tenant=tenant, **options
        )
        return found


def test_the_least_recently_used_table_leaves_the_device() -> None:
    ask = Asker(SubjectStore(device_bytes=2 * SIZE))
    for name in ("a", "b", "a", "c", "a", "b"):
        assert ask(name).key == key(name)
    assert ask.made == ["a", "b", "c", "b"]
    stats = ask.store.stats()
    assert (stats.device_hits, stats.misses, stats.moves_down) == (2, 4, 2)
    assert stats.device_bytes == 2 * SIZE
    assert stats.make_ms > 0


def test_what_leaves_the_device_is_found_on_the_host() -> None:
    ask = Asker(SubjectStore(device_bytes=SIZE, host_bytes=2 * SIZE))
    for name in ("a", "b", "c", "a"):
        ask(name)
    assert ask.made == ["a", "b", "c"]
    stats = ask.store.stats()
    assert (stats.host_hits, stats.device_bytes, stats.host_bytes) == (1, SIZE, 2 * SIZE)


def test_what_leaves_the_host_is_found_on_disk_by_another_process_as_well(tmp_path: Path) -> None:
    first, second = (
        Asker(SubjectStore(device_bytes=SIZE, folder=StoreFolder(tmp_path))) for _ in range(2)
    )
    for name in ("a", "b"):
        first(name)
    np.testing.assert_array_equal(
        second("a").data.layers[0][0].values, table("a").data.layers[0][0].values
    )
    assert second.made == []
    assert second.store.stats().disk_hits == 1
    assert second.store.stats().disk_bytes > 2 * SIZE


def test_the_folder_is_held_to_its_bytes(tmp_path: Path) -> None:
    one = Asker(SubjectStore(device_bytes=0, folder=StoreFolder(tmp_path / "x")))
    one("a")
    size = one.store.stats().disk_bytes
    ask = Asker(SubjectStore(device_bytes=0, folder=StoreFolder(tmp_path / "y", 2 * size + 8)))
    for stamp, name in enumerate(("a", "b", "c")):
        ask(name)
        for file in (tmp_path / "y" / "tables").glob("*.table"):
            if file.stat().st_mtime > 1000:
                os.utime(file, (stamp + 1, stamp + 1))
    ask("a")
    assert ask.made == ["a", "b", "c", "a"]
    assert ask.store.stats().disk_bytes <= 2 * size + 8


def test_a_full_store_uses_a_table_and_keeps_none() -> None:
    ask = Asker(SubjectStore(device_bytes=SIZE - 1))
    assert ask("a").key == ask("a").key == key("a")
    assert ask.made == ["a", "a"]
    assert ask.store.stats().device_bytes == 0


def test_one_makes_a_table_while_the_others_wait() -> None:
    for limit in (SIZE, 0):  # also where nothing is kept
        ask = Asker(SubjectStore(device_bytes=limit), delay_s=0.2)
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(ask, ["a"] * 16))
        assert ask.made == ["a"]
        assert len({id(one) for one in found}) == 1
        assert ask.store.stats().waits + ask.store.stats().device_hits == 15


def test_a_failed_pass_is_tried_by_the_next_who_waits() -> None:
    store = SubjectStore(device_bytes=SIZE)
    begun, tries = threading.Event(), []

    def make() -> tuple[ReferenceKV, int]:
        tries.append(1)
        if len(tries) == 1:
            begun.set()
            time.sleep(0.2)
            raise MemoryError
        return table("a"), 1

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(store.table, NOBODY, key("a"), make, backend=BACKEND)
        begun.wait()
        second = pool.submit(store.table, NOBODY, key("a"), make, backend=BACKEND)
        with pytest.raises(MemoryError):
            first.result()
        assert second.result()[0].key == key("a")
    assert len(tries) == 2


def test_tenants_never_share_a_table(tmp_path: Path) -> None:
    folder = StoreFolder(tmp_path)
    ask = Asker(SubjectStore(device_bytes=10 * SIZE, folder=folder))
    for tenant in ("a", "b", "a", "b"):
        ask("dog", tenant)
    assert ask.made == ["dog", "dog"]
    other = Asker(SubjectStore(device_bytes=10 * SIZE, folder=folder))
    other("dog", "c")
    assert other.made == ["dog"]


def test_a_table_of_another_key_is_refused_by_its_field() -> None:
    store = SubjectStore()
    wrong = replace(table("a"), key=replace(key("a"), noise_seed=7))
    with pytest.raises(SubjectMismatch, match="made with noise_seed 7, expected 0"):
        store.table(NOBODY, key("a"), lambda: (wrong, 1), backend=BACKEND)
    assert store.stats().device_bytes == 0


def test_a_brought_along_table_of_other_shapes_is_refused() -> None:
    numbers = np.zeros((1, 1, 2, 3, 8), np.float32)
    saved = SavedTable(key("a"), pack_table([(numbers, numbers)], "float32"))
    subject = replace(NOBODY, tables=(saved,))
    with pytest.raises(SubjectMismatch, match="encode the subject again"):
        SubjectStore().table(subject, key("a"), lambda: (table("a"), 1), backend=BACKEND)


def test_a_damaged_file_is_dropped_and_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Asker(SubjectStore(folder=StoreFolder(tmp_path)))("a")
    (file,) = (tmp_path / "tables").iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    ask = Asker(SubjectStore(folder=StoreFolder(tmp_path)))
    assert ask("a").key == key("a")
    assert ask.made == ["a"]
    assert "the store drops a table that cannot be used" in caplog.text
    assert ask.store.stats().disk_errors == 1
    Asker(SubjectStore(folder=StoreFolder(tmp_path)))("a")  # it was written again


def test_a_full_disk_costs_the_table_and_not_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ask = Asker(SubjectStore(folder=StoreFolder(tmp_path)))

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    assert ask("a").key == key("a")
    assert "the store could not keep a table" in caplog.text
    assert ask.store.stats().disk_errors == 1
    assert list((tmp_path / "tables").iterdir()) == []


def test_a_file_that_vanishes_is_a_miss(tmp_path: Path) -> None:
    ask = Asker(SubjectStore(device_bytes=0, folder=StoreFolder(tmp_path)))
    ask("a")
    for file in (tmp_path / "tables").iterdir():
        file.unlink()
    ask("a")
    assert ask.made == ["a", "a"]
    assert ask.store.stats().disk_errors == 0


def test_two_processes_on_one_folder(tmp_path: Path, tiny_pair_folder: Path) -> None:
    """Both write the same tables at the same time and read each other's; no file is torn."""
    script = """
import sys
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[2])
from test_subject_store import Asker, StoreFolder, SubjectStore
ask = Asker(SubjectStore(device_bytes=0, folder=StoreFolder(Path(sys.argv[1]))))
for turn in range(15):
    for name in "abcd":
        values = ask(name).data.layers[0][0].values
        assert (values == sum(map(ord, name))).all()
assert ask.store.stats().disk_errors == 0, ask.store.stats()
"""
    words = [sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parent)]
    both = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert len(list((tmp_path / "tables").glob("*.table"))) == 4


def test_eviction_under_load_never_changes_a_running_picture(
    tiny_pair_folder: Path, red: Image.Image, blue: Image.Image, green: Image.Image
) -> None:
    options: dict[str, Any] = {"backend": "torch", "device": "cpu"}
    roomy = Pipeline(tiny_pair_folder, **options)
    subjects = [roomy.encode_subject(image, "a toy") for image in (red, blue, green)]
    settings: dict[str, Any] = {"num_inference_steps": 4, "reference_schedule": "exact"}
    expected = [
        roomy(f"a toy, number {i}", subject=subjects[i % 3], seed=i, **settings).images[0]
        for i in range(9)
    ]
    one = roomy.store.stats().device_bytes // 3
    for cache in (one, 0):
        tight = Pipeline(
            tiny_pair_folder, reference_cache_bytes=cache, host_cache_bytes=one, **options
        )

        def draw(i: int, tight: Pipeline = tight) -> bytes:
            result = tight(f"a toy, number {i}", subject=subjects[i % 3], seed=i, **settings)
            return result.images[0].tobytes()

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(draw, range(9))) == [image.tobytes() for image in expected]
        assert tight.store.stats().device_bytes <= one


def test_pipelines_may_share_a_store(tiny_pair_folder: Path, dog: Subject) -> None:
    store = SubjectStore()
    first, second = (
        Pipeline(tiny_pair_folder, backend="torch", device="cpu", store=store) for _ in range(2)
    )
    assert first(PROMPT, subject=dog, seed=1).reference_passes == 2
    assert second(PROMPT, subject=dog, seed=2).reference_passes == 0
    assert store.stats().device_hits == 1


def test_requests_of_two_tenants_in_one_call_pay_apart(
    tiny_pair_folder: Path, dog: Subject
) -> None:
    pipeline = Pipeline(tiny_pair_folder, backend="torch", device="cpu")
    requests = [Request(prompt=PROMPT, subject=dog, seed=1, tenant=t) for t in ("a", "b", "a")]
    assert pipeline.generate(requests).reference_passes == 4


def test_a_store_keeps_subjects_by_name(tmp_path: Path, dog: Subject) -> None:
    folder = StoreFolder(tmp_path / "store")
    folder.save_subject("dog", dog)
    assert folder.subject_names() == ["dog"]
    assert folder.load_subject("dog").fingerprint == dog.fingerprint
    with pytest.raises(ParameterError, match="no subject 'cat' in .* expected one of: dog"):
        folder.load_subject("cat")
    for name in ("../dog", "", ".dog", "a/b", "a\0b", "é", "a" * 101, "-rf"):
        with pytest.raises(ParameterError, match="the name of a subject is"):
            folder.save_subject(name, dog)
    assert folder.remove_subject("dog") > 0
    assert folder.subject_names() == []
