"""Which meters a run gets, what it says of them, and what their readings add up to."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from exitbench.harness.configs import MeteringConfig
from exitbench.harness.errors import ExitbenchError
from exitbench.harness.metering import open_meter
from exitbench.harness.meters.base import Reading, Source, Unavailable
from exitbench.harness.meters.choose import ChosenMeter, choose_meter, order_of
from exitbench.harness.meters.external import ExternalMeter, find_external
from exitbench.harness.meters.ina3221 import Ina3221Meter
from exitbench.harness.meters.sampled import Sampler
from exitbench.profiles.loading import load_profile
from exitbench.profiles.schema import Profile
from fake_machine import Card, Clock, Load, Powercap, Rails, Ticking, fake_nvml

X86 = load_profile("generic-x86")
TX2 = load_profile("jetson-tx2")
H200 = load_profile("nvidia-h200")
NO_DRIVER = fake_nvml(driver=False)


class Machine:
    """A machine whose package draws 50 W and whose cards 300 W, on a clock of its own."""

    def __init__(self, root: Path, *, rapl: bool = False, cards: tuple[Card, ...] = ()) -> None:
        self.root, self.cards, self.clock = root, cards, Clock()
        if rapl:
            cap = Powercap(root)
            cap.zone("intel-rapl:0", "package-0")
            package = Ticking(self.clock, Load((0, 50.0)), 0.001, 1e-6)
            cap.drive(self.clock, ("intel-rapl:0", package))
        for card in cards:
            card.counter = Ticking(self.clock, Load((0, 300.0)), 0.1, 1e-3)

    def choose(
        self,
        device: str,
        profile: Profile | None,
        external: ExternalMeter | Unavailable | None = None,
        threads: int | None = None,
    ) -> ChosenMeter:
        library = fake_nvml(*self.cards) if self.cards else NO_DRIVER
        return choose_meter(
            device,
            profile,
            threads=threads,
            external=external,
            root=self.root,
            nvml=library,
            environ={},
            cuda_uuid=lambda index: None,
            clock=self.clock,
            sleep=self.clock.sleep,
        )

    def plug(self, watts: float, covers: str = "board") -> ExternalMeter:
        """A wall meter that counts joules twice a second, in a file."""
        path = self.root / "plug"
        load, before = Load((0, watts)), self.clock.on_tick
        shown: list[float] = []

        def update() -> None:
            before()
            tick_s = self.clock.now_s // 0.5 * 0.5
            if shown != [tick_s]:
                path.write_text(f"{load.joules(tick_s):.3f}")
                shown[:] = [tick_s]

        self.clock.on_tick = update
        update()
        meter = find_external(
            f"file:{path}", "joules", covers, clock=self.clock, sleep=self.clock.sleep
        )
        assert isinstance(meter, ExternalMeter), meter
        return meter

    def work(self, meter: ChosenMeter, seconds: float = 10.0) -> Reading:
        window = meter.open()
        self.clock.sleep(seconds)
        return window.close()

    def sampled(self, meter: ChosenMeter) -> Reading:
        """Ten seconds in which the module's sensors are read by the fake clock."""
        (sensors,) = meter.meters
        assert isinstance(sensors, Ina3221Meter)
        sampler = sensors.sampler
        sensors.sampler = Sampler(sampler.look, sampler.period_s, self.clock, threaded=False)
        self.clock.every(sampler.period_s, sensors.sampler.sample)
        return self.work(meter)


# The card's counter ticks every 100 ms, of which polling misses up to a twentieth, in 10 s windows.
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
    assert meter.update_period_s == pytest.approx(0.001, rel=0.02)


