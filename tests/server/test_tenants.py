"""Keys, roles and quotas at a server that runs: tenants never see each other, and take turns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from bootpig_rt.server.guard.key_changes import add_key
from bootpig_rt.server.guard.keys import Quota
from bootpig_rt.server.jobs import JobBook

Eventually = Callable[[Callable[[], bool]], bool]
DRAW = "/v1/images/generations"
SHORT: dict[str, Any] = {"prompt": "a photo of a dog", "num_inference_steps": 1}


@dataclass
class Keyed:
    """A server with keys, and a client for each of them."""

    server: Any
    clients: dict[str, httpx.Client]


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory, run_server: Any) -> Iterator[Keyed]:
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    tokens = {
        "anna": add_key(file, "anna")[1],
        "bert": add_key(file, "bert")[1],
        "few": add_key(file, "few", quota=Quota(max_waiting=2, images_per_minute=6))[1],
        "slow": add_key(file, "slow", quota=Quota(images_per_minute=1))[1],
        "tiny": add_key(file, "tiny", quota=Quota(subject_bytes=1000))[1],
        "ops": add_key(file, "ops", role="admin")[1],
    }
    with run_server("--keys", str(file), "--max-batch", "1") as server:
        clients = {
            name: server.client(headers={"authorization": f"Bearer {token}"})
            for name, token in tokens.items()
        }
        yield Keyed(server, clients)
        for client in clients.values():
            client.close()


def test_without_a_key_only_probes_and_the_page_answer(keyed: Keyed) -> None:
    with keyed.server.client() as client:
        for path, status in (("/livez", 200), ("/", 200), ("/v1/models", 401), ("/metrics", 401)):
            assert client.get(path).status_code == status
        assert client.post(DRAW, json=SHORT).status_code == 401


def test_only_an_admin_loads_models_again(keyed: Keyed) -> None:
    reload = "/v1/admin/reload"
    assert keyed.clients["anna"].post(reload, json={"model": "none"}).status_code == 403
    assert keyed.clients["ops"].post(reload, json={"model": "none"}).status_code == 404


def test_subjects_and_jobs_are_their_tenants_alone(keyed: Keyed, reference_png: bytes) -> None:
    anna, bert = keyed.clients["anna"], keyed.clients["bert"]
    fields, files = {"reference_prompt": "a photo of a disc"}, {"image": reference_png}
    mine = anna.post("/v1/subjects", data=fields, files=files).json()
    theirs = bert.post("/v1/subjects", data=fields, files=files).json()
    assert mine["id"] != theirs["id"]
    assert bert.get(f"/v1/subjects/{mine['id']}").status_code == 404
    assert bert.delete(f"/v1/subjects/{mine['id']}").status_code == 404
    answer = anna.post(DRAW, json=SHORT, headers={"x-request-id": "of-anna"})
    assert answer.status_code == 200
    assert bert.get("/v1/jobs/of-anna").status_code == 404
    assert anna.get("/v1/jobs/of-anna").json()["status"] == "succeeded"


def test_a_table_of_one_tenant_is_no_hit_for_another(keyed: Keyed, reference_png: bytes) -> None:
    passes = {}
    for name in ("anna", "bert"):
        client = keyed.clients[name]
        fields = {"reference_prompt": "a photo of a table"}
        made = client.post("/v1/subjects", data=fields, files={"image": reference_png}).json()
        body = SHORT | {"subject_id": made["id"]}
        passes[name] = [client.post(DRAW, json=body).json()["reference_passes"] for _ in range(2)]
    assert passes["anna"][0] == passes["bert"][0] > 0
    assert passes["anna"][1] == passes["bert"][1] == 0


def test_a_tenant_has_so_many_pictures_under_way_and_begins_so_many_a_minute(
    keyed: Keyed,
) -> None:
    few = keyed.clients["few"]
    answers = [few.post(DRAW, json=SHORT | {"n": 2}) for _ in range(4)]
    assert [one.status_code for one in answers] == [200, 200, 200, 429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60


@pytest.mark.parametrize(("name", "most"), [("few", 2), ("slow", 1)])
def test_more_pictures_than_a_quota_ever_allows_are_no_matter_of_waiting(
    keyed: Keyed, name: str, most: int
) -> None:
    answer = keyed.clients[name].post(DRAW, json=SHORT | {"n": most + 1})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_value", "n")
    assert f"1..{most}" in error["message"]
    assert "retry-after" not in answer.headers


def test_a_tenant_keeps_so_many_bytes_of_subjects(keyed: Keyed, reference_png: bytes) -> None:
    fields, files = {"reference_prompt": "a photo of a disc"}, {"image": reference_png}
    answer = keyed.clients["tiny"].post("/v1/subjects", data=fields, files=files)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "subject_quota")


def test_tenants_take_turns_however_many_pictures_one_asks_for(
    keyed: Keyed, eventually: Eventually
) -> None:
    order: list[str] = []

    def draw(name: str, steps: int) -> None:
        body = SHORT | {"num_inference_steps": steps}
        assert keyed.clients[name].post(DRAW, json=body).status_code == 200
        order.append(name)

    def busy() -> bool:
        text = keyed.clients["ops"].get("/metrics").text
        return 'bootpig_queue_pictures{model="tiny_bundle"} 7.0' in text

    many = [threading.Thread(target=draw, args=("anna", 50)) for _ in range(8)]
    for one in many:
        one.start()
    assert eventually(busy)
    late = threading.Thread(target=draw, args=("bert", 1))
    late.start()
    for one in [*many, late]:
        one.join(60)
    assert order.index("bert") <= 2


def test_the_wait_for_a_rate_ends_when_enough_pictures_are_a_minute_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    book, client = JobBook(), Any
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    for number, count in enumerate((2, 3)):
        book.open(str(number), "anna", client, count)  # type: ignore[arg-type]
        now += 10.0
    assert book.wait_for_rate_s("anna", 1, 6) == 0.0
    assert book.wait_for_rate_s("anna", 2, 6) == pytest.approx(40.0)
    assert book.wait_for_rate_s("anna", 4, 6) == pytest.approx(50.0)
    assert book.wait_for_rate_s("anna", 7, 6) == 60.0
    assert book.wait_for_rate_s("bert", 6, 6) == 0.0
