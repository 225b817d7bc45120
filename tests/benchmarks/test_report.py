"""The report: a page that needs nothing else, and fits a desk and a phone."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from bootpig_rt.benchmarks.intervals import Ratio
from bootpig_rt.benchmarks.machine import Watch
from bootpig_rt.benchmarks.report.figures import figures
from bootpig_rt.benchmarks.report.page import write_report
from bootpig_rt.benchmarks.report.plots import Bar, Point, pareto_front, waterfall
from bootpig_rt.benchmarks.report.screenshots import screenshot
from bootpig_rt.benchmarks.result import Check, Row, SuiteResult
from bootpig_rt.errors import BackendUnavailable
from bootpig_rt.pipeline import Pipeline, default_model

_ONE = Ratio(1, 1, 1)


@pytest.fixture(scope="module")
def results() -> list[SuiteResult]:
    machine = replace(Watch(2).machine(), is_busy=True)
    picture = (
        Row("published", "published <way>", "picture", (30.0, 31.0, 29.0), "published", _ONE),
        Row("ours_cold", "new", "picture", (15.0, 15.0, 15.0), "published", Ratio(2, 1.9, 2.1)),
        Row("ours_warm", "known", "picture", (10.0, 11.0, 9.0), "published", Ratio(3, 2.9, 3.1)),
        Row("torch_warm", "torch", "picture", (20.0, 20.0, 20.0)),
        Row("bare_unet", "floor", "picture", (8.0, 8.0, 8.0)),
        Row("torch_compile_warm", "compiled", "picture", notes={"status": "no compiler"}),
    )
    judged = {"identity_low": 0.7, "identity_high": 0.9, "scene": 0.6}
    quality = tuple(
        Row(name, name, "schedule", (time_ms,), values=judged | {"identity": identity})
        for name, time_ms, identity in (("exact", 5.0, 0.9), ("slow", 6.0, 0.8), ("few", 2.0, 0.7))
    )
    growth = tuple(
        Row(f"steps {x}", f"{x} steps", "over steps", (3.0 * x,), values={"x": float(x)})
        for x in (1, 2, 4)
    ) + tuple(
        Row(f"memory steps {x}", "", "memory over steps", values={"x": x, "peak_bytes": 1e6 * x})
        for x in (1.0, 2.0)
    )
    latency = (
        Row("onnxruntime picture", "", samples_ms=(30.0,)),
        Row("onnxruntime batch 2", "", samples_ms=(20.0,)),
        Row("torch batch 2", "", samples_ms=(40.0,)),
    )
    share = (Row("a/MatMul", "MatMul", "step", values={"share": 0.8, "calls": 2.0}),)
    checks = (Check("pixels", 0.1, 0.5), Check("latents", 0.9, 0.5))
    return [
        SuiteResult("baselines", picture, {"pair": "p"}, checks, machine),
        SuiteResult("reference", quality, machine=replace(machine, is_busy=False)),
        SuiteResult("scale", growth),
        SuiteResult("latency", latency, {"steps": 25, "size_px": 64}),
        SuiteResult("profile", share),
    ]


def test_the_front_holds_what_nothing_beats() -> None:
    points = [Point("a", 1, 0.5), Point("b", 2, 0.4), Point("c", 3, 0.9), Point("d", 3, 0.8)]
    assert [point.label for point in pareto_front(points)] == ["a", "c"]


def test_a_waterfall_draws_a_bar_a_way_what_was_saved_and_the_floors() -> None:
    svg = waterfall("t", [Bar("a", 10, "10"), Bar("b", 4, "4")], [Bar("f", 2, "2")])
    lengths = {
        style: [float(each) for each in re.findall(rf'"{style}" .*? width="([\d.]+)"', svg)]
        for style in ("bar", "saved")
    }
    assert lengths["bar"][1] / lengths["bar"][0] == pytest.approx(0.4, abs=0.01)
    assert sum([lengths["bar"][1], *lengths["saved"]]) == pytest.approx(lengths["bar"][0], abs=0.2)
    assert svg.count('class="floor"') == 3  # at each bar, and down to its name


def test_floors_cross_no_names_and_no_numbers() -> None:
    svg = waterfall("t", [Bar("a", 10, "10 ms"), Bar("b", 2, "2 ms")], [Bar("floor", 10.5, "")])
    heights = [
        (float(a), float(b)) for a, b in re.findall(r'"floor".*? y1="(.*?)".*? y2="(.*?)"', svg)
    ]
    names = [float(y) for y in re.findall(r'<text x="2.0" y="(.*?)"', svg)][:2]
    assert not any(top < y < end for y in names for top, end in heights)
    mark = float(re.findall(r'"floor" x1="(.*?)"', svg)[0])
    numbers = [float(x) for x in re.findall(r'<text x="(.*?)"[^>]* class="strong"', svg)]
    assert numbers[0] > mark  # it would begin to the left and end to the right


def test_a_known_and_a_new_subject_are_compared_apart(results: list[SuiteResult]) -> None:
    known, new = figures("picture", results[:1])
    assert "known subject" in known.caption
    assert "new subject" in new.caption
    assert ">torch<" in known.wide
    assert ">new<" not in known.wide
    assert ">known<" not in new.wide


def test_latency_has_a_curve_for_each_backend_from_its_plain_picture_on(
    results: list[SuiteResult],
) -> None:
    (found,) = figures("latency", [each for each in results if each.suite == "latency"])
    assert found.name == "latency-over-batch"
    assert "<title>onnxruntime, 1: 30</title>" in found.wide
    assert "<title>torch, 2: 40</title>" in found.wide
    assert found.wide.count("<polyline") == 2


def test_columns_are_called_what_rows_are_called(
    results: list[SuiteResult], tmp_path: Path
) -> None:
    page = write_report(results, tmp_path, samples=0).read_text()
    assert "times faster than: published &lt;way&gt;" in page
    assert "times faster than: published &lt;way>" in (tmp_path / "report.md").read_text()


def test_the_page_holds_everything_itself(results: list[SuiteResult], tmp_path: Path) -> None:
    page = write_report(results, tmp_path / "page", samples=1).read_text()
    assert "published &lt;way&gt;" in page
    assert "no compiler" in page
    assert "2.90 to 3.10" in page
    assert "data:image/png;base64," in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "<script" not in page
    assert page.count("<img") == page.count(' alt="') > 0


def test_the_page_says_what_is_wrong_and_what_is_missing(
    results: list[SuiteResult], tmp_path: Path
) -> None:
    page = write_report(results, tmp_path, samples=0).read_text()
    text = (tmp_path / "report.md").read_text()
    for words in (
        "The machine was busy during baselines:",
        "WRONG",
        "Not measured: quality.",
        "bootpig-rt bench --suite quality --output quality.json",
    ):
        assert words in page
        assert words in text
    assert "Not measured: scale." not in page


def test_the_markdown_shows_files_that_lie_beside_it(
    results: list[SuiteResult], tmp_path: Path
) -> None:
    write_report(results, tmp_path, samples=0)
    text = (tmp_path / "report.md").read_text()
    shown = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert {"time-of-a-known-subject.svg", "identity-against-time.svg", "time-over-steps.svg",
            "memory-over-steps.svg", "profile-step.svg"} <= set(shown)  # fmt: skip
    assert all((tmp_path / name).is_file() for name in shown)
    assert "3.00 (2.90 to 3.10)" in text


def test_a_suite_that_no_section_knows_is_shown_last(
    results: list[SuiteResult], tmp_path: Path
) -> None:
    odd = SuiteResult("new/suite", (Row("a", "a new way", "g/h", (1.0, 2.0, 3.0)),))
    page = write_report([odd, *results], tmp_path, samples=0).read_text()
    assert "a new way" in page[page.index("Builds</h2>") : page.index("What it was measured on")]
    assert '<a href="#other">' in page
    text = (tmp_path / "report.md").read_text()
    assert "## Other suites" in text
    assert "| a new way | 2.00 |" in text


def test_names_of_groups_may_hold_any_sign(tmp_path: Path) -> None:
    rows = tuple(
        Row(f"{group}/MatMul", "MatMul", group, values={"share": 0.5})
        for group in ("a/b: c", "a b c", "../../x", "é")
    )
    result = SuiteResult("profile", rows)
    assert [each.name for each in figures("profile", [result])] == [
        "profile-a-b-c", "profile-a-b-c-1", "profile-x", "profile-plot",
    ]  # fmt: skip
    write_report([result], tmp_path / "page", samples=0)
    shown = re.findall(r"!\[.*?\]\((.*?)\)", (tmp_path / "page" / "report.md").read_text())
    assert len(set(shown)) == 4
    assert all((tmp_path / "page" / name).is_file() for name in shown)


def test_the_pair_that_drew_is_named_beside_the_one_that_was_measured(
    results: list[SuiteResult], tmp_path: Path
) -> None:
    name = Pipeline(default_model()).spec.config.name
    other = replace(results[1], settings={"pair": "another"})
    page = write_report([other], tmp_path, samples=1, pair=default_model()).read_text()
    assert f"Drawn by the pair {name} " in page
    assert "the numbers were measured on another." in page
    assert f"Drawn by the pair {name} " in (tmp_path / "report.md").read_text()


def test_the_time_axis_is_a_ratio_where_suites_ran_in_different_rounds() -> None:
    judged = {"identity": 0.9, "scene": 0.8}
    timed = Row("exact", "exact", "", (5.0,), "published", Ratio(4, 4, 4), judged)
    untimed = Row("merge", "merge", "", values=judged)
    (found, _) = figures("quality", [SuiteResult("reference", (timed, untimed))])
    assert "published way = 1" in found.wide
    assert "<title>exact: 0.25, 90.0%</title>" in found.wide
    assert "merge" not in found.wide
    plain = replace(timed, ratio=None, ratio_to=None)
    (found, _) = figures("quality", [SuiteResult("reference", (timed, plain))])
    assert "ms a picture" in found.wide


@pytest.mark.slow
def test_a_picture_of_the_page_is_as_wide_as_a_phone(
    results: list[SuiteResult], tmp_path: Path
) -> None:
    if shutil.which("chromium") is None:
        pytest.skip("no chromium here")
    taken = screenshot(write_report(results, tmp_path, samples=0), 400, 600)
    assert taken.size == (400, 600)
    assert len(taken.getcolors(maxcolors=1 << 20) or ()) > 20  # something is drawn


def test_without_a_browser_the_way_to_get_one_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendUnavailable, match="apt-get install chromium"):
        screenshot(tmp_path / "index.html", 400, 600)


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(
    results: list[SuiteResult], tmp_path: Path, width: int
) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium here")
    page = write_report(results, tmp_path, samples=1).read_text().replace('"', "&quot;")
    # A headless window is never narrower than 500 px, a frame is; its own script measures.
    measure = (
        "<script>window.onload=()=>{const d=document.querySelector('iframe').contentDocument;"
        "document.title='wide='+d.documentElement.scrollWidth}</script>"
    )
    frame = tmp_path / "frame.html"
    style = f"width:{width}px;height:3000px;border:0"
    head = '<meta charset="utf-8">'
    frame.write_text(f'{head}<iframe style="{style}" srcdoc="{page}"></iframe>{measure}')
    done = subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,3000",
         "--virtual-time-budget=2000", "--dump-dom", frame.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r"<title>wide=(\d+)</title>", done.stdout)
    assert found is not None, done.stdout[:500]
    assert int(found[1]) <= width
