"""The suites `serving` and `soak`, on a small service and on the real one."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bootpig_rt.benchmarks.pages import page_of, write_pages
from bootpig_rt.benchmarks.result import SuiteResult
from bootpig_rt.benchmarks.serving.endurance import Record, Sample
from bootpig_rt.benchmarks.serving.faults import bad_inputs
from bootpig_rt.benchmarks.serving.load import End, Outcome
from bootpig_rt.benchmarks.serving.metrics import Scrape
from bootpig_rt.benchmarks.serving.process import Usage
from bootpig_rt.benchmarks.serving.target import Pace
from bootpig_rt.benchmarks.serving.workload import Mix, asks
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.suites import run_suite, serving, soak
from bootpig_rt.benchmarks.way import Journal
from bootpig_rt.cli.main import main

# Inside diffusers' schedulers, with numpy 2.
pytestmark = pytest.mark.filterwarnings("default")


class Little(BaseHTTPRequestHandler):
    """A service that draws nothing, at 64 px alone, and tells its batches."""

    protocol_version = "HTTP/1.1"
    drawn = 0

    def do_GET(self) -> None:
        text = f"bootpig_step_pictures_sum {3 * Little.drawn}\n"
        self.tell(200, (text + f"bootpig_step_pictures_count {Little.drawn}\n").encode())

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked["size"] != "64x64" or self.headers["Authorization"] != "Bearer secret":
            return self.tell(400, b"{}")
        time.sleep(0.05)
        Little.drawn += 1
        data = [{"b64_json": ""}] * asked["n"]
        return self.tell(200, json.dumps({"data": data, "subject_id": "sub_00ff"}).encode())

    def tell(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        """Nothing."""


class Listening(ThreadingHTTPServer):
    """One that many may call at once."""

    request_queue_size = 1024


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Of the little service."""
    with Listening(("127.0.0.1", 0), Little) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def measured(url: str) -> Iterator[SuiteResult]:
    """The suite `serving` on the little service."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(serving.KEY, "secret")
        patch.setattr(serving, "FULL", serving.Plan(Pace(0.4, 0.0, alone=4), rates=2))
        yield serving.run(Settings(Path(), url=url, rounds=1), Journal())


def test_a_service_that_runs_already_is_measured_with_what_it_can_draw(
    measured: SuiteResult,
) -> None:
    assert measured.settings["load"].startswith("sides in px 100% 64,")
    peak = measured.row("ours")
    assert len(peak.samples_ms) == 1
    assert (peak.values["offered_per_s"] or 0) > 1
    assert peak.values["batch_mean"] == 3
    assert len([row for row in measured.rows if row.group.startswith(serving.SWEEP)]) >= 2
    overload = measured.row("ours_overload").values
    assert (overload["offered_per_s"] or 0) > 5 * (peak.values["offered_per_s"] or 0)
    assert measured.checks[-1].name == "accepted and lost by ours under overload"


def test_its_page_has_goodput_and_latency_over_the_load(
    measured: SuiteResult, tmp_path: Path
) -> None:
    (page,) = write_pages([measured], tmp_path)
    text = page.read_text()
    assert "**In time is within" in text
    assert "in time, pictures a second" in text
    assert [path.name for path in sorted(tmp_path.glob("*.svg"))] == [
        "serving-cpu-1.svg", "serving-cpu-2.svg",
    ]  # fmt: skip
    assert "differ by more than rounding" in page_of(measured)


def test_a_url_is_of_the_suite_serving_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--suite", "kernels", "--url", "http://127.0.0.1:1"]) == 2
    assert "--url is for --suite serving alone" in capsys.readouterr().err


def record() -> Record:
    """Of a minute: the process was away from 5 to 7 s, and grew by a megabyte a second."""
    found = Record(60.0)
    ask = asks(Mix(images=((1, 1.0),)), 1, 1)[0]
    ends: dict[int, End] = {3: "broken", 6: "broken", 8: "refused"}
    found.outcomes = tuple(
        Outcome(replace(ask, at_s=float(n)), ends.get(n, "done"), 0.1 if n < 45 else 0.2, 0.0)
        for n in range(60)
    )
    found.samples = [Sample(float(n), Usage(n << 20, 10, 5), Scrape()) for n in range(61)]
    found.away_s = [(5.0, 7.0)]
    found.counts["bad inputs answered with 4xx"] = 7
    return found


def test_what_a_service_grows_by_and_drifts_is_told() -> None:
    rows = {row.name: row.values for row in soak.summary(record())}
    assert rows["memory"]["slope_bytes"] == pytest.approx(3600 << 20)
    assert rows["p99"]["drift_share"] == pytest.approx(1.0)
    assert rows["fds"] == {"fds": 10, "more": 0}
    tenths = list(soak.minutes(record()))
    assert len(tenths) == 10
    assert tenths[0].values["done_per_s"] == pytest.approx(5 / 6)
    assert tenths[1].values["broken_share"] == tenths[1].values["refused_share"] == 1 / 6


def test_what_breaks_while_the_process_is_killed_is_no_failure() -> None:
    assert [check.value for check in soak.checks(record())] == [0, 0, 0]
    later = record()
    later.outcomes = (*later.outcomes, replace(later.outcomes[3], ask=later.outcomes[30].ask))
    later.counts["bad inputs answered with 500"] = 2
    left = Scrape({"bootpig_running_pictures": 2.0, "bootpig_http_requests_in_progress": 3.0})
    later.samples.append(Sample(61.0, Usage(0, 0, 0), left))
    assert [check.value for check in soak.checks(later)] == [1, 2, 4]


def test_every_bad_input_differs_from_the_others() -> None:
    bad = list(bad_inputs())
    assert len(bad) == len(set(bad)) >= 15


@pytest.fixture(scope="module")
def settings(tiny_bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Small numbers, one thread."""
    work = tmp_path_factory.mktemp("work")
    return Settings(pair=tiny_bundle_folder, rounds=1, threads=1, is_smoke=True, work=work)


@pytest.mark.slow
def test_all_servers_draw_the_same_and_ours_loses_nothing(settings: Settings) -> None:
    result = run_suite("serving", settings)
    assert not result.wrong()
    names = ["fastapi", "litserve", "ours_unbatched", "ours", "ours_overload"]
    assert [row.name for row in result.rows if row.group == serving.PEAK] == names
    for name in names[:4]:
        assert result.row(name).samples_ms or result.row(name).status.startswith("not available")
    assert [check.value for check in result.checks] == [0.0] * len(result.checks)
    assert result.row("ours").values["batch_mean"]


@pytest.mark.slow
def test_a_service_stands_what_goes_wrong_around_it(settings: Settings, tmp_path: Path) -> None:
    result = run_suite("soak", settings)
    assert not result.wrong()
    assert len(result.row("start").samples_ms) == 2
    assert "killed 2 times" in result.remarks[0]
    assert "clients that left" in result.remarks[0]
    write_pages([result], tmp_path)
    assert len(list(tmp_path.glob("soak-cpu-*.svg"))) == 3
