"""What goes wrong at a meter, and what is then said: one row per fault, with its outcome."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest
from exitbench.harness.meters.base import Meter, Reading, Unavailable
from exitbench.harness.meters.external import find_external
from exitbench.harness.meters.ina3221 import Ina3221Meter, find_ina3221
from exitbench.harness.meters.nvidia import find_nvidia
from exitbench.harness.meters.rapl import find_rapl
from exitbench.harness.meters.sampled import Sampler
from exitbench.profiles.loading import load_profile
from exitbench.profiles.nvml import open_nvml
from fake_machine import RANGE_UJ, Card, Clock, Load, Powercap, Rails, Ticking, fake_nvml

WATTS = 50.0
SECONDS = 10.0
TX2 = load_profile("jetson-tx2")
INPUT = (("VDD_IN", "VDD_SYS_CPU", "VDD_SYS_DDR"), ("VDD_SYS_GPU", "NC", "VDD_4V0_WIFI"))

Outcome = Reading | Unavailable | list[Reading]


@dataclass
class Lab:
    """A machine with a clock of its own in a folder of its own."""

    root: Path
    clock: Clock = field(default_factory=Clock)

    # Meters that work

    def rapl(
        self, *, period_s: float = 0.001, offset: int = 0, range_uj: int = RANGE_UJ
    ) -> tuple[Meter, Ticking]:
        """RAPL on one package of 50 W; the counter's own time starts at 100 s."""
        cap = Powercap(self.root)
        cap.zone("intel-rapl:0", "package-0", range_uj=range_uj)
        load = Load((0, WATTS))
        ticking = Ticking(self.clock, load, period_s, 1e-6, range_uj, offset)
        cap.drive(self.clock, ("intel-rapl:0", ticking))
        return _usable(find_rapl(self.root, clock=self.clock, sleep=self.clock.sleep)), ticking

    def card(self, card: Card, period_s: float = 0.02, read_s: float = 0.0) -> Meter:
        """NVML on one card of 50 W."""
        card.counter = Ticking(self.clock, Load((0, WATTS)), period_s, 1e-3, read_s=read_s)
        opened = open_nvml(fake_nvml(card))
        found = find_nvidia(opened, 0, {}, clock=self.clock, sleep=self.clock.sleep)
        return _usable(found)

    def rails(self, old: bool = False) -> tuple[Ina3221Meter, Rails]:
        """The sensors of a TX2, read by the fake clock instead of a thread."""
        rails = Rails(self.root, INPUT, old)
        rails.set_w("VDD_IN", WATTS)
        meter = find_ina3221(TX2, self.root, clock=self.clock, threaded=False)
        assert isinstance(meter, Ina3221Meter), meter
        self.clock.every(meter.update_period_s, meter.sampler.sample)
        return meter, rails

    # Windows

    def work(
        self, meter: Meter, within: Callable[[], None] = lambda: None, seconds: float = SECONDS
    ) -> Reading:
        """A window in whose middle something happens."""
        window = meter.open()
        self.clock.sleep(seconds / 2)
        within()
        self.clock.sleep(seconds / 2)
        return window.close()

    @property
    def counter_file(self) -> Path:
        return self.root / "sys/class/powercap/intel-rapl:0/energy_uj"


def _usable(found: Meter | Unavailable) -> Meter:
    assert not isinstance(found, Unavailable), found
    return found


@pytest.fixture
def lab() -> Iterator[Lab]:
    """In a folder that any user may enter, because some faults are those of another user."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield Lab(folder)
    for path in folder.rglob("*"):
        path.chmod(0o755)
    shutil.rmtree(folder)


def as_nobody(ask: Callable[[], Outcome]) -> Outcome:
    """Asked without root's rights; root may read anything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        return ask()
    finally:
        if user == 0:
            os.seteuid(user)


# Faults of RAPL


def rapl_denied(lab: Lab) -> Outcome:
    cap = Powercap(lab.root)
    (cap.zone("intel-rapl:0", "package-0") / "energy_uj").chmod(0)
    return as_nobody(lambda: find_rapl(lab.root))


def rapl_vanishes(lab: Lab) -> Outcome:
    meter, _ = lab.rapl()
    return lab.work(meter, lab.counter_file.unlink)


