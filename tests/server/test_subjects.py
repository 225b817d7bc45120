"""Kept subjects: encoded once, shown, downloaded, uploaded, deleted; each its tenant's alone."""

from __future__ import annotations

import asyncio
import io
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from bootpig_rt import Subject
from bootpig_rt.errors import StorageError
from bootpig_rt.server.errors import ApiError
from bootpig_rt.server.guard.keys import Principal
from bootpig_rt.server.metrics import Metrics
from bootpig_rt.server.options import ServerOptions
from bootpig_rt.server.output import Output
from bootpig_rt.server.service import Service
from bootpig_rt.server.subject_folder import SubjectFolder
from bootpig_rt.server.subjects import KeptSubject, SubjectLibrary

PROMPT = {"reference_prompt": "a photo of a disc"}


@pytest.fixture
def made(client: httpx.Client, reference_png: bytes) -> dict[str, Any]:
    answer = client.post("/v1/subjects", data=PROMPT, files={"image": reference_png})
    assert answer.status_code == 201, answer.text
    subject: dict[str, Any] = answer.json()
    return subject


def test_a_subject_is_encoded_once_and_shows_what_the_model_sees(
    client: httpx.Client, made: dict[str, Any]
) -> None:
    assert made["object"] == "subject"
    assert made["num_references"] == 1
    assert client.get(f"/v1/subjects/{made['id']}").json()["fingerprints"] == made["fingerprints"]
    preview = client.get(f"/v1/subjects/{made['id']}/preview")
    picture = Image.open(io.BytesIO(preview.content))
    assert picture.size == (32, 32)
    assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_the_same_images_are_the_same_subject_whatever_their_metadata(
    client: httpx.Client, made: dict[str, Any], reference_png: bytes
) -> None:
    image = Image.open(io.BytesIO(reference_png))
    stream = io.BytesIO()
    image.save(stream, "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0", compress_level=0)
    again = client.post("/v1/subjects", data=PROMPT, files={"image[]": stream.getvalue()})
    assert again.json()["id"] == made["id"]


def test_a_preview_keeps_nothing_and_warns_of_a_picture_that_is_taken_whole(
    client: httpx.Client,
) -> None:
    stream = io.BytesIO()
    Image.effect_noise((40, 40), 90).convert("RGB").save(stream, "PNG")
    before = client.get("/v1/subjects?limit=100").json()["data"]
    answer = client.post("/v1/subjects/preview", files={"image": stream.getvalue()}).json()
    assert "taken as the subject" in answer["data"][0]["warning"]
    assert client.get("/v1/subjects?limit=100").json()["data"] == before


def test_a_file_goes_down_and_up_again_and_draws(
    client: httpx.Client, made: dict[str, Any], tmp_path: Path
) -> None:
    file = client.get(f"/v1/subjects/{made['id']}/file").content
    path = tmp_path / "one.subject"
    path.write_bytes(file)
    assert Subject.load(path).fingerprint in made["fingerprints"]
    uploaded = client.post("/v1/subjects", files={"file": file})
    assert uploaded.status_code == 201, uploaded.text
    body = {"prompt": "a disc", "subject_id": uploaded.json()["id"], "num_inference_steps": 2}
    assert client.post("/v1/images/generations", json=body).status_code == 200


