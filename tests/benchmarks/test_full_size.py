"""Suite `full-size`: its folders, its children, and what is made of what they tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from bootpig_rt.benchmarks.child import ChildRun
from bootpig_rt.benchmarks.full_size import child as child_module
from bootpig_rt.benchmarks.full_size import draw
from bootpig_rt.benchmarks.full_size import folders as folders_module
from bootpig_rt.benchmarks.full_size.folders import Folders, make_folders
from bootpig_rt.benchmarks.full_size.told import Drawn, Engine, Order, Stopwatch, Told
from bootpig_rt.benchmarks.full_size.ways import ways
from bootpig_rt.benchmarks.pairs import write_base_model, write_pair
from bootpig_rt.benchmarks.result import Row
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.suites import full_size
from bootpig_rt.benchmarks.way import Journal
from bootpig_rt.errors import BootPIGError, ParameterError
from bootpig_rt.models.init_pair import init_pair
from bootpig_rt.models.load import load_pair

# Inside diffusers' schedulers, with numpy 2.
pytestmark = pytest.mark.filterwarnings("default")


def test_a_picture_of_more_steps_counts_what_is_no_step_once() -> None:
    drawn = Drawn(steps_ms=(10.0, 12.0), reference_ms=8.0, wall_ms=100.0)
    # 4 steps of 11 ms, 8 ms of reference: 48 ms are fixed.
    assert drawn.scaled_ms(25, 4) == pytest.approx((48 + 50 + 250, 48 + 50 + 300))


def test_a_stopwatch_tells_times_between_calls() -> None:
    watch = Stopwatch()
    watch()
    watch()
    assert len(watch.between_ms(1)) == 1
    assert sum(watch.between_ms()) <= watch.wall_ms


def test_the_base_model_is_one_that_init_pair_takes_and_its_pair_has_two_unets(
    tmp_path: Path,
) -> None:
    base = write_base_model("toy", tmp_path / "base")
    assert write_base_model("toy", base) == base
    init_pair(base, tmp_path / "started")
    folders_module._resized(tmp_path / "started", tmp_path / "pair", 32, is_shared=False)
    pair = load_pair(tmp_path / "pair")
    assert pair.base.unet is not pair.reference.unet
    assert pair.config.sample_size_px == 32
    # The weights are stored once.
    weights = [
        tmp_path / "pair" / name / "diffusion_pytorch_model.safetensors"
        for name in ("base_unet", "ref_unet")
    ]
    assert weights[0].samefile(weights[1])


class Children:
    """Stands for processes: notes what was asked for, and tells canned times."""

    def __init__(self, fails: tuple[str, ...] = ()) -> None:
        self.fails = fails
        self.asked: list[str] = []

    def __call__(
        self,
        words: Sequence[str],
        *,
        environment: Mapping[str, str],
        timeout_s: float,
    ) -> ChildRun:
        order = msgspec.json.decode(Path(words[2]).read_bytes(), type=Order)
        name = Path(order.pixels).stem
        self.asked.append(name)
        assert environment["BOOTPIG_RT_STORE"] == ""
        if name in self.fails:
            raise BootPIGError("ended with code 1: Unavailable: no openvino")
        slow = {"float32": 40.0, "bf16": 20.0, "int8": 10.0}[order.precision] + order.compiles
        if order.engine in ("onnxruntime", "openvino"):
            slow /= 4
        way = next(way for way in ways(False) if way.name == name)
        steps = tuple(slow + 0.01 * n for n in range(12))
        drawn = {kind: Drawn(steps, 0.0, 12 * slow + 50) for kind in way.kinds}
        grey = np.full((4, 4, 3), 100 if order.precision == "float32" else 101, np.uint8)
        np.savez(order.pixels, **dict.fromkeys(way.kinds, grey))  # type: ignore[arg-type]
        Path(words[3]).write_bytes(msgspec.json.encode(Told(1000.0, 500.0, drawn)))
        return ChildRun(2000.0, 1_000_000, own_bytes=700_000)


@pytest.fixture
def canned(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Children]:
    """Folders that are there, and children that tell canned times."""

    def install(**options: tuple[str, ...]) -> Children:
        rows = tuple(
            Row(f"make {name}", name, folders_module.GROUP, (1.0,))
            for name in ("pair", "cpu", "openvino", "openvino-int8", "peer")
        )
        bundles = {name: Path(name) for name in folders_module.BUNDLES}
        made = Folders(Path("b"), Path("s"), Path("p"), bundles, Path("g"), rows)
        children = Children(**options)
        monkeypatch.setattr(full_size, "make_folders", lambda *_: made)
        monkeypatch.setattr(full_size, "run_child", children)
        monkeypatch.setattr(full_size, "cannot_run", lambda *_: "")
        return children

    return install


SETTINGS = Settings(Path(), rounds=11)


def test_each_way_is_a_process_and_its_rows_have_ratio_memory_and_psnr(
    canned: Callable[..., Children],
) -> None:
    children = canned()
    result = full_size.run(SETTINGS, Journal())
    assert children.asked == [way.name for way in ways(False)]
    known = result.row("ours_openvino_bf16_known")
    assert known.ratio is not None
    assert known.ratio.to == "published_bf16"
    assert known.ratio.value > 3
    assert result.row("ours_openvino_bf16_new").values["peak_bytes"] == 1e6
    assert result.row("ours_openvino_bf16_new").values["own_bytes"] == 7e5
    assert result.row("ours_openvino_bf16_known").values.get("own_bytes") is None
    assert result.row("ours_openvino_bf16_new").values["cold_ms"] == 1500
    assert known.values["per_row_ms"] == pytest.approx((known.values["step_ms"] or 0) / 3)
    assert known.values["to_float32_db"] == pytest.approx(48.1, abs=0.1)
    assert result.row("ours_onnxruntime_known").values["to_float32_db"] == 200
    assert result.row("published").values["to_float32_db"] is None
    met = {target.what: target.verdict for target in result.targets}
    assert met["known subject in int8, over that in bf16"] == "met"


def test_a_way_that_cannot_run_says_why_and_the_others_go_on(
    canned: Callable[..., Children],
) -> None:
    canned(fails=("ours_openvino_int8",))
    result = full_size.run(SETTINGS, Journal())
    row = result.row("ours_openvino_int8_known")
    assert row.status.startswith("not available: ")
    assert not row.samples_ms
    assert result.row("ours_openvino_bf16_known").samples_ms
    assert {t.what: t.verdict for t in result.targets}[
        "known subject in int8, over that in bf16"
    ] == "not measured"


def test_a_float32_way_that_draws_another_picture_is_wrong_and_has_no_time(
    canned: Callable[..., Children], monkeypatch: pytest.MonkeyPatch
) -> None:
    canned()
    monkeypatch.setattr(full_size, "_psnr", lambda *_: 21.0)
    result = full_size.run(SETTINGS, Journal())
    assert "ours_onnxruntime_known: wrong: its pixels are 21 dB" in "; ".join(result.wrong())
    assert not result.row("ours_onnxruntime_known").samples_ms
    assert result.row("ours_openvino_bf16_known").samples_ms


def test_an_interrupted_suite_goes_on_with_the_next_way(
    canned: Callable[..., Children], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "rounds.jsonl")
    canned()

    def interrupted(*arguments: object, **options: object) -> ChildRun:
        raise KeyboardInterrupt

    first = Children()
    monkeypatch.setattr(
        full_size,
        "run_child",
        lambda words, **o: (first if len(first.asked) < 3 else interrupted)(words, **o),
    )
    with pytest.raises(KeyboardInterrupt):
        full_size.run(SETTINGS, journal)
    second = canned()
    full_size.run(SETTINGS, journal)
    assert first.asked + second.asked == [way.name for way in ways(False)]
    assert list(tmp_path.iterdir()) == []


def test_published_ways_run_whatever_only_says_and_an_unknown_name_is_refused(
    canned: Callable[..., Children],
) -> None:
    children = canned()
    full_size.run(replace(SETTINGS, only=("ours_onnxruntime_known",)), Journal())
    assert children.asked == [
        "published", "published_compile", "published_bf16", "published_compile_bf16",
        "ours_onnxruntime",
    ]  # fmt: skip
    named = replace(SETTINGS, only=("ours_onnxruntime_known",), baseline="published_bf16")
    children.asked.clear()
    result = full_size.run(named, Journal())
    assert children.asked == ["published_bf16", "ours_onnxruntime"]
    ratio = result.row("ours_onnxruntime_known").ratio
    assert ratio is not None
    assert ratio.to == "published_bf16"
    with pytest.raises(ParameterError, match="matches no row"):
        full_size.run(replace(SETTINGS, only=("owrs",)), Journal())


def test_folders_are_made_by_commands_once_and_one_that_cannot_be_is_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Sequence[str]] = []

    def run_child(words: Sequence[str], timeout_s: float | None = None) -> ChildRun:
        asked.append(words)
        assert (timeout_s is not None) == ("int8" in words)
        if "openvino" in words:
            raise BootPIGError("`words` ended with code 2: no such target")
        if "bootpig_rt.benchmarks.pairs" in words:
            write_base_model("toy", Path(words[3]))
        elif "init-pair" in words:
            init_pair(
                Path(words[words.index("--base-model") + 1]), Path(words[words.index("-o") + 1])
            )
        else:
            Path(words[-1] if "-o" not in words else words[words.index("-o") + 1]).mkdir()
        return ChildRun(3.0, 5)

    monkeypatch.setattr(folders_module, "run_child", run_child)
    monkeypatch.setattr(folders_module, "check_openvino", lambda: None)
    settings = replace(SETTINGS, work=tmp_path, is_smoke=True)
    monkeypatch.setattr(folders_module, "check_int8", lambda: None)
    made = make_folders(settings, 64, ("make cpu", "make openvino", "make openvino-int8"))
    assert made.missing("make openvino") == "failed: no such target"
    assert made.missing("make cpu") == ""
    assert made.rows[0].values["peak_bytes"] == 5
    before = len(asked)
    make_folders(settings, 64, ("make cpu",))
    assert len(asked) == before


def test_the_published_way_diffusers_and_ours_draw_what_each_order_says(
    tmp_path: Path, tiny_bundle_folder: Path
) -> None:
    pair = write_pair("toy", tmp_path / "pair")
    told = {}
    cases: tuple[tuple[Engine, Path], ...] = (
        ("published", pair), ("diffusers", pair), ("onnxruntime", tiny_bundle_folder),
    )  # fmt: skip
    for engine, folder in cases:
        order = Order(
            engine=engine, precision="float32", folder=str(folder),
            pair=str(pair if engine != "onnxruntime" else tiny_bundle_folder), side_px=64, steps=3,
            threads=1, pixels=str(tmp_path / f"{engine}.npz"),
        )  # fmt: skip
        told[engine] = child_module.main(order)
    assert list(told["onnxruntime"].drawn) == ["new", "known", "text"]
    assert told["onnxruntime"].drawn["new"].reference_ms > 0
    assert told["onnxruntime"].drawn["known"].reference_ms < (
        told["onnxruntime"].drawn["new"].reference_ms
    )
    assert len(told["published"].drawn["picture"].steps_ms) == 3
    assert len(told["diffusers"].drawn["text"].steps_ms) == 2
    with np.load(tmp_path / "diffusers.npz") as pixels:
        assert pixels["text"].shape == (64, 64, 3)
    assert set(draw.LOADERS) == {"published", "diffusers", "genai", "onnxruntime", "openvino"}