def rapl_becomes_unreadable(lab: Lab) -> Outcome:
    meter, _ = lab.rapl()

    def hide() -> None:
        lab.clock.on_tick = lambda: None
        lab.counter_file.write_text("<hidden>")

    return lab.work(meter, hide)


def rapl_stops(lab: Lab) -> Outcome:
    meter, ticking = lab.rapl()

    def stop() -> None:
        ticking.stuck_s = lab.clock.now_s

    return lab.work(meter, stop)


def rapl_stopped_before(lab: Lab) -> Outcome:
    meter, ticking = lab.rapl()
    ticking.stuck_s = lab.clock.now_s
    return lab.work(meter)


def rapl_is_reset(lab: Lab) -> Outcome:
    meter, ticking = lab.rapl(offset=9_000_000_000)

    def reset() -> None:
        ticking.reset_s = lab.clock.now_s

    return lab.work(meter, reset)


def rapl_wraps_once(lab: Lab) -> Outcome:
    # It stands at 100 s x 50 W when the clock starts, and at 5 kJ + the offset.
    meter, _ = lab.rapl(offset=RANGE_UJ - 5_300_000_000)
    return lab.work(meter)


def rapl_wraps_at_the_read(lab: Lab) -> Outcome:
    # Twenty seconds after the clock's start it has just come to the end of its range.
    closing_s = 120.0
    meter, ticking = lab.rapl(offset=RANGE_UJ - round(WATTS * closing_s * 1e6))
    window = meter.open()
    lab.clock.sleep(closing_s - lab.clock.now_s)
    assert ticking() == 0
    return window.close()


def rapl_wraps_often(lab: Lab) -> Outcome:
    meter, _ = lab.rapl(range_uj=3_000_000_000)
    window = meter.open()
    for _ in range(100):
        lab.clock.sleep(2.5)
        meter.refresh()  # type: ignore[attr-defined]
    return window.close()


def rapl_unread_for_too_long(lab: Lab) -> Outcome:
    meter, _ = lab.rapl(range_uj=3_000_000_000)
    return lab.work(meter, seconds=100.0)


def period(period_s: float) -> Callable[[Lab], Outcome]:
    def run(lab: Lab) -> Outcome:
        meter, _ = lab.rapl(period_s=period_s)
        assert meter.update_period_s == pytest.approx(period_s, rel=0.02)
        return lab.work(meter, seconds=max(SECONDS, 60 * period_s))

    return run


def window_below_the_period(lab: Lab) -> Outcome:
    meter, _ = lab.rapl(period_s=0.1)
    return lab.work(meter, seconds=0.05)


def two_windows_at_once(lab: Lab) -> Outcome:
    meter, _ = lab.rapl()
    first = meter.open()
    lab.clock.sleep(SECONDS)
    second = meter.open()
    lab.clock.sleep(SECONDS)
    readings = [first.close()]
    lab.clock.sleep(SECONDS)
    return [*readings, second.close()]


def two_windows_in_two_threads(lab: Lab) -> Outcome:
    meter, _ = lab.rapl()
    readings: list[Reading] = []
    # The fake clock is one for both threads, so they take turns at it.
    turn = threading.Lock()

    def one() -> None:
        with turn:
            window = meter.open()
        with turn:
            lab.clock.sleep(SECONDS)
        with turn:
            readings.append(window.close())

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return readings


# Faults of NVML


def nvml(library: ModuleType, index: int = 0, **environ: str) -> Callable[[Lab], Outcome]:
    def run(lab: Lab) -> Outcome:
        opened = open_nvml(library)
        return find_nvidia(opened, index, environ, clock=lab.clock, sleep=lab.clock.sleep)  # type: ignore[return-value]

    return run


def nvml_absent(lab: Lab) -> Outcome:
    saved = sys.modules.get("pynvml")
    sys.modules["pynvml"] = None  # type: ignore[assignment]
    try:
        found = find_nvidia(open_nvml(), 0, {})
    finally:
        del sys.modules["pynvml"]
        if saved is not None:
            sys.modules["pynvml"] = saved
    assert isinstance(found, Unavailable)
    return found


