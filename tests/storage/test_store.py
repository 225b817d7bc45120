"""The store: one pass however many ask, three tiers, and nothing that breaks a running picture."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from bootpig_rt.backends.host_table import HostTable, pack_table
from bootpig_rt.errors import ParameterError, SubjectMismatch
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.reference.reference_table import ReferenceKey, ReferenceTable
from bootpig_rt.reference.subject import Subject
from bootpig_rt.reference.table_options import TableOptions
from bootpig_rt.request import Request
from bootpig_rt.storage.folder import StoreFolder
from bootpig_rt.storage.store import Claim, SubjectStore

PROMPT = "a photo of a dog, on a beach"
SIZE = 2 * 4 * 2 * 3 * 4  # bytes of `table`


class HostBackend:
    """A backend whose device is the host: tables are `HostTable`."""

    name = "host"
    device = "cpu"

    class spec:
        reference_shapes = ((2, 3, 4),)
        resident_dtype = None

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
        precision="float32",
        dtype="float32",
        size=(8, 8),
        num_references=1,
    )


def table(name: str) -> ReferenceTable:
    numbers = np.full((1, 1, 2, 3, 4), sum(map(ord, name)), np.float32)
    return ReferenceTable(key(name), pack_table([(numbers, numbers)], "float32"), SIZE)


class Asker:
    """Asks a store for tables and counts how often they are made."""

    def __init__(self, store: SubjectStore, delay_s: float = 0.0) -> None:
        self.store, self.delay_s = store, delay_s
        self.backend: Any = BACKEND
        self.made: list[str] = []

    def __call__(self, name: str, tenant: str = "", **options: Any) -> ReferenceTable:
        def make() -> tuple[ReferenceTable, int]:
            self.made.append(name)
            time.sleep(self.delay_s)
            return table(name), 1

        found, _ = self.store.table(
            NOBODY, key(name), make, backend=self.backend, tenant=tenant, **options
        )
        self.store.flush()
        return found


def test_the_least_recently_used_table_leaves_the_device() -> None:
    ask = Asker(SubjectStore(TableOptions(device_bytes=2 * SIZE)))
    for name in ("a", "b", "a", "c", "a", "b"):
        assert ask(name).key == key(name)
    assert ask.made == ["a", "b", "c", "b"]
    stats = ask.store.stats()
    assert (stats.device_hits, stats.misses, stats.moves_down) == (2, 4, 2)
    assert stats.device_bytes == 2 * SIZE
    assert stats.make_ms > 0


def test_what_leaves_the_device_is_found_on_the_host() -> None:
    ask = Asker(SubjectStore(TableOptions(device_bytes=SIZE, host_bytes=2 * SIZE)))
    for name in ("a", "b", "c", "a"):
        ask(name)
    assert ask.made == ["a", "b", "c"]
    stats = ask.store.stats()
    assert (stats.host_hits, stats.device_bytes, stats.host_bytes) == (1, SIZE, 2 * SIZE)


def test_a_streamed_table_is_kept_on_the_host() -> None:
    store = SubjectStore(TableOptions(device_bytes=SIZE, host_bytes=SIZE))
    made = []

    def make() -> tuple[ReferenceTable, int]:
        made.append(1)
        return replace(table("a"), is_resident=False), 1

    for passes in (1, 0):
        found = store.table(NOBODY, key("a"), make, backend=BACKEND, is_resident=False)
        assert found[1] == passes
        del found  # while somebody holds it, it is shared
    assert (store.stats().host_hits, store.stats().device_bytes) == (1, 0)


class FaultyBackend(HostBackend):
    """A device whose tables cannot be copied to the host."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def upload_table(self, table: HostTable, *, is_resident: bool) -> HostTable:
        if not is_resident:
            raise self.error
        return table


