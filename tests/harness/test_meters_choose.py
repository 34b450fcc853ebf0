"""Which meters a run gets, what it says of them, and what their readings add up to."""

from __future__ import annotations

from pathlib import Path

import pytest
from exitbench.harness.errors import ExitbenchError
from exitbench.harness.meters.base import Reading
from exitbench.harness.meters.choose import ChosenMeter, choose_meter
from exitbench.profiles.loading import load_profile
from exitbench.profiles.schema import Profile
from fake_machine import Card, Clock, Powercap, fake_nvml

X86 = load_profile("generic-x86")
TX2 = load_profile("jetson-tx2")
H200 = load_profile("nvidia-h200")
NO_DRIVER = fake_nvml(driver=False)


class Machine:
    """A machine whose package draws 50 W and whose card 300 W, on a clock of its own."""

    def __init__(self, root: Path, *, rapl: bool = False, cards: tuple[Card, ...] = ()) -> None:
        self.root, self.cards, self.clock = root, cards, Clock(0.001)
        self.cap = cap = Powercap(root) if rapl else None
        if cap is not None:
            cap.zone("intel-rapl:0", "package-0")
            self.clock.on_tick = lambda: cap.add_uj("intel-rapl:0", 50_000)

    def choose(self, device: str, profile: Profile | None) -> ChosenMeter:
        library = fake_nvml(*self.cards) if self.cards else NO_DRIVER
        return choose_meter(
            device,
            profile,
            root=self.root,
            nvml=library,
            environ={},
            cuda_uuid=lambda index: None,
            clock=self.clock,
        )

    def work(self, meter: ChosenMeter, seconds: float = 10.0) -> Reading:
        window = meter.open()
        self.clock.now_s += seconds
        if self.cap is not None:
            self.cap.add_uj("intel-rapl:0", int(50e6 * seconds))
        for card in self.cards:
            if card.energy_mj is not None:
                card.energy_mj += int(300e3 * seconds)
        return window.close()


# The fake machine's edges take a few milliseconds of its 10 s windows.
EDGES = 2e-3


def test_a_cpu_run_is_measured_where_rapl_can_be_read(tmp_path: Path) -> None:
    machine = Machine(tmp_path, rapl=True)
    meter = machine.choose("cpu", X86)
    reading = machine.work(meter)
    assert reading.cpu_j == pytest.approx(500, rel=EDGES)
    assert reading.gpu_j is None
    assert reading.total_source == "measured"
    assert meter.words == "CPU energy is measured by the RAPL energy counters (package-0)."
    assert meter.power_w is None
    assert meter.update_period_s == pytest.approx(0.001, rel=1e-6)


def test_a_cpu_run_is_modelled_otherwise_and_says_why(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    meter = machine.choose("cpu", X86)
    reading = machine.work(meter)
    assert reading.total_j == pytest.approx(65 * 10, rel=EDGES)
    assert (reading.total_source, reading.cpu_source) == ("modelled", "modelled")
    assert (meter.power_w, meter.update_period_s) == (65, None)
    assert "CPU energy is modelled: 65 W" in meter.words
    assert "an assumption" in meter.words
    assert "virtual machines" in meter.words


def test_a_measured_gpu_is_not_topped_up_with_a_modelled_cpu(tmp_path: Path) -> None:
    machine = Machine(tmp_path, cards=(Card(),))
    meter = machine.choose("cuda:0", H200)
    reading = machine.work(meter)
    assert reading.joules.keys() == {"gpu"}
    assert reading.total_j == pytest.approx(3000, rel=EDGES)
    assert (reading.gpu_source, reading.cpu_source) == ("measured", "unavailable")
    assert meter.source == "measured"
    assert "CPU energy is unavailable" in meter.words
    assert "The total covers GPU energy only." in meter.words


def test_a_cuda_run_adds_the_measured_cpu(tmp_path: Path) -> None:
    machine = Machine(tmp_path, rapl=True, cards=(Card(),))
    meter = machine.choose("cuda", H200)
    assert meter.domains == ("gpu", "cpu")
    reading = machine.work(meter)
    assert reading.total_j == pytest.approx(3500, rel=EDGES)
    assert (reading.gpu_source, reading.cpu_source) == ("measured", "measured")
    assert "unavailable" not in meter.words


def test_a_modelled_gpu_beside_a_measured_cpu_makes_a_modelled_total(tmp_path: Path) -> None:
    machine = Machine(tmp_path, rapl=True)
    reading = machine.work(machine.choose("cuda:0", H200))
    assert reading.total_j == pytest.approx(7500, rel=EDGES)
    assert (reading.gpu_source, reading.cpu_source) == ("modelled", "measured")
    assert reading.total_source == "modelled"


def test_a_module_is_one_domain_that_is_not_added_to_its_parts(tmp_path: Path) -> None:
    machine = Machine(tmp_path, rapl=True)
    meter = machine.choose("cuda:0", TX2)
    reading = machine.work(meter)
    assert meter.domains == ("module",)
    assert reading.total_j == pytest.approx(110, rel=EDGES)
    assert (reading.gpu_j, reading.cpu_j) == (None, None)
    assert "module energy" in meter.words.lower()


def test_a_gpu_nobody_knows_leaves_no_total_even_beside_a_measured_cpu(tmp_path: Path) -> None:
    machine = Machine(tmp_path, rapl=True)
    meter = machine.choose("cuda:0", X86)
    reading = machine.work(meter)
    assert reading.joules["gpu"] is None
    assert reading.cpu_j == pytest.approx(500, rel=EDGES)
    assert reading.total_j is None
    assert (meter.source, reading.total_source) == ("unavailable", "unavailable")
    assert "generic-x86 states no power of a GPU" in reading.note


def test_without_profile_and_counter_energy_is_unavailable_and_never_zero(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    meter = machine.choose("cpu", None)
    reading = machine.work(meter)
    assert reading.joules == {"cpu": None}
    assert (reading.total_j, meter.source, meter.power_w) == (None, "unavailable", None)
    assert "no hardware profile fits" in meter.words


def test_one_unresolved_domain_leaves_no_total(tmp_path: Path) -> None:
    machine = Machine(tmp_path, rapl=True, cards=(Card(),))
    meter = machine.choose("cuda:0", H200)
    machine.cards[0].lost = True
    reading = machine.work(meter)
    assert reading.cpu_j == pytest.approx(500, rel=EDGES)
    assert (reading.gpu_j, reading.total_j) == (None, None)
    assert "GPU is lost" in reading.note


def test_windows_of_all_meters_nest(tmp_path: Path) -> None:
    machine = Machine(tmp_path, rapl=True, cards=(Card(),))
    meter = machine.choose("cuda:0", H200)
    outer = meter.open()
    inner = machine.work(meter)
    machine.work(meter)
    both = outer.close()
    assert inner.total_j == pytest.approx(3500, rel=EDGES)
    assert both.total_j == pytest.approx(7000, rel=EDGES)


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "cuda:", "mps"])
def test_a_device_of_no_known_kind_is_named(tmp_path: Path, device: str) -> None:
    with pytest.raises(ExitbenchError, match="it must be cpu, cuda or cuda:N"):
        Machine(tmp_path).choose(device, X86)