def uuid_list(lab: Lab) -> Outcome:
    cards = [Card(uuid="GPU-aa"), Card(uuid="GPU-bb")]
    for card, watts in zip(cards, (10 * WATTS, WATTS), strict=True):
        card.counter = Ticking(lab.clock, Load((0, watts)), 0.02, 1e-3)
    environ = {"CUDA_VISIBLE_DEVICES": "GPU-bb,GPU-aa"}
    opened = open_nvml(fake_nvml(*cards))
    return lab.work(
        _usable(find_nvidia(opened, 0, environ, clock=lab.clock, sleep=lab.clock.sleep))
    )


def card_lost(lab: Lab) -> Outcome:
    card = Card()
    meter = lab.card(card)
    return lab.work(meter, lambda: setattr(card, "lost", True))


def card_counts_backwards(lab: Lab) -> Outcome:
    card = Card()
    meter = lab.card(card)
    counter = card.counter
    assert isinstance(counter, Ticking)
    return lab.work(meter, lambda: setattr(counter, "reset_s", lab.clock.now_s))


def card_throttled(lab: Lab) -> Outcome:
    return lab.work(lab.card(Card(reasons=0x80)))


def card_shared(lab: Lab) -> Outcome:
    return lab.work(lab.card(Card(others=(4_000_001,))))


def card_read_takes_long(lab: Lab) -> Outcome:
    card = Card()
    meter = lab.card(card, period_s=0.1)
    quick = lab.work(meter)
    slow = lab.work(meter, lambda: setattr(card.counter, "read_s", 0.5))
    # What the card drew while its counter was read, beyond the update that is never known.
    assert quick.uncertainty_j["gpu"] < 1.1 * WATTS * 0.1
    assert 0.5 * WATTS < slow.uncertainty_j["gpu"] < 2 * WATTS
    return slow


def card_reads_all_take_long(lab: Lab) -> Outcome:
    meter = lab.card(Card(), period_s=0.1, read_s=0.5)
    # A counter that can be read once a second counts as one that updates so.
    assert meter.update_period_s == pytest.approx(1.0, rel=0.1)
    return lab.work(meter, seconds=1000)


# Faults of module sensors


def rails_unknown(lab: Lab) -> Outcome:
    Rails(lab.root, (("RAIL_A", "RAIL_B"),))
    found = find_ina3221(None, lab.root)
    assert isinstance(found, Unavailable)
    return found


def rails_of_another_board(lab: Lab) -> Outcome:
    Rails(lab.root, (("GPU", "CPU", "SOC"),))
    found = find_ina3221(TX2, lab.root)
    assert isinstance(found, Unavailable)
    return found


def rails_root_only(lab: Lab) -> Outcome:
    rails = Rails(lab.root, INPUT)
    for path in rails.files("VDD_IN"):
        path.chmod(0)
        path.with_name("in1_label").chmod(0)
    found = as_nobody(lambda: find_ina3221(TX2, lab.root))  # type: ignore[arg-type,return-value]
    assert isinstance(found, Unavailable)
    return found


def rails_currents_root_only(lab: Lab) -> Outcome:
    rails = Rails(lab.root, INPUT)
    rails.files("VDD_SYS_GPU")[1].chmod(0)
    found = as_nobody(lambda: find_ina3221(TX2, lab.root))  # type: ignore[arg-type,return-value]
    assert isinstance(found, Unavailable)
    return found


def rails_vanish(lab: Lab) -> Outcome:
    meter, rails = lab.rails()
    return lab.work(meter, rails.files("VDD_IN")[0].unlink)


def rails_old_driver(lab: Lab) -> Outcome:
    meter, _ = lab.rails(old=True)
    return lab.work(meter)


# Faults of external meters


def external(command: str, unit: str = "watts") -> Callable[[Lab], Outcome]:
    def run(lab: Lab) -> Outcome:
        command_here = command.replace("ROOT", str(lab.root))
        found = find_external(command_here, unit, clock=lab.clock, sleep=lab.clock.sleep, limit_s=3)  # type: ignore[arg-type]
        assert isinstance(found, Unavailable), found
        return found

    return run


def external_hangs(lab: Lab) -> Outcome:
    found = find_external(f"{sys.executable} -c 'import time; time.sleep(60)'", limit_s=0.3)
    assert isinstance(found, Unavailable)
    return found