@pytest.mark.parametrize("damage", ["cut", "bit", "pickle", "empty"])
def test_a_file_that_is_no_subject_is_refused_without_a_word_of_the_server(
    client: httpx.Client, made: dict[str, Any], damage: str
) -> None:
    file = bytearray(client.get(f"/v1/subjects/{made['id']}/file").content)
    if damage == "cut":
        del file[len(file) // 2 :]
    elif damage == "bit":
        file[-3] ^= 4
    else:
        file = bytearray(b"" if damage == "empty" else b"\x80\x04\x95cos\nsystem\n.")
    answer = client.post("/v1/subjects", files={"file": bytes(file)})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("file", "invalid_subject_file")
    assert "/" not in error["message"]


def test_a_deleted_subject_is_gone_and_its_table_is_made_again(
    client: httpx.Client, reference_png: bytes
) -> None:
    fields = {"reference_prompt": "a photo of something to delete"}
    files = {"image": reference_png}
    made = client.post("/v1/subjects", data=fields, files=files).json()
    body = {"prompt": "a disc", "subject_id": made["id"], "num_inference_steps": 2}
    assert client.post("/v1/images/generations", json=body).json()["reference_passes"] > 0
    assert client.post("/v1/images/generations", json=body).json()["reference_passes"] == 0
    assert client.delete(f"/v1/subjects/{made['id']}").json()["deleted"] is True
    assert client.delete(f"/v1/subjects/{made['id']}").status_code == 404
    assert client.post("/v1/images/generations", json=body).status_code == 404
    client.post("/v1/subjects", data=fields, files=files)
    assert client.post("/v1/images/generations", json=body).json()["reference_passes"] > 0


def test_the_list_comes_in_pages(client: httpx.Client, reference_png: bytes) -> None:
    for number in range(3):
        fields = {"reference_prompt": f"a photo of disc {number}"}
        client.post("/v1/subjects", data=fields, files={"image": reference_png})
    everything = client.get("/v1/subjects?limit=100").json()
    page = client.get("/v1/subjects?limit=2").json()
    rest = client.get(f"/v1/subjects?limit=100&after={page['last_id']}").json()
    ids = [one["id"] for one in [*page["data"], *rest["data"]]]
    assert ids == [one["id"] for one in everything["data"]]
    assert page["has_more"]
    assert client.get("/v1/subjects?limit=0").status_code == 400


@pytest.mark.parametrize("id", ["sub_x", "..%2F..%2Fetc", "sub_" + "0" * 24])
def test_an_id_that_is_none_is_404(client: httpx.Client, id: str) -> None:
    assert client.get(f"/v1/subjects/{id}").status_code == 404


class Client:
    """As much of a model as the library asks."""

    class facts:
        name = "one"
        fingerprint = "p" * 64
        size_px = 8


def subject(number: int) -> Subject:
    import numpy as np

    rng = np.random.default_rng(number)
    pixels = rng.uniform(-1, 1, (1, 3, 8, 8)).astype(np.float32)
    latents = rng.standard_normal((1, 4, 2, 2)).astype(np.float32)
    return Subject(pixels, latents, f"thing {number}", 0, "p" * 64)


def keep(library: SubjectLibrary, number: int, **options: Any) -> KeptSubject:
    one = subject(number)
    settings = {"ttl_s": None, "is_explicit": True} | options
    client: Any = Client
    return library.add(Principal("anna", "user"), client, one.reference_images(), one, **settings)


def test_what_nobody_asked_to_keep_gives_way_first_and_the_bound_holds() -> None:
    size = keep(SubjectLibrary(tenant_bytes=1 << 20, ttl_s=60, folder=None), 0).size_bytes
    library = SubjectLibrary(tenant_bytes=3 * size, ttl_s=60, folder=None)
    first, second = keep(library, 1), keep(library, 2, is_explicit=False)
    keep(library, 3)
    keep(library, 4)
    assert library.get("anna", first.id) is first
    with pytest.raises(ApiError):
        library.get("anna", second.id)
    with pytest.raises(ApiError, match="no room"):
        keep(library, 5)
    assert library.size_bytes <= 3 * size


def test_a_tenant_never_sees_the_subject_of_another() -> None:
    library = SubjectLibrary(tenant_bytes=1 << 20, ttl_s=60, folder=None)
    kept = keep(library, 1)
    with pytest.raises(ApiError) as caught:
        library.get("bert", kept.id)
    assert caught.value.status == 404
    assert library.of_tenant("bert") == []


def test_a_subject_is_forgotten_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    library = SubjectLibrary(tenant_bytes=1 << 20, ttl_s=60, folder=None)
    kept = keep(library, 1, ttl_s=5.0)
    monkeypatch.setattr("time.time", lambda: kept.used_at + 4.0)
    assert library.get("anna", kept.id) is kept
    monkeypatch.setattr("time.time", lambda: kept.used_at + 6.0)
    with pytest.raises(ApiError):
        library.get("anna", kept.id)


def test_what_was_removed_is_told_once_unless_another_subject_has_the_same_tables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library = SubjectLibrary(tenant_bytes=1 << 20, ttl_s=60, folder=None)
    first, second = keep(library, 1, ttl_s=5.0), keep(library, 2)
    client: Any = Client
    as_file = library.add(
        Principal("anna", "user"), client, [], subject(1), ttl_s=None, is_explicit=True
    )
    assert as_file.fingerprints == first.fingerprints
    monkeypatch.setattr("time.time", lambda: second.used_at + 6.0)
    library.drop_expired()
    assert library.count == 2
    assert library.take_gone() == set()
    library.remove(as_file)
    assert library.take_gone() == {("anna", first.fingerprints[0])}
    assert library.take_gone() == set()
    library.remove(second)
    library.put_gone({("bert", "f")})
    assert library.take_gone() == {("anna", second.fingerprints[0]), ("bert", "f")}


def test_what_ran_out_while_the_service_was_away_is_told_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = SubjectFolder(tmp_path)
    library = SubjectLibrary(tenant_bytes=1 << 20, ttl_s=60, folder=folder)
    kept = keep(library, 1)
    library.save(kept)
    made_at = kept.used_at
    monkeypatch.setattr("time.time", lambda: made_at + 90.0)
    again = SubjectLibrary(tenant_bytes=1 << 20, ttl_s=60, folder=folder)
    again.read_folder()
    again.drop_expired()
    assert again.count == 0
    assert again.take_gone() == {("anna", kept.fingerprints[0])}
    assert list(tmp_path.iterdir()) == []


def test_tables_of_a_subject_go_when_its_time_is_over(
    local_service: Any, ask_service: Any, reference_png: bytes
) -> None:
    service, runner = local_service
    fields = {"reference_prompt": "a photo of something short-lived", "ttl_s": "0.2"}

    def make() -> str:
        files = {"image": reference_png}
        made = ask_service(Output(), "POST", "/v1/subjects", data=fields, files=files)
        return str(made.json()["id"])

    def passes(id: str) -> int:
        body = {"prompt": "a disc", "subject_id": id, "num_inference_steps": 2}
        answer = ask_service(Output(), "POST", "/v1/images/generations", json=body)
        return int(answer.json()["reference_passes"])

    store = service.client(None).pipeline.store
    before = store.stats().device_bytes
    id = make()
    assert passes(id) > 0
    assert passes(id) == 0
    assert store.stats().device_bytes > before
    time.sleep(0.25)
    runner.run(service.sweep())
    assert store.stats().device_bytes == before
    assert ask_service(Output(), "GET", f"/v1/subjects/{id}").status_code == 404
    assert passes(make()) > 0


def test_tables_that_cannot_be_forgotten_are_tried_again(
    local_service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, runner = local_service
    asked: list[str] = []

    async def forget(fingerprint: str, tenant: str) -> None:
        asked.append(fingerprint)
        if len(asked) == 1:
            raise StorageError("not now")

    monkeypatch.setattr(service.client(None), "forget", forget)
    service.library.put_gone({("", "f")})
    with pytest.raises(StorageError):
        runner.run(service.sweep())
    runner.run(service.sweep())
    runner.run(service.sweep())
    assert asked == ["f", "f"]


def test_a_service_looks_for_what_has_had_its_time_until_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bootpig_rt.server.service.SWEEP_S", 0.001)
    looked: list[float] = []

    def tidy() -> None:
        looked.append(time.monotonic())
        if len(looked) == 2:
            raise StorageError("not now")

    async def live() -> None:
        service = Service(ServerOptions(), {}, Output(), Metrics([]), tidy=tidy)
        await service.start()
        while len(looked) < 4:
            await asyncio.sleep(0.001)
        await service.close()
        count = len(looked)
        await asyncio.sleep(0.02)
        assert len(looked) == count

    asyncio.run(live())


def test_a_folder_keeps_subjects_over_a_restart_and_a_damaged_file_hides_no_other(
    tmp_path: Path,
) -> None:
    folder = SubjectFolder(tmp_path / "subjects")
    library = SubjectLibrary(tenant_bytes=1 << 20, ttl_s=60, folder=folder)
    kept, other = keep(library, 1), keep(library, 2)
    library.save(kept)
    library.save(other)
    file = folder.path / f"{other.id}.json"
    file.write_text(json.dumps({"id": other.id}))
    again = SubjectLibrary(tenant_bytes=1 << 20, ttl_s=60, folder=folder)
    again.read_folder()
    found = again.get("anna", kept.id)
    assert found.prepared[0].tobytes() == kept.prepared[0].tobytes()
    with pytest.raises(ApiError):
        again.get("anna", other.id)


def test_a_use_counts_over_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = SubjectFolder(tmp_path)
    library = SubjectLibrary(tenant_bytes=1 << 20, ttl_s=60, folder=folder)
    kept = keep(library, 1)
    library.save(kept)
    made_at = kept.used_at
    monkeypatch.setattr("time.time", lambda: made_at + 50.0)
    client: Any = Client
    asyncio.run(library.subject_for(kept, client))
    monkeypatch.setattr("time.time", lambda: made_at + 90.0)
    again = SubjectLibrary(tenant_bytes=1 << 20, ttl_s=60, folder=folder)
    again.read_folder()
    assert again.get("anna", kept.id).used_at == pytest.approx(made_at + 50.0)


def test_a_subject_that_is_deleted_while_it_is_written_leaves_no_file(tmp_path: Path) -> None:
    library = SubjectLibrary(tenant_bytes=1 << 20, ttl_s=60, folder=SubjectFolder(tmp_path))
    kept = keep(library, 1)
    library.remove(kept)
    library.save(kept)
    assert list(tmp_path.iterdir()) == []


def test_what_other_models_encode_stays_within_the_bound_of_a_tenant() -> None:
    size = keep(SubjectLibrary(tenant_bytes=1 << 20, ttl_s=60, folder=None), 0).size_bytes
    library = SubjectLibrary(tenant_bytes=2 * size + 1, ttl_s=60, folder=None)
    first, second = keep(library, 1), keep(library, 2)

    class Other(Client):
        class facts(Client.facts):
            fingerprint = "q" * 64

        @staticmethod
        async def encode(images: Any, prompt: str, *, noise_seed: int) -> Subject:
            one = second.encoded["p" * 64]
            return Subject(one.pixels, one.latents, prompt, noise_seed, "q" * 64)

    client: Any = Other
    asyncio.run(library.subject_for(second, client))
    assert library.size_bytes <= 2 * size + 1
    assert set(second.encoded) == {"p" * 64, "q" * 64}
    assert first.prepared
    assert library.get("anna", first.id) is first
