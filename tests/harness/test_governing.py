"""``exitbench govern``: chosen on the calibration split, one deadline, modelled is called so."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from exitbench.harness.configs import GovernConfig, SweepConfig, TraceConfig
from exitbench.harness.contest import Arena, least_energy
from exitbench.harness.governed import Governed
from exitbench.harness.governing import govern, run_govern
from exitbench.harness.operating import TOP_ASSUMED, NothingToGovern
from exitbench.harness.rundir import RunDirectory
from exitbench.harness.sweep import SETTING_COLUMNS
from exitbench.harness.sweeping import run_sweep
from exitbench.harness.tracing import run_trace
from fake_clocks import CPU_MODEL, add_cpuinfo, add_policy
from pipeline_fixtures import Said, cost_rows, refused, silent, write_cost
from test_operating import PROFILE

EXITS = 6
LOSS = 12.0  # points; so much that leaving at a fixed exit is admitted, too
COLUMNS = [
    "role", *SETTING_COLUMNS, "hardware", "device_class", "governor", "operating_point",
    "deadline_ms", "accuracy", "calibration_accuracy", "latency_ms", "latency_p99_ms", "missed",
    "switches", "points", "busy_energy_mj", "energy_mj", "energy_source", "latency_source",
    "energy_vs_full", "energy_vs_every_exit", "claim_vs_full", "claim_vs_every_exit",
]  # fmt: skip
ROLES = ["full", "fixed", "every-exit", "every-exit-best", "predictive", "predictive-table"]


def logits_file(path: Path, seed: int, samples: int = 150) -> Path:
    """Logits of three classes of which some samples are easy and some never are."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, samples)
    logits = generator.normal(size=(samples, EXITS + 1, 3)).astype(np.float32)
    growth = np.linspace(0, 6, EXITS + 1) - generator.uniform(0, 4, samples)[:, None]
    logits[np.arange(samples), :, labels] += np.maximum(growth, 0).astype(np.float32)
    np.savez(path, logits=logits, labels=labels)
    return path


def latency_ms(kind: str, index: int) -> float:
    return {"segment": 1.0 + index / 10, "head": 0.05, "forecast": 0.03, "classifier": 0.02}[kind]


def energy_mj(kind: str, index: int) -> float:
    return 7.0 * latency_ms(kind, index)


def make_run(folder: Path, *, test_seed: int = 2, **columns: Any) -> Path:
    """A run directory by logits, on a device of three clocks whose prices are measured."""
    values = {
        "latency_ms": latency_ms, "energy_mj": energy_mj, "energy_source": lambda *_: "measured",
        "flops": lambda kind, _: 8_000_000 if kind == "segment" else 80_000,
        "bytes": lambda *_: 10_000,
    }  # fmt: skip
    priced = cost_rows([4_000_000] * (EXITS + 1), [40_000] * EXITS, **{**values, **columns})
    run = folder / "run"
    run_trace(
        TraceConfig(
            run,
            logits=logits_file(folder / "test.npz", test_seed),
            calibration_logits=logits_file(folder / "calibration.npz", 1),
            cost=write_cost(folder / "cost.csv", priced),
        ),
        silent,
    )
    (folder / "bench.toml").write_text(PROFILE, encoding="utf-8")
    hardware = {"asked": str(folder / "bench.toml"), "profile": "bench", "idle_w": None}
    directory = RunDirectory(run)
    everything = {**directory.environment, "threads": 2, "cores": 2, "cpu": CPU_MODEL}
    directory.update(hardware=hardware, environment=everything)
    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory that tests copy."""
    return make_run(tmp_path_factory.mktemp("govern"))


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def config(run: Path, **changes: Any) -> GovernConfig:
    values: dict[str, Any] = {"beta_count": 6, "criteria": ("softmax",), "accuracy_loss": LOSS}
    return GovernConfig(run, **{**values, **changes})


def governed(
    run: Path, name: str = "bench", root: Path | None = None, **changes: Any
) -> pd.DataFrame:
    """The table, on a machine that shows no clocks unless ``root`` has some."""
    run_govern(config(run, **changes), silent, root=root or bare(run))
    return pd.read_csv(run / f"governed-{name}.csv")


def bare(run: Path) -> Path:
    """The root of a machine without clocks, else like the run's."""
    return add_cpuinfo(run.parent / "bare", CPU_MODEL).parent


def entry(run: Path, name: str = "bench") -> dict[str, Any]:
    return dict(RunDirectory(run, create=False).manifest["govern"][name])


