"""Module energy of a Jetson from its INA3221 power sensors, sampled.

An INA3221 watches three supply rails. Two kernel drivers show them::

    /sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon2/       (JetPack 5 and newer)
        in1_label  in1_input (mV)  curr1_input (mA)         channels 1 to 3; 7 is a sum: left out
    /sys/bus/i2c/drivers/ina3221x/1-0040/iio:device0/       (JetPack 4)
        rail_name_0  in_power0_input (mW)                   channels 0 to 2

A rail whose label holds ``NC`` is not connected. The module is what its input rail carries, or the
rails that the hardware profile names; where there is no such rail, the sum of all rails, but only
where every one is known to be a part of the module: with an unknown rail the sum would be a guess.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...profiles.schema import Profile, Rails
from .base import Clock, Reading, Source, Unavailable, too_short
from .counters import Unreadable
from .sampled import Sampler, Watch

NAME = "INA3221 power sensors"
HWMON, IIO = "sys/bus/i2c/drivers/ina3221", "sys/bus/i2c/drivers/ina3221x"
ABSENT = "this machine has no INA3221 power sensors, as Jetson modules have"
INPUT_RAILS = ("VDD_IN", "POM_5V_IN")
"""Names of the one rail that feeds a module (jetson_stats, jtop/core/power.py)."""
PART_RAILS = frozenset({"GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"})
"""The six rails that together feed a Jetson AGX Xavier, which has no input rail."""
PERIOD_S = 0.05
"""20 Hz, as measurement campaigns on these boards use; a slower sensor is read at its own pace."""

MOST_SHARE = 0.01
"""Of the time that reading may take: a rail is two transfers over a slow bus."""

_PROOFS = 3  # reads of every rail; the quickest tells how long one takes
_SHUNT_STEP_V = 40e-6  # INA3221 data sheet: the least step of the shunt voltage
_SHUNT_OHM = 5e-3  # where the driver does not tell it: that of these modules
_SUPPLY_V = 5.0  # where the driver does not tell it


@dataclass(frozen=True)
class Rail:
    """One supply rail.

    Attributes:
        label: its name on the board.
        volts, amperes: files in mV and mA, of the newer driver.
        watts: file in mW, of the older one.
        shunt_ohm: the resistor whose voltage tells the current.
    """

    label: str
    volts: Path | None = None
    amperes: Path | None = None
    watts: Path | None = None
    shunt_ohm: float = _SHUNT_OHM

    def read(self) -> tuple[float, float]:
        """Watts now, and how far they may lie off for the steps of the sensor.

        Raises:
            Unreadable: a file cannot be read or holds no number.
        """
        step_a = _SHUNT_STEP_V / self.shunt_ohm
        try:
            if self.watts is not None:
                return _number(self.watts) * 1e-3, step_a * _SUPPLY_V / 2
            assert self.volts is not None
            assert self.amperes is not None
            volts = _number(self.volts) * 1e-3
            return volts * _number(self.amperes) * 1e-3, volts * step_a / 2
        except (OSError, ValueError) as error:
            raise Unreadable(f"rail {self.label} could not be read: {_reason(error)}") from error


class Ina3221Meter:
    """The power sensors of a module.

    Args:
        parts: rails whose sum is a domain, by domain; ``module`` is the first.
        total_words: what the module's energy is made of, in words.
        period_s: time between two samples.
        clock: a monotonic clock in seconds.
        threaded: sample in a thread; else only at the edges and when asked.
    """

    def __init__(
        self,
        parts: Mapping[str, Sequence[Rail]],
        total_words: str,
        period_s: float,
        clock: Clock,
        threaded: bool = True,
    ) -> None:
        self._parts = {domain: tuple(rails) for domain, rails in parts.items()}
        self._rails = tuple(dict.fromkeys(rail for rails in parts.values() for rail in rails))
        self._words = total_words
        self._resolution_w: dict[str, float] = {}
        self.sampler = Sampler(self._look, period_s, clock, threaded=threaded)

    @property
    def name(self) -> str:
        """The meter with the rails that make the module."""
        return f"{NAME} ({self._words})"

    @property
    def domains(self) -> tuple[str, ...]:
        """``module``, and the parts of it that have rails of their own."""
        return tuple(self._parts)

    @property
    def source(self) -> Source:
        """Always ``measured``."""
        return "measured"

    @property
    def update_period_s(self) -> float:
        """Time between two samples."""
        return self.sampler.period_s

    def open(self) -> Ina3221Window:
        """Start a window."""
        return Ina3221Window(self, self.sampler.watch())

    def _look(self) -> tuple[dict[str, float], dict[str, float]]:
        shown = {rail: rail.read() for rail in self._rails}
        watts = {d: sum(shown[rail][0] for rail in rails) for d, rails in self._parts.items()}
        for domain, rails in self._parts.items():
            step_w = sum(shown[rail][1] for rail in rails)
            self._resolution_w[domain] = max(step_w, self._resolution_w.get(domain, 0.0))
        return watts, {}

    def read(self, watch: Watch) -> Reading:
        """What a closed watch saw; called by the window."""
        watched = watch.close()
        note = too_short(watched.seconds, watched.period_s)
        if not note and watched.gap:
            note = f"{NAME}: {watched.gap}"
        joules: dict[str, float | None] = dict.fromkeys(self.domains)
        uncertainty: dict[str, float] = {}
        if not note:
            for domain in self.domains:
                joules[domain], uncertainty[domain] = watched.joules(
                    domain, resolution_w=self._resolution_w[domain]
                )
        return Reading(
            watched.seconds,
            joules,
            "measured",
            note,
            uncertainty_j=uncertainty,
            overhead_s=watch.overhead_s,
        )


@dataclass(frozen=True)
class Ina3221Window:
    """An open window of the power sensors."""

    meter: Ina3221Meter
    watch: Watch

    def stop(self) -> None:
        """Set the closing moment."""
        self.watch.stop()

    def close(self) -> Reading:
        """The energy since the window was opened."""
        return self.meter.read(self.watch)


def find_ina3221(
    profile: Profile | None,
    root: Path = Path("/"),
    *,
    clock: Clock = time.perf_counter,
    threaded: bool = True,
) -> Ina3221Meter | Unavailable:
    """The power sensors of this module, proven by reading every rail, or why there are none.

    Args:
        profile: says which rails make the module and its parts; None if none fits.
        root: where ``sys`` is found.
        clock: a monotonic clock in seconds.
        threaded: sample in a thread; else only at the edges and when asked.
    """
    try:
        rails = _rails(root)
        if not rails:
            return _unavailable(ABSENT)
        parts = _parts(rails, profile.rails if profile is not None else None)
        if isinstance(parts, Unavailable):
            return parts
        meter = Ina3221Meter(*parts, _period_s(root), clock, threaded)
        for _ in range(_PROOFS):
            meter.sampler.sample()
    except (OSError, ValueError) as error:
        return _denied(error, root)
    if meter.sampler.faults:
        (_, why), *_ = meter.sampler.faults
        return _unavailable(why, _remedy(root) if "Permission denied" in why else "")
    took_s = min(sample.end_s - sample.begin_s for sample in meter.sampler.samples)
    meter.sampler.period_s = max(meter.sampler.period_s, took_s / MOST_SHARE)
    return meter


def _parts(
    rails: Sequence[Rail], named: Rails | None
) -> tuple[dict[str, list[Rail]], str] | Unavailable:
    """The rails of every domain, and in words what makes the module."""
    by_label = {rail.label: rail for rail in rails}
    shown = ", ".join(sorted(by_label))
    wanted = named.total if named is not None else ()
    missing = [label for label in wanted if label not in by_label]
    if missing:
        return _unavailable(
            f"the profile's [rails] total names {', '.join(missing)}, which this board has not; "
            f"it has {shown}",
            "name this board's rails in [rails] of a hardware profile",
        )
    if wanted:
        total, words = list(wanted), f"rails {' + '.join(wanted)}"
    elif inputs := [label for label in INPUT_RAILS if label in by_label]:
        total, words = inputs[:1], f"input rail {inputs[0]}"
    elif set(by_label) <= PART_RAILS:
        total, words = list(by_label), f"no input rail: the sum of {' + '.join(by_label)}"
    else:
        return _unavailable(
            f"which of the rails {shown} make the module is not known, and is not guessed",
            "name them in [rails] of a hardware profile: total = [...]",
        )
    parts = {"module": [by_label[label] for label in total]}
    for domain in ("gpu", "cpu", "dram"):
        labels = getattr(named, domain, ())
        if labels and all(label in by_label for label in labels):
            parts[domain] = [by_label[label] for label in labels]
        elif labels:
            words += f"; no rail of its own for the {domain.upper()}: the board has not "
            words += ", ".join(label for label in labels if label not in by_label)
    return parts, words


def _rails(root: Path) -> list[Rail]:
    found = []
    for folder in sorted((root / HWMON).glob("*/hwmon/hwmon*")):
        for channel in (1, 2, 3):
            label = folder / f"in{channel}_label"
            if not label.exists() or _switched_off(folder / f"in{channel}_enable"):
                continue
            if "NC" not in (text := label.read_text().strip()):
                volts, amperes = (folder / f"{kind}{channel}_input" for kind in ("in", "curr"))
                found.append(Rail(text, volts, amperes, None, _shunt_ohm(folder, channel)))
    if found:
        return found
    for folder in sorted((root / IIO).glob("*/iio:device*")):
        for channel in (0, 1, 2):
            label = folder / f"rail_name_{channel}"
            if label.exists() and "NC" not in (text := label.read_text().strip()):
                found.append(Rail(text, watts=folder / f"in_power{channel}_input"))
    return found


def _switched_off(path: Path) -> bool:
    # Some kernels let only root read this, too; a rail that is off cannot be read, and says so.
    try:
        return path.read_text().strip() == "0"
    except OSError:
        return False


def _shunt_ohm(folder: Path, channel: int) -> float:
    try:
        return _number(folder / f"shunt{channel}_resistor") * 1e-6 or _SHUNT_OHM
    except (OSError, ValueError):
        return _SHUNT_OHM


def _period_s(root: Path) -> float:
    """The period of sampling: no shorter than the sensors' own."""
    own_s = [0.0]
    for path in (root / HWMON).glob("*/hwmon/hwmon*/update_interval"):
        try:
            own_s.append(_number(path) * 1e-3)
        except (OSError, ValueError):
            continue
    return max(PERIOD_S, *own_s)


def _number(path: Path) -> float:
    return float(path.read_text())


def _denied(error: OSError | ValueError, root: Path) -> Unavailable:
    if isinstance(error, PermissionError):
        return _unavailable(f"only root may read {error.filename}", _remedy(root))
    return _unavailable(f"the power sensors cannot be read: {_reason(error)}")


def _remedy(root: Path) -> str:
    if any((root / HWMON).glob("*/hwmon/hwmon*")):
        folder = f"/{HWMON}/*/hwmon/hwmon*"
        files = f"{folder}/in*_label {folder}/in*_input {folder}/curr*_input"
    else:
        files = f"/{IIO}/*/iio:device*/rail_name_* /{IIO}/*/iio:device*/in_power*_input"
    return f"sudo chmod a+r {files} (holds until the next boot)"


def _unavailable(reason: str, remedy: str = "") -> Unavailable:
    return Unavailable(NAME, ("module",), reason, remedy)


def _reason(error: OSError | ValueError) -> str:
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
