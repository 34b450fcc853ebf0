"""A machine on which meters are made to fail: counters and sensors of a known load, and windows."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from exitbench.harness.meters.base import Meter, Reading, Unavailable
from exitbench.harness.meters.ina3221 import Ina3221Meter, find_ina3221
from exitbench.harness.meters.nvidia import find_nvidia
from exitbench.harness.meters.rapl import find_rapl
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
        return usable(find_rapl(self.root, clock=self.clock, sleep=self.clock.sleep)), ticking

    def card(self, card: Card, period_s: float = 0.02, read_s: float = 0.0) -> Meter:
        """NVML on one card of 50 W."""
        card.counter = Ticking(self.clock, Load((0, WATTS)), period_s, 1e-3, read_s=read_s)
        opened = open_nvml(fake_nvml(card))
        found = find_nvidia(opened, 0, {}, clock=self.clock, sleep=self.clock.sleep)
        return usable(found)

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


def usable(found: Meter | Unavailable) -> Meter:
    assert not isinstance(found, Unavailable), found
    return found


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