def plain(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows without a governor, by role."""
    return rows[rows.governor.isna()].set_index("role")


def test_every_role_stands_alone_and_under_every_governor(run):
    rows = governed(run)
    assert list(rows.columns) == COLUMNS
    assert list(dict.fromkeys(rows.role)) == ROLES
    for _, part in rows.groupby("role"):
        assert part.governor.fillna("").tolist() == ["", *GovernConfig.governors]
    assert set(plain(rows).operating_point) == {"1000 MHz"}
    named = rows.operating_point.notna() == (rows.governor.isna() | (rows.governor == "fixed"))
    assert named.all()
    assert set(rows.hardware) == {"bench"}
    assert set(rows.device_class) == {"cpu"}


def test_without_a_governor_it_is_the_setting_and_the_price_of_the_sweep(run):
    rows = plain(governed(run))
    run_sweep(
        SweepConfig(
            run, criteria=("softmax",), beta_count=6, predictors=("convolution", "table"),
            accuracy_loss=LOSS,
        ),
        silent,
    )  # fmt: skip
    chosen = pd.read_csv(run / "comparison.csv").set_index("role")
    for role in ROLES:
        one, other = rows.loc[role], chosen.loc[role]
        for name in (*SETTING_COLUMNS, "accuracy", "calibration_accuracy"):
            assert one[name] == other[name] or (pd.isna(one[name]) and pd.isna(other[name]))
        assert one.latency_ms == pytest.approx(other.latency_ms)
        assert one.busy_energy_mj == pytest.approx(other.energy_mj)


def test_all_have_the_deadline_of_the_full_network_and_idle_until_it(run):
    rows = governed(run)
    full = plain(rows).loc["full"]
    assert rows.deadline_ms.to_numpy() == pytest.approx(full.latency_ms)
    assert full.energy_mj == pytest.approx(full.busy_energy_mj)
    assert full.missed == 0
    fixed = plain(rows).loc["fixed"]  # every request takes the same time
    idle_mj = 2.0 * (full.latency_ms - fixed.latency_ms)
    assert fixed.energy_mj == pytest.approx(fixed.busy_energy_mj + idle_mj)
    assert rows.energy_vs_full.to_numpy() == pytest.approx(rows.energy_mj / full.energy_mj)
    every = plain(rows).loc["every-exit"]
    assert rows.energy_vs_every_exit.to_numpy() == pytest.approx(rows.energy_mj / every.energy_mj)


def test_settings_and_points_are_chosen_on_the_calibration_split_alone(run, tmp_path):
    (tmp_path / "other").mkdir()
    other = make_run(tmp_path / "other", test_seed=77)
    names = ["role", "governor", *SETTING_COLUMNS, "operating_point", "calibration_accuracy"]
    first, second = governed(run), governed(other)
    pd.testing.assert_frame_equal(first[names], second[names])
    assert (first.accuracy != second.accuracy).any()


def test_nothing_but_the_winners_sees_the_test_split(run, monkeypatch):
    seen: Counter[str] = Counter()
    costs = Arena.run

    def noted(arena: Arena, setting: Any, split: str, *rest: Any) -> Governed:
        seen[split] += 1
        return costs(arena, setting, split, *rest)

    monkeypatch.setattr(Arena, "run", noted)
    rows = governed(run)
    assert seen["test"] == len(rows)
    assert seen["calibration"] > len(rows)


def test_a_later_deadline_lets_the_clocks_fall(run):
    tight, loose = governed(run), governed(run, deadline_ms=40.0)
    assert (loose.deadline_ms == 40.0).all()
    assert (loose.missed == 0).all()
    careful = loose[loose.governor.isin(["fixed", "deadline", "deadline-safe"])]
    energy = careful.set_index(["role", "governor"]).energy_mj
    top = plain(loose).energy_mj
    assert all(energy[role].max() < top[role] for role in ROLES)
    assert (tight[tight.role == "full"].points == "1000 MHz:1").all()


def test_the_point_of_the_governor_fixed_can_be_given(run):
    rows = governed(run, operating_point="500 MHz")
    fixed = rows[rows.governor == "fixed"]
    assert set(fixed.operating_point) == {"500 MHz"}
    assert set(fixed.points) == {"500 MHz:1"}
    assert fixed[fixed.role == "full"].missed.item() == 1


def test_sources_are_those_of_what_was_used(run):
    rows = governed(run)
    full = rows[(rows.role == "full") & rows.governor.isna()].iloc[0]
    assert (full.energy_source, full.latency_source) == ("measured", "measured")
    # The idle after an exit is priced with the profile's idle power.
    assert plain(rows).loc["fixed"].energy_source == "modelled"
    below = rows[~rows.points.isin(["1000 MHz:1"])]
    assert len(below)
    assert set(below.energy_source) == set(below.latency_source) == {"modelled"}


@pytest.mark.parametrize(("known", "told"), [("measured", "measured"), (None, "modelled")])
def test_idle_power_is_measured_only_where_the_run_says_so(run, known, told):
    directory = RunDirectory(run, create=False)
    hardware = {**directory.manifest["hardware"], "idle_w": 3.0, "idle_source": known}
    directory.update(hardware=hardware)
    fixed = plain(governed(run)).loc["fixed"]
    idle_mj = 3.0 * (fixed.deadline_ms - fixed.latency_ms)
    assert fixed.energy_mj == pytest.approx(fixed.busy_energy_mj + idle_mj)
    assert fixed.energy_source == told


def test_a_network_on_half_of_the_cpus_saves_less_by_a_lower_clock(run):
    directory = RunDirectory(run, create=False)
    directory.update(environment={**directory.environment, "threads": 1, "cores": 2})
    governed(run)
    lowest = json.loads((run / "manifest.json").read_text())["govern"]["bench"]["points"][0]
    # 2 W stay; of the 8 W that follow the clock half are drawn: f V^2 is 0.5 x 0.8^2 there.
    assert lowest["power_w"] == pytest.approx(7.0 * (2 + 4 * 0.5 * 0.64) / (2 + 4))


def test_the_papers_claims_stand_beside_predictive_with_a_governor_only(run):
    said = Said()
    run_govern(config(run), said, root=bare(run))
    rows = pd.read_csv(run / "governed-bench.csv")
    claimed = rows.role.str.startswith("predictive") & rows.governor.notna()
    assert rows.claim_vs_full[claimed].to_numpy() == pytest.approx(1 - 0.729)
    assert rows.claim_vs_every_exit[claimed].to_numpy() == pytest.approx(1 - 0.376)
    assert rows.claim_vs_full[~claimed].isna().all()
    text = "\n".join(said.lines)
    for words in ("full:", "every-exit:", "predictive:", "predictive, deadline:", "modelled"):
        assert words in text
    assert "72.9%" in text
    assert "37.6%" in text


def test_the_manifest_says_what_was_governed_and_what_is_assumed(run):
    governed(run)
    entry = json.loads((run / "manifest.json").read_text())["govern"]["bench"]
    assert entry["costs"] == "measured"
    assert [point["name"] for point in entry["points"]] == ["500 MHz", "750 MHz", "1000 MHz"]
    assert entry["points"][0]["time_factor"] == pytest.approx(1.8)
    assert entry["points"][-1]["power_w"] == pytest.approx(7.0)
    assert entry["switch_ms"] == pytest.approx(3.0)
    assert entry["deadline_ms"]["fp32"] == pytest.approx(9.82)
    assert "2 of 3 operating points are modelled" in entry["model"]
    assert "A800" in entry["model_error"]


def test_another_device_is_priced_from_its_peaks_and_nothing_of_it_is_measured(run):
    said = Said()
    run_govern(config(run, hardware="jetson-tx2"), said, root=bare(run))
    rows = pd.read_csv(run / "governed-jetson-tx2.csv")
    assert set(rows.device_class) == {"gpu"}
    assert set(rows.energy_source) == set(rows.latency_source) == {"modelled"}
    assert not any("measured" in line for line in said.starting("govern"))
    assert any("changing the clock takes 5 ms" in line for line in said.lines)
    # Seven segments: 8 MFLOP at half of 666 GFLOP/s and 0.05 ms to start each; the classifier.
    full_ms = 7 * (8e6 / 333e9 * 1e3 + 0.05) + 80e3 / 333e9 * 1e3 + 0.05
    assert plain(rows).loc["full"].latency_ms == pytest.approx(full_ms)
    governed(run)
    entries = json.loads((run / "manifest.json").read_text())["govern"]
    assert set(entries) == {"jetson-tx2", "bench"}
    assert entries["jetson-tx2"]["costs"] == "modelled"
    assert "15 of 15 operating points are modelled" in entries["jetson-tx2"]["model"]
    assert TOP_ASSUMED in entries["bench"]["model"]
    assert TOP_ASSUMED not in entries["jetson-tx2"]["model"]  # its peaks are of its top clock


KHZ = (400_000, 800_000, 1_250_000)


def test_on_its_own_machine_a_run_is_governed_at_the_levels_of_the_driver(run):
    add_policy(bare(run), 0, KHZ)
    said = Said()
    run_govern(config(run), said, root=bare(run))
    words = "the device's own levels, all 3 of cpufreq policy0"
    assert said.starting(f"govern bench fp32: 3 operating points ({words}), deadline 9.82 ms")
    found = entry(run)
    assert [point["name"] for point in found["points"]] == ["400 MHz", "800 MHz", "1250 MHz"]
    # 0.32 of its own top clock: a fifth of the time does not scale.
    assert found["points"][0]["time_factor"] == pytest.approx(0.2 + 0.8 / 0.32)
    assert (found["levels"], found["levels_words"]) == ("device", words)
    fixed = governed(run, root=bare(run), operating_point="800 MHz")
    assert set(fixed[fixed.governor == "fixed"].points) == {"800 MHz:1"}


def test_a_level_that_is_asked_for_or_was_measured_is_not_thinned_out(run):
    add_policy(bare(run), 0, range(500_000, 5_000_000, 50_000))  # 90 levels, 32 are replayed
    governed(run, root=bare(run))
    names = [point["name"] for point in entry(run)["points"]]
    assert (len(names), "550 MHz" in names) == (32, False)
    assert "32 of the 90" in entry(run)["levels_words"]
    measured = pd.read_csv(run / "cost.csv")
    slow = measured.assign(operating_point="600 MHz", latency_ms=measured.latency_ms * 2)
    pd.concat([measured, slow]).to_csv(run / "cost.csv", index=False)
    assert "600 MHz" not in names
    rows = governed(run, root=bare(run), operating_point="550 MHz")
    assert set(rows[rows.governor == "fixed"].operating_point) == {"550 MHz"}
    points = {point["name"]: point for point in entry(run)["points"]}
    assert len(points) == 34
    assert points["600 MHz"]["time_factor"] == pytest.approx(2)


def test_the_levels_of_the_profile_stay_where_there_are_no_others_and_it_is_said(run):
    governed(run)
    assert entry(run)["levels"] == "profile"
    assert "shows none of its own" in entry(run)["levels_words"]
    assert "has no policy" in entry(run)["model"]
    add_policy(bare(run), 0, KHZ)
    said = Said()
    run_govern(config(run, hardware="jetson-tx2"), said, root=bare(run))
    words = "levels of the profile: another device than the run's"
    assert said.starting(f"govern jetson-tx2 fp32: 15 operating points ({words})")
    assert entry(run, "jetson-tx2")["levels"] == "profile"
    directory = RunDirectory(run, create=False)
    directory.update(environment={**directory.environment, "cpu": "Another CPU"})
    assert set(plain(governed(run, root=bare(run))).operating_point) == {"1000 MHz"}
    assert "the run is of another machine" in entry(run)["levels_words"]


def test_of_another_machine_the_clocks_that_were_measured_there_are_its_levels(run):
    measured = pd.read_csv(run / "cost.csv")
    own = [
        measured.assign(operating_point=f"{mhz} MHz", clock_mhz=mhz, latency_ms=measured.latency_ms)
        for mhz in (400, 1250)
    ]
    pd.concat([measured, *own]).to_csv(run / "cost.csv", index=False)
    governed(run)
    assert [point["name"] for point in entry(run)["points"]] == ["400 MHz", "1250 MHz"]
    assert entry(run)["levels"] == "measured"
    assert "levels of the profile" not in entry(run)["model"]


def test_what_is_refused_leaves_no_trace(run):
    before = (run / "manifest.json").read_bytes()
    message = refused(run_govern, config(run, operating_point="333 MHz"), silent, root=bare(run))
    assert "'500 MHz', '750 MHz', '1000 MHz'" in message
    assert "jetson-tx2" in refused(run_govern, config(run, hardware="jetson-tx9"), silent)
    assert "trace" in refused(run_govern, config(run, precisions=("int8",)), silent)
    assert (run / "manifest.json").read_bytes() == before
    assert not list(run.glob("governed-*"))


def test_batches_leave_nothing_to_govern(tmp_path):
    run = make_run(tmp_path, batch_size=lambda *_: 64)
    with pytest.raises(NothingToGovern, match="--batch-sizes 1"):
        govern(RunDirectory(run), config(run), silent)


def test_a_table_without_energies_is_governed_by_modelled_ones(tmp_path):
    run = make_run(tmp_path, energy_mj=lambda *_: None, energy_source=lambda *_: None)
    rows = governed(run)
    assert set(rows.energy_source) == {"modelled"}
    full = plain(rows).loc["full"]
    assert full.latency_source == "measured"
    assert full.energy_mj == pytest.approx(10 * full.latency_ms)  # the profile's active power


def costs(energy_j: float, missed: float) -> Governed:
    return Governed(1.0, 1.0, missed, 0.0, {}, energy_j, energy_j, "modelled", "modelled")


def test_the_least_energy_among_those_that_keep_the_deadline_wins():
    tried = [costs(5.0, 0.02), costs(6.0, 0.01), costs(7.0, 0.0)]
    assert least_energy(tried, 0.01) == 1
    assert least_energy(tried, 0.02) == 0
    # Where all miss more than allowed, it is the one that misses least.
    assert least_energy(tried[:2], 0.005) == 1
    assert least_energy([costs(float("nan"), 0.0), costs(9.0, 0.5)], 0.01) == 1
    assert least_energy([costs(float("nan"), 0.0)], 0.01) is None