def external_file_with(text: str, unit: str = "watts") -> Callable[[Lab], Outcome]:
    def run(lab: Lab) -> Outcome:
        (lab.root / "meter").write_text(text)
        return external("file:ROOT/meter", unit)(lab)

    return run


def external_fails_mid_window(lab: Lab) -> Outcome:
    path = lab.root / "meter"
    path.write_text(f"{WATTS}\n")
    meter = _usable(
        find_external(
            f"file:{path}", "watts", clock=lab.clock, sleep=lab.clock.sleep, threaded=False
        )
    )
    sampler = meter._instrument  # type: ignore[attr-defined]
    assert isinstance(sampler, Sampler)
    lab.clock.every(sampler.period_s, sampler.sample)
    return lab.work(meter, lambda: path.write_text("offline\n") and None, seconds=100)


def external_counts_down(lab: Lab) -> Outcome:
    path = lab.root / "meter"
    shown: list[float] = []

    def update() -> None:
        left = 1e6 - lab.clock.now_s // 0.1
        if shown != [left]:
            path.write_text(f"{left:.0f}")
            shown[:] = [left]

    lab.clock.on_tick = update
    update()
    return external(f"file:{path}", "joules")(lab)


@dataclass(frozen=True)
class Fault:
    """What happens, and what is said of it.

    Attributes:
        outcome: ``unavailable``; ``unresolved``; ``uncertain``, right as far as is stated; or the
            watts that the window must still show.
        words: in the reason and remedy, the note, or the flags.
    """

    run: Callable[[Lab], Outcome]
    outcome: str | float
    words: str = ""


RAPL_REMEDY = "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj (holds until"
RAILS_REMEDY = "sudo chmod a+r /sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in*_label"
TWO_KINDS = fake_nvml(Card(name="NVIDIA A100"), Card(uuid="GPU-b", name="NVIDIA H200"))