def test_a_cpu_run_is_modelled_otherwise_and_says_why(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    meter = machine.choose("cpu", X86)
    # This process uses next to no CPU in a window of the fake clock; the sums of the two that
    # it may use in half a second of the real one would be far below the tolerance.
    reading = machine.work(meter, seconds=0.1)
    assert reading.total_j == pytest.approx(65 * 0.1, rel=EDGES)
    assert (reading.total_source, reading.cpu_source) == ("modelled", "modelled")
    assert (meter.power_w, meter.update_period_s) == (65, None)
    assert "CPU energy is modelled: 65 W with " in meter.words
    assert "CPUs at work, 10 W idle" in meter.words
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


def test_the_power_of_a_cpu_follows_the_threads_of_the_run(tmp_path: Path) -> None:
    processors = os.cpu_count() or 1
    meter = Machine(tmp_path).choose("cpu", X86, threads=1)
    assert meter.power_w == pytest.approx(10 + 55 / processors)
    assert meter.idle_w == 10
    assert Machine(tmp_path / "b").choose("cuda:0", X86).idle_w is None


def test_sensors_of_a_module_go_before_its_modelled_power(tmp_path: Path) -> None:
    rails = Rails(tmp_path, (("VDD_IN", "VDD_SYS_CPU", "VDD_SYS_DDR"), ("VDD_SYS_GPU",)))
    rails.set_w("VDD_IN", 9.0)
    rails.set_w("VDD_SYS_GPU", 4.0)
    machine = Machine(tmp_path)
    for device in ("cpu", "cuda:0"):
        meter = machine.choose(device, TX2)
        assert meter.domains == ("module", "gpu", "cpu", "dram")
        reading = machine.sampled(meter)
        assert reading.total_j == pytest.approx(90, rel=EDGES)
        assert reading.gpu_j == pytest.approx(40, rel=EDGES)
        assert (meter.source, reading.total_source) == ("measured", "measured")
        assert "GPU energy and CPU energy and memory energy lie within module energy" in meter.words


def test_what_a_wall_meter_covers_contains_the_rest_and_is_counted_once(tmp_path: Path) -> None:
    machine = Machine(tmp_path, rapl=True, cards=(Card(),))
    meter = machine.choose("cuda:0", H200, machine.plug(500.0))
    assert meter.domains == ("board", "gpu", "cpu")
    assert meter.update_period_s == pytest.approx(0.5, rel=0.02)
    reading = machine.work(meter, 60.0)
    assert reading.joules == pytest.approx({"board": 30_000, "gpu": 18_000, "cpu": 3000}, rel=EDGES)
    assert reading.total_j == reading.joules["board"]
    assert "GPU energy and CPU energy lie within board energy" in meter.words


def test_a_wall_meter_alone_is_enough_for_a_device_nobody_knows(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    meter = machine.choose("cuda:0", None, machine.plug(500.0))
    assert (meter.required, meter.domains, meter.source) == ("", ("board",), "measured")
    assert meter.words == (
        "Board energy (everything behind one plug) is measured by the external meter "
        f"'file:{tmp_path / 'plug'}' (joules of the board)."
    )


def test_an_external_meter_takes_the_place_of_the_one_that_covers_the_same(tmp_path: Path) -> None:
    machine = Machine(tmp_path, rapl=True)
    meter = machine.choose("cpu", X86, machine.plug(60.0, "cpu"))
    assert meter.domains == ("cpu",)
    assert machine.work(meter, 60.0).cpu_j == pytest.approx(3600, rel=EDGES)


def test_an_external_meter_that_fails_is_said_and_the_others_serve(tmp_path: Path) -> None:
    machine = Machine(tmp_path, rapl=True)
    broken = find_external("exitbench-no-such-program", "watts", "board")
    meter = machine.choose("cpu", X86, broken)
    assert meter.domains == ("cpu",)
    assert "Board energy (everything behind one plug) is unavailable" in meter.words
    assert "cannot be started" in meter.words
    assert "The total covers CPU energy only." in meter.words


def test_a_run_refuses_an_external_meter_that_fails_before_any_work(tmp_path: Path) -> None:
    broken = MeteringConfig(external="exitbench-no-such-program")
    with pytest.raises(ExitbenchError, match="--external: exitbench-no-such-program cannot be"):
        open_meter("cpu", X86, broken, root=tmp_path)
    lenient = open_meter("cpu", X86, broken, root=tmp_path, insist=False)
    assert "Board energy (everything behind one plug) is unavailable" in lenient.words


@pytest.mark.parametrize(
    ("named", "order"),
    [
        ((), ("rapl", "ina3221", "modelled")),
        (("nvml", "external", "modelled"), ("rapl", "ina3221", "modelled")),
        (("ina3221", "external", "modelled"), ("ina3221", "rapl", "modelled")),
        (("modelled", "rapl"), ("modelled",)),
        (("ina3221", "modelled", "rapl"), ("ina3221", "modelled")),
    ],
)
def test_the_profile_orders_the_meters(named: tuple[str, ...], order: tuple[str, ...]) -> None:
    assert order_of(replace(X86, meters=named), "cpu") == order


def test_a_profile_that_puts_modelled_power_first_gets_it_and_it_is_said(tmp_path: Path) -> None:
    meter = Machine(tmp_path, rapl=True).choose("cpu", replace(X86, meters=("modelled", "rapl")))
    assert meter.source == "modelled"
    assert meter.words.endswith("because hardware profile generic-x86 puts it first.")


def test_the_uncertainty_of_a_meter_that_ran_longer_is_wider(tmp_path: Path) -> None:
    machine = Machine(tmp_path, rapl=True, cards=(Card(),))
    meter = machine.choose("cuda:0", H200)
    reading = machine.work(meter)
    assert reading.total_uncertainty_j is not None
    assert reading.total_j == pytest.approx(3500, abs=reading.total_uncertainty_j)
    # The card's update of 100 ms at 300 W, and the 1 ms that RAPL waited for its tick.
    assert reading.uncertainty_j["gpu"] <= 1.1 * 30 + 300 * 2e-3
    assert reading.uncertainty_j["cpu"] <= 50 * 3e-3


@dataclass(frozen=True)
class Steady:
    """A meter of 100 W that takes its time to open, and is sure to a joule."""

    clock: Clock
    domain: str
    update_period_s: float
    opening_s: float
    opened_s: float = 0.0
    name: str = "steady"
    source: Source = "measured"

    @property
    def domains(self) -> tuple[str, ...]:
        return (self.domain,)

    def open(self) -> Steady:
        self.clock.sleep(self.opening_s)
        return replace(self, opened_s=self.clock.now_s)

    def close(self) -> Reading:
        seconds = self.clock.now_s - self.opened_s
        joules = {self.domain: 100.0 * seconds}
        return Reading(seconds, joules, "measured", uncertainty_j={self.domain: 1.0})


def test_what_was_metered_before_all_meters_were_open_is_uncertain() -> None:
    clock = Clock()
    slow, fast = Steady(clock, "gpu", 0.1, 0.0), Steady(clock, "cpu", 0.001, 0.05)
    window = ChosenMeter((fast, slow), (), "", "", clock).open()
    clock.sleep(10)
    reading = window.close()
    assert reading.seconds == pytest.approx(10)
    # The slow one was open 50 ms before the fast one: 5 J of 100 W, idle or at work.
    assert reading.joules == pytest.approx({"cpu": 1000.0, "gpu": 1005.0})
    assert reading.uncertainty_j == pytest.approx({"cpu": 1.0, "gpu": 6.0})


def test_windows_of_all_meters_nest(tmp_path: Path) -> None:
    machine = Machine(tmp_path, rapl=True, cards=(Card(),))
    meter = machine.choose("cuda:0", H200)
    outer = meter.open()
    inner = machine.work(meter)
    machine.work(meter)
    both = outer.close()
    assert inner.total_j == pytest.approx(3500, rel=EDGES)
    # The waits for ticks of the inner windows lie in the outer one.
    assert 20 < both.seconds < 21
    assert both.total_j == pytest.approx(350 * both.seconds, rel=EDGES)


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "cuda:", "mps"])
def test_a_device_of_no_known_kind_is_named(tmp_path: Path, device: str) -> None:
    with pytest.raises(ExitbenchError, match="it must be cpu, cuda or cuda:N"):
        Machine(tmp_path).choose(device, X86)