@pytest.mark.parametrize("error", [MemoryError("no room"), RuntimeError("cannot pin")])
def test_a_table_that_cannot_move_down_is_dropped_and_costs_the_caller_nothing(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    ask = Asker(SubjectStore(TableOptions(device_bytes=SIZE, host_bytes=2 * SIZE)))
    ask.backend = FaultyBackend(error)
    assert ask("a").key == key("a")
    assert ask("b").key == key("b")  # pushes the other one out
    assert f"cannot be copied to the host: {error}" in caplog.text
    assert ask.store.stats().host_bytes == 0
    assert ask("b").key == key("b")
    assert ask.made == ["a", "b"]


def test_a_table_that_cannot_be_copied_for_the_folder_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(HostBackend):
        def download_table(self, data: HostTable) -> HostTable:
            raise RuntimeError("the device is lost")

    ask = Asker(SubjectStore(TableOptions(folder=tmp_path)))
    ask.backend = Broken()
    assert ask("a").key == key("a")
    assert "could not copy a table for its folder: the device is lost" in caplog.text


def test_the_store_is_not_locked_while_a_table_moves_down() -> None:
    """A backend may hold a lock of its own there, and who holds that one may ask the store."""
    seen: list[tuple[int, int]] = []

    class Asking(HostBackend):
        def download_table(self, data: HostTable) -> HostTable:
            stats = ask.store.stats()
            seen.append((stats.device_bytes, stats.host_bytes))
            if len(seen) == 1:
                ask("a")  # the very table that is on its way down
            return data

    ask = Asker(SubjectStore(TableOptions(device_bytes=SIZE, host_bytes=4 * SIZE)))
    ask.backend = Asking()
    thread = threading.Thread(target=lambda: (ask("a"), ask("b")), daemon=True)
    thread.start()
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert seen[0] == (SIZE, SIZE)
    assert ask.made == ["a", "b"]  # it was never out of reach
    assert ask.store.stats().host_bytes == 2 * SIZE


def test_what_leaves_the_host_is_found_on_disk_by_another_process_as_well(tmp_path: Path) -> None:
    first, second = (
        Asker(SubjectStore(TableOptions(device_bytes=SIZE, folder=tmp_path))) for _ in range(2)
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
    one = Asker(SubjectStore(TableOptions(device_bytes=0, folder=tmp_path / "x")))
    one("a")
    size = one.store.stats().disk_bytes
    folder = StoreFolder(tmp_path / "y")
    options = TableOptions(device_bytes=0, folder=folder.path, folder_bytes=2 * size + 8)
    ask = Asker(SubjectStore(options))
    for stamp, name in enumerate(("a", "b", "c")):
        ask(name)
        for file in folder.tables.glob("*.table"):
            if file.stat().st_mtime > 1000:
                os.utime(file, (stamp + 1, stamp + 1))
    ask("a")
    assert ask.made == ["a", "b", "c", "a"]
    assert ask.store.stats().disk_bytes <= 2 * size + 8


def test_a_full_store_uses_a_table_and_keeps_none() -> None:
    ask = Asker(SubjectStore(TableOptions(device_bytes=SIZE - 1)))
    for _ in range(2):
        found = ask("a")
        assert found.key == key("a")
        del found  # while somebody holds it, it is shared
    assert ask.made == ["a", "a"]
    assert ask.store.stats().device_bytes == 0


def test_one_makes_a_table_while_the_others_wait() -> None:
    for limit in (SIZE, 0):  # also where nothing is kept
        ask = Asker(SubjectStore(TableOptions(device_bytes=limit)), delay_s=0.2)
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(ask, ["a"] * 16))
        assert ask.made == ["a"]
        assert len({id(one) for one in found}) == 1
        assert ask.store.stats().device_hits == 15
        assert ask.store.stats().waits <= 15


def test_a_failed_pass_is_tried_by_the_next_who_waits() -> None:
    store = SubjectStore(TableOptions(device_bytes=SIZE))
    begun, tries = threading.Event(), []

    def make() -> tuple[ReferenceTable, int]:
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
    ask = Asker(SubjectStore(TableOptions(device_bytes=10 * SIZE, folder=folder.path)))
    for tenant in ("a", "b", "a", "b"):
        ask("dog", tenant)
    assert ask.made == ["dog", "dog"]
    other = Asker(SubjectStore(TableOptions(device_bytes=10 * SIZE, folder=folder.path)))
    other("dog", "c")
    assert other.made == ["dog"]


def test_a_forgotten_subject_leaves_every_tier_of_its_tenant_alone(tmp_path: Path) -> None:
    """Device, host and folder: of other tenants and of other subjects all stay."""
    options = TableOptions(device_bytes=2 * SIZE, host_bytes=2 * SIZE, folder=tmp_path)
    ask = Asker(SubjectStore(options))
    wants = (("dog", "a"), ("cat", "a"), ("dog", "b"), ("dog", "a"))
    for name, tenant in wants:  # the last one is on the device, and on the host since it left it
        ask(name, tenant)
    assert ask.made == ["dog", "cat", "dog"]
    ask.store.forget_subject("dog", "a")
    assert ask.store.stats().device_bytes == SIZE
    for name, tenant in (("cat", "a"), ("dog", "b")):
        ask(name, tenant)
    assert ask.made == ["dog", "cat", "dog"]
    ask("dog", "a")
    assert ask.made == ["dog", "cat", "dog", "dog"]


def test_who_forgets_a_subject_without_a_tenant_forgets_what_was_kept_without_one() -> None:
    ask = Asker(SubjectStore(TableOptions(device_bytes=2 * SIZE)))
    ask("dog")
    ask.store.forget_subject("dog")
    assert ask.store.stats().to_dict()["device_bytes"] == 0
    ask("dog")
    assert ask.made == ["dog", "dog"]


def test_a_backend_that_closes_takes_its_own_tables_alone() -> None:
    class Other(HostBackend):
        device = "another"

    store = SubjectStore(TableOptions(device_bytes=2 * SIZE, host_bytes=2 * SIZE))
    stays, closes = Asker(store), Asker(store)
    closes.backend = cast("Any", Other())
    for ask in (stays, closes):
        for name in ("a", "b"):  # two are on the device, two moved to the host
            ask(name)
    store.forget(closes.backend)
    stats = store.stats()
    assert (stats.device_bytes, stats.host_bytes) == (0, 2 * SIZE)
    for ask in (stays, closes):
        for name in ("a", "b"):
            ask(name)
    assert stays.made == ["a", "b"]
    assert closes.made == ["a", "b", "a", "b"]


def test_looking_later_reads_no_disk_on_the_callers_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    def read(folder: StoreFolder, *wants: Any) -> Any:
        threads.append(threading.current_thread())
        raise RuntimeError("the disk is on fire")

    monkeypatch.setattr(StoreFolder, "read", read)
    store = SubjectStore(TableOptions(folder=tmp_path))
    later = store.look_later(NOBODY, key("a"), backend=BACKEND)
    assert str(later.exception(timeout=30)) == "the disk is on fire"
    assert threads != []
    assert threading.current_thread() not in threads


def test_looking_later_without_a_folder_is_done_at_once() -> None:
    store = SubjectStore(TableOptions(device_bytes=SIZE))
    later = store.look_later(NOBODY, key("a"), backend=BACKEND)
    assert later.done()
    assert isinstance(later.result(), Claim)
    wrong = replace(NOBODY, tables=(replace(table("b"), data=object()),))
    refused = store.look_later(wrong, key("b"), backend=BACKEND)
    assert isinstance(refused.exception(timeout=0), AttributeError)


def test_a_table_of_another_key_is_refused_by_its_field() -> None:
    store = SubjectStore()
    wrong = replace(table("a"), key=replace(key("a"), noise_seed=7))
    with pytest.raises(SubjectMismatch, match="made with noise_seed 7, expected 0"):
        store.table(NOBODY, key("a"), lambda: (wrong, 1), backend=BACKEND)
    assert store.stats().device_bytes == 0


def test_a_brought_along_table_of_other_shapes_is_refused() -> None:
    numbers = np.zeros((1, 1, 2, 3, 8), np.float32)
    saved = ReferenceTable.on_host(key("a"), pack_table([(numbers, numbers)], "float32"))
    subject = replace(NOBODY, tables=(saved,))
    with pytest.raises(SubjectMismatch, match="encode the subject again"):
        SubjectStore().table(subject, key("a"), lambda: (table("a"), 1), backend=BACKEND)


def test_a_table_counts_as_what_it_is_on_the_device() -> None:
    class Widening(HostBackend):
        class spec:
            reference_shapes = ((2, 3, 4),)
            resident_dtype = "float32"

    numbers = np.ones((1, 1, 2, 3, 4), np.float32)
    narrow = replace(key("a"), dtype="int8")
    saved = ReferenceTable.on_host(narrow, pack_table([(numbers, numbers)], "int8"))
    assert saved.size_bytes < SIZE
    subject, backend = replace(NOBODY, tables=(saved,)), cast("Any", Widening())
    for is_resident, size in ((True, SIZE), (False, saved.size_bytes)):
        found, _ = SubjectStore().table(
            subject, narrow, lambda: (table("a"), 1), backend=backend, is_resident=is_resident
        )
        assert found.size_bytes == size


def test_a_damaged_file_is_dropped_and_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Asker(SubjectStore(TableOptions(folder=tmp_path)))("a")
    (file,) = StoreFolder(tmp_path).tables.glob("*.table")
    file.write_bytes(file.read_bytes()[:-1])
    ask = Asker(SubjectStore(TableOptions(folder=tmp_path)))
    assert ask("a").key == key("a")
    assert ask.made == ["a"]
    assert "the store drops a table that cannot be used" in caplog.text
    assert ask.store.stats().disk_errors == 1
    Asker(SubjectStore(TableOptions(folder=tmp_path)))("a")  # it was written again


def test_a_full_disk_costs_the_table_and_not_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ask = Asker(SubjectStore(TableOptions(folder=tmp_path)))

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    assert ask("a").key == key("a")
    assert "the store could not keep a table" in caplog.text
    assert ask.store.stats().disk_errors == 1
    left = [file for file in StoreFolder(tmp_path).tables.iterdir() if "lock" not in file.name]
    assert left == []


def test_a_file_that_vanishes_is_a_miss(tmp_path: Path) -> None:
    ask = Asker(SubjectStore(TableOptions(device_bytes=0, folder=tmp_path)))
    ask("a")
    for file in StoreFolder(tmp_path).tables.glob("*.table"):
        file.unlink()
    ask("a")
    assert ask.made == ["a", "a"]
    assert ask.store.stats().disk_errors == 0


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_disk_that_cannot_be_read_costs_the_table_and_not_the_picture(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
) -> None:
    Asker(SubjectStore(TableOptions(folder=tmp_path)))("a")
    stat, opened, glob = Path.stat, Path.open, Path.glob

    def no_stat(self: Path, **options: Any) -> os.stat_result:
        if self.suffix == ".table":
            raise OSError(number, os.strerror(number))
        return stat(self, **options)

    def no_open(self: Path, *mode: Any, **options: Any) -> Any:
        if self.suffix == ".table":
            raise OSError(number, os.strerror(number))
        return opened(self, *mode, **options)

    def no_glob(self: Path, pattern: str) -> Any:
        if self == StoreFolder(tmp_path).tables:
            raise OSError(number, os.strerror(number))
        return glob(self, pattern)

    ask = Asker(SubjectStore(TableOptions(folder=tmp_path)))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", no_stat)
        patch.setattr(Path, "open", no_open)
        patch.setattr(Path, "glob", no_glob)
        assert ask("a").key == key("a")
        assert ask.store.stats().disk_errors > 0
    assert ask.made == ["a"]
    assert "the store could not read a table" in caplog.text
    assert "the store cannot list" in caplog.text
    other = Asker(SubjectStore(TableOptions(folder=tmp_path)))
    other("a")
    assert other.made == []  # the file was not at fault, and is still there


def test_a_process_killed_while_the_store_writes_leaves_the_folder_usable(tmp_path: Path) -> None:
    folder = StoreFolder(tmp_path)
    Asker(SubjectStore(TableOptions(folder=folder.path)))("a")
    before = {file.name: file.read_bytes() for file in folder.tables.glob("*.table")}
    process = other_process(
        tmp_path,
        """
def hang(descriptor):
    print("writing", flush=True)
    time.sleep(60)
os.fsync = hang
ask("b")
""",
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert {file.name: file.read_bytes() for file in folder.tables.glob("*.table")} == before
    (left,) = folder.tables.glob(".*.tmp")
    ask = Asker(SubjectStore(TableOptions(folder=folder.path)))
    for name in ("a", "b"):
        assert ask(name).key == key(name)
    assert ask.made == ["b"]
    assert ask.store.stats().disk_errors == 0
    assert len(list(folder.tables.glob("*.table"))) == 2
    assert left.exists()  # it may be another's, who still writes
    os.utime(left, (0, 0))
    ask("c")
    assert not left.exists()


def other_process(folder: Path, script: str) -> subprocess.Popen[str]:
    """Runs a script beside this process; `ask` asks a store on the folder."""
    start = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_store import Asker, SubjectStore, TableOptions, key
ask = Asker(SubjectStore(TableOptions(device_bytes=0, folder=Path(sys.argv[1]))))
"""
    return subprocess.Popen(
        [sys.executable, "-c", start + script, str(folder), str(Path(__file__).parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


needs_locks = pytest.mark.skipif(sys.platform == "win32", reason="no file locks on Windows")


@needs_locks
def test_two_processes_that_ask_at_once_make_one_pass(tmp_path: Path) -> None:
    script = """
print("ready", flush=True)
sys.stdin.readline()
ask.delay_s = 0.5
assert (ask("a").data.layers[0][0].values == ord("a")).all()
print(len(ask.made), flush=True)
"""
    both = [other_process(tmp_path, script) for _ in range(2)]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    made = [int(process.communicate(timeout=60)[0]) for process in both]
    assert sum(made) == 1


@needs_locks
def test_a_killed_process_lets_those_who_wait_go_on(tmp_path: Path) -> None:
    script = """
print("making", flush=True)
ask.delay_s = 60.0
ask("a")
"""
    holder = other_process(tmp_path, script)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "making\n"
    deadline = time.monotonic() + 30
    while not list(StoreFolder(tmp_path).tables.glob(".*.lock")) and time.monotonic() < deadline:
        time.sleep(0.01)
    ask = Asker(SubjectStore(TableOptions(folder=tmp_path)))
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(ask, "a")
        time.sleep(0.3)
        made_while_held = list(ask.made)
        pool.submit(ask, "b").result(timeout=30)  # nobody waits for another's table
        holder.send_signal(signal.SIGKILL)
        assert waiting.result(timeout=30).key == key("a")
    holder.communicate()
    assert made_while_held == []
    assert ask.made == ["b", "a"]


@needs_locks
def test_a_table_that_another_process_makes_is_waited_for_by_who_wants_to_wait(
    tmp_path: Path,
) -> None:
    """One process's claim stalled all threads of the others, for up to ten minutes."""
    script = """
claim = ask.store.folder.claim(key("a"))
print("held", flush=True)
sys.stdin.readline()
claim.release()
sys.stdin.readline()
"""
    holder = other_process(tmp_path, script)
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == "held\n"
    ask = Asker(SubjectStore(TableOptions(folder=tmp_path)))

    def look(name: str) -> ReferenceTable | Claim | None:
        return ask.store.look(NOBODY, key(name), backend=BACKEND)

    with ThreadPoolExecutor(1) as pool:
        for _ in range(2):
            assert pool.submit(look, "a").result(timeout=30) is None
        other = pool.submit(look, "b").result(timeout=30)
        assert isinstance(other, Claim)
        other.release()
        waiting = pool.submit(ask, "a")
        deadline = time.monotonic() + 30
        while not ask.store.stats().waits and time.monotonic() < deadline:
            time.sleep(0.01)
        made_while_held = list(ask.made)
        holder.stdin.write("release\n")
        holder.stdin.flush()
        assert waiting.result(timeout=30).key == key("a")
    assert holder.poll() is None  # what it held was released, not lost with it
    holder.communicate("end\n", timeout=30)
    assert made_while_held == []
    assert ask.made == ["a"]
    assert ask.store.stats().waits == 1  # however often it looked


def test_two_processes_on_one_folder(tmp_path: Path, tiny_pair_folder: Path) -> None:
    """Both write the same tables at the same time and read each other's; no file is torn."""
    script = """
for turn in range(15):
    for name in "abcd":
        values = ask(name).data.layers[0][0].values
        assert (values == sum(map(ord, name))).all()
assert ask.store.stats().disk_errors == 0, ask.store.stats()
"""
    both = [other_process(tmp_path, script) for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert len(list(StoreFolder(tmp_path).tables.glob("*.table"))) == 4


def test_eviction_under_load_never_changes_a_running_picture(
    shallow_pair_folder: Path, red: Image.Image, blue: Image.Image, green: Image.Image
) -> None:
    options: dict[str, Any] = {"backend": "torch", "device": "cpu"}
    roomy = Pipeline(shallow_pair_folder, **options)
    subjects = [roomy.encode_subject(image, "a toy") for image in (red, blue, green)]
    settings: dict[str, Any] = {"num_inference_steps": 3, "reference_schedule": "exact"}
    expected = [
        roomy(f"a toy, number {i}", subject=subjects[i % 3], seed=i, **settings).images[0]
        for i in range(9)
    ]
    one = roomy.store.stats().device_bytes // 3
    for cache in (one, 0):
        tables = TableOptions(device_bytes=cache, host_bytes=one)
        tight = Pipeline(shallow_pair_folder, tables=tables, **options)

        def draw(i: int, tight: Pipeline = tight) -> bytes:
            result = tight(f"a toy, number {i}", subject=subjects[i % 3], seed=i, **settings)
            return result.images[0].tobytes()

        with ThreadPoolExecutor(4) as pool:
            for drawn, image in zip(pool.map(draw, range(9)), expected, strict=True):
                wanted = np.frombuffer(image.tobytes(), np.uint8).astype(int)
                # Threads share batches, and a batch of another size may round.
                assert np.abs(np.frombuffer(drawn, np.uint8) - wanted).max() <= 1
        assert tight.store.stats().device_bytes <= one


def test_pipelines_may_share_a_store(tiny_pair_folder: Path, dog: Subject) -> None:
    store = SubjectStore()
    first, second = (
        Pipeline(tiny_pair_folder, backend="torch", device="cpu", tables=store) for _ in range(2)
    )
    assert first(PROMPT, subject=dog, seed=1).reference_passes == 2
    assert second(PROMPT, subject=dog, seed=2).reference_passes == 0
    assert store.stats().device_hits == 1


@pytest.mark.parametrize("host_bytes", [0, 1 << 30])
def test_a_shared_store_keeps_no_pipeline_alive(
    tiny_pair_folder: Path, pipeline: Pipeline, dog: Subject, cat: Subject, host_bytes: int
) -> None:
    """It held the backend of each table: all weights of pipelines that were long gone."""
    options: dict[str, Any] = {"backend": "torch", "device": "cpu"}
    size = pipeline.table_bytes(2)
    store = SubjectStore(TableOptions(device_bytes=size, host_bytes=host_bytes))
    first, second = (Pipeline(tiny_pair_folder, tables=store, **options) for _ in range(2))
    for subject in (cat, dog):  # the first table leaves the device
        assert first(PROMPT, subject=subject, seed=1).reference_passes > 0
    backend = weakref.ref(first._backend)
    del first
    gc.collect()
    assert backend() is None
    assert store.stats().host_bytes == (size if host_bytes else 0)
    assert second(PROMPT, subject=dog, seed=1).reference_passes == 0
    # The table of the dog has nobody left who could copy it to the host: it is dropped.
    assert second(PROMPT, subject=cat, seed=1).reference_passes == (0 if host_bytes else 4)
    assert second(PROMPT, subject=dog, seed=1).reference_passes == 2


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