FAULTS: dict[str, Fault] = {
    "RAPL: permission denied": Fault(rapl_denied, "unavailable", RAPL_REMEDY),
    "RAPL: file vanishes": Fault(rapl_vanishes, "unresolved", "No such file"),
    "RAPL: file holds no number": Fault(rapl_becomes_unreadable, "unresolved", "could not be read"),
    "RAPL: stuck from mid-window on": Fault(rapl_stops, "unresolved", "did not move"),
    "RAPL: stuck before the window": Fault(rapl_stopped_before, "unresolved", "did not move for"),
    "RAPL: reset": Fault(rapl_is_reset, "unresolved", "went backwards: it has been reset"),
    "RAPL: wraps once": Fault(rapl_wraps_once, WATTS),
    "RAPL: wraps exactly at the read": Fault(rapl_wraps_at_the_read, WATTS),
    "RAPL: wraps many times": Fault(rapl_wraps_often, WATTS),
    "RAPL: unread for longer than a wrap": Fault(
        rapl_unread_for_too_long, "unresolved", "may have wrapped"
    ),
    "period of 1 ms": Fault(period(0.001), WATTS),
    "period of 100 ms": Fault(period(0.1), WATTS),
    "period of 1 s": Fault(period(1.0), WATTS),
    "window shorter than the period": Fault(window_below_the_period, "unresolved", "too short"),
    "two windows at once": Fault(two_windows_at_once, WATTS),
    "two windows in two threads": Fault(two_windows_in_two_threads, WATTS),
    "NVML: package missing": Fault(nvml_absent, "unavailable", "pip install nvidia-ml-py"),
    "NVML: no driver": Fault(nvml(fake_nvml(driver=False)), "unavailable", "Driver Not Loaded"),
    "NVML: another package of that name": Fault(
        nvml(ModuleType("pynvml")), "unavailable", "not NVIDIA's nvidia-ml-py"
    ),
    "NVML: too old": Fault(
        nvml(fake_nvml(Card(), without=("nvmlDeviceGetTotalEnergyConsumption",))),
        "unavailable",
        "pip install --upgrade nvidia-ml-py",
    ),
    "NVML: card without a counter": Fault(
        nvml(fake_nvml(Card(energy_mj=None))), "unavailable", "has no energy counter: Not Supported"
    ),
    "NVML: MIG": Fault(nvml(fake_nvml(Card(mig=True))), "unavailable", "MIG slices"),
    "NVML: MIG slice in the list": Fault(
        nvml(fake_nvml(Card()), CUDA_VISIBLE_DEVICES="MIG-1"), "unavailable", "MIG slices"
    ),
    "NVML: list of UUIDs": Fault(uuid_list, WATTS),
    "NVML: unknown UUID": Fault(
        nvml(fake_nvml(Card()), CUDA_VISIBLE_DEVICES="GPU-zz"), "unavailable", "no GPU that NVML"
    ),
    "NVML: two cards of different kinds": Fault(
        nvml(TWO_KINDS), "unavailable", "export CUDA_DEVICE_ORDER=PCI_BUS_ID"
    ),
    "NVML: card lost": Fault(card_lost, "unresolved", "GPU is lost"),
    "NVML: driver loaded anew": Fault(card_counts_backwards, "unresolved", "the driver was loaded"),
    "NVML: throttled": Fault(card_throttled, WATTS, "throttled (hardware power brake)"),
    "NVML: shared": Fault(card_shared, WATTS, "was shared"),
    "NVML: one read takes 500 ms": Fault(card_read_takes_long, "uncertain"),
    "NVML: every read takes 500 ms": Fault(card_reads_all_take_long, WATTS),
    "INA3221: unknown rails": Fault(rails_unknown, "unavailable", "is not guessed"),
    "INA3221: rails of another board": Fault(
        rails_of_another_board, "unavailable", "names VDD_IN, which this board has not"
    ),
    "INA3221: for root only": Fault(rails_root_only, "unavailable", RAILS_REMEDY),
    "INA3221: currents for root only": Fault(rails_currents_root_only, "unavailable", RAILS_REMEDY),
    "INA3221: file vanishes": Fault(rails_vanish, "unresolved", "No such file"),
    "INA3221: driver of JetPack 4": Fault(rails_old_driver, WATTS),
    "external: no such program": Fault(
        external("exitbench-no-such-program"), "unavailable", "cannot be started"
    ),
    "external: fails": Fault(
        external("sh -c 'echo no port >&2; exit 3'"), "unavailable", "exit status 3: no port"
    ),
    "external: hangs": Fault(external_hangs, "unavailable", "did not answer within 0.3 s"),
    "external: rubbish": Fault(external("echo 12 W"), "unavailable", "'12 W', which is not one"),
    "external: two numbers": Fault(external("echo 1 2"), "unavailable", "which is not one number"),
    "external: not a number": Fault(external("echo nan"), "unavailable", "no finite number"),
    "external: nothing": Fault(external("true"), "unavailable", "''"),
    "external: unbalanced quotes": Fault(external("echo 'a"), "unavailable", "cannot be split"),
    "external: no file": Fault(external("file:ROOT/no"), "unavailable", "cannot be read"),
    "external: negative watts": Fault(external_file_with("-3"), "unavailable", "0 or more"),
    "external: joules stand still": Fault(
        external_file_with("5", "joules"), "unavailable", "does not move"
    ),
    "external: joules count down": Fault(
        external_counts_down, "unavailable", "use --external-unit watts"
    ),
    "external: fails mid-window": Fault(external_fails_mid_window, "unresolved", "'offline'"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_has_its_stated_outcome(name: str, lab: Lab) -> None:
    fault = FAULTS[name]
    found = fault.run(lab)
    for outcome in found if isinstance(found, list) else [found]:
        if isinstance(outcome, Unavailable):
            assert fault.outcome == "unavailable", outcome
            assert fault.words in outcome.words
            continue
        assert isinstance(outcome, Reading)
        joules = outcome.total_j
        if isinstance(fault.outcome, float):
            # Polling sees the ticks at both edges up to a twentieth of an update late.
            assert joules == pytest.approx(fault.outcome * outcome.seconds, rel=2e-3), outcome.note
            assert fault.words in "".join(outcome.flags)
        elif fault.outcome == "uncertain":
            assert outcome.total_uncertainty_j is not None
            assert joules == pytest.approx(WATTS * outcome.seconds, abs=outcome.total_uncertainty_j)
        else:
            assert (fault.outcome, joules) == ("unresolved", None)
            assert fault.words in outcome.note
            assert outcome.total_uncertainty_j is None
