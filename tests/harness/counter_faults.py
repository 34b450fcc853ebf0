"""Faults of counters, RAPL's and NVML's: each makes one happen and gives what the meter says."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import ModuleType

import pytest
from exitbench.harness.meters.base import Reading, Unavailable
from exitbench.harness.meters.nvidia import find_nvidia
from exitbench.harness.meters.rapl import find_rapl
from exitbench.profiles.nvml import open_nvml
from fake_machine import RANGE_UJ, Card, Load, Powercap, Ticking, fake_nvml
from meter_lab import SECONDS, WATTS, Lab, Outcome, as_nobody, usable

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
    return lab.work(usable(find_nvidia(opened, 0, environ, clock=lab.clock, sleep=lab.clock.sleep)))


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
