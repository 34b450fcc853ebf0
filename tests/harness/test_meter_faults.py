"""What goes wrong at a meter, and what is then said: one row per fault, with its outcome."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import counter_faults as counters
import pytest
from exitbench.harness.meters.base import Reading, Unavailable
from exitbench.harness.meters.external import find_external
from exitbench.harness.meters.ina3221 import find_ina3221
from exitbench.harness.meters.sampled import Sampler
from fake_machine import Card, Rails, fake_nvml
from meter_lab import INPUT, TX2, WATTS, Lab, Outcome, as_nobody, usable


@pytest.fixture
def lab() -> Iterator[Lab]:
    """In a folder that any user may enter, because some faults are those of another user."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield Lab(folder)
    for path in folder.rglob("*"):
        path.chmod(0o755)
    shutil.rmtree(folder)


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
    meter = usable(
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
    "RAPL: permission denied": Fault(counters.rapl_denied, "unavailable", RAPL_REMEDY),
    "RAPL: file vanishes": Fault(counters.rapl_vanishes, "unresolved", "No such file"),
    "RAPL: file holds no number": Fault(
        counters.rapl_becomes_unreadable, "unresolved", "could not be read"
    ),
    "RAPL: stuck from mid-window on": Fault(counters.rapl_stops, "unresolved", "did not move"),
    "RAPL: stuck before the window": Fault(
        counters.rapl_stopped_before, "unresolved", "did not move for"
    ),
    "RAPL: reset": Fault(counters.rapl_is_reset, "unresolved", "went backwards: it has been reset"),
    "RAPL: wraps once": Fault(counters.rapl_wraps_once, WATTS),
    "RAPL: wraps exactly at the read": Fault(counters.rapl_wraps_at_the_read, WATTS),
    "RAPL: wraps many times": Fault(counters.rapl_wraps_often, WATTS),
    "RAPL: unread for longer than a wrap": Fault(
        counters.rapl_unread_for_too_long, "unresolved", "may have wrapped"
    ),
    "period of 1 ms": Fault(counters.period(0.001), WATTS),
    "period of 100 ms": Fault(counters.period(0.1), WATTS),
    "period of 1 s": Fault(counters.period(1.0), WATTS),
    "window shorter than the period": Fault(
        counters.window_below_the_period, "unresolved", "too short"
    ),
    "two windows at once": Fault(counters.two_windows_at_once, WATTS),
    "two windows in two threads": Fault(counters.two_windows_in_two_threads, WATTS),
    "NVML: package missing": Fault(counters.nvml_absent, "unavailable", "pip install nvidia-ml-py"),
    "NVML: no driver": Fault(
        counters.nvml(fake_nvml(driver=False)), "unavailable", "Driver Not Loaded"
    ),
    "NVML: another package of that name": Fault(
        counters.nvml(ModuleType("pynvml")), "unavailable", "not NVIDIA's nvidia-ml-py"
    ),
    "NVML: too old": Fault(
        counters.nvml(fake_nvml(Card(), without=("nvmlDeviceGetTotalEnergyConsumption",))),
        "unavailable",
        "pip install --upgrade nvidia-ml-py",
    ),
    "NVML: card without a counter": Fault(
        counters.nvml(fake_nvml(Card(energy_mj=None))),
        "unavailable",
        "has no energy counter: Not Supported",
    ),
    "NVML: MIG": Fault(counters.nvml(fake_nvml(Card(mig=True))), "unavailable", "MIG slices"),
    "NVML: MIG slice in the list": Fault(
        counters.nvml(fake_nvml(Card()), CUDA_VISIBLE_DEVICES="MIG-1"), "unavailable", "MIG slices"
    ),
    "NVML: list of UUIDs": Fault(counters.uuid_list, WATTS),
    "NVML: unknown UUID": Fault(
        counters.nvml(fake_nvml(Card()), CUDA_VISIBLE_DEVICES="GPU-zz"),
        "unavailable",
        "no GPU that NVML",
    ),
    "NVML: two cards of different kinds": Fault(
        counters.nvml(TWO_KINDS), "unavailable", "export CUDA_DEVICE_ORDER=PCI_BUS_ID"
    ),
    "NVML: card lost": Fault(counters.card_lost, "unresolved", "GPU is lost"),
    "NVML: driver loaded anew": Fault(
        counters.card_counts_backwards, "unresolved", "the driver was loaded"
    ),
    "NVML: throttled": Fault(counters.card_throttled, WATTS, "throttled (hardware power brake)"),
    "NVML: shared": Fault(counters.card_shared, WATTS, "was shared"),
    "NVML: one read takes 500 ms": Fault(counters.card_read_takes_long, "uncertain"),
    "NVML: every read takes 500 ms": Fault(counters.card_reads_all_take_long, WATTS),
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
