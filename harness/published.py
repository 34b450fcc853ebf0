"""Published measurements that the clock model is tested against; nothing is fitted to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

A800_POWER_W: Mapping[float, float] = {
    210: 91.0, 270: 102.8, 345: 125.7, 420: 135.7, 480: 140.9, 555: 137.8, 630: 140.6, 690: 154.2,
    765: 174.6, 840: 183.7, 915: 193.6, 975: 201.8, 1050: 216.5, 1125: 225.4, 1185: 239.6,
    1260: 254.3, 1335: 294.5, 1410: 354.4,
}  # fmt: skip
"""Mean watts of the whole board by clock in MHz: A800-SXM4-80GB, saturated prefill of a language
model, NVML (a public measurement; its own cubic fit was off by 3.8% on average, 10% at worst)."""


@dataclass(frozen=True)
class NetworkRun:
    """One network at one setting.

    Attributes:
        latency_s: seconds per image.
        energy_j: joules per image, idle included.
    """

    latency_s: float
    energy_j: float

    @property
    def power_w(self) -> float:
        """Mean watts while it ran."""
        return self.energy_j / self.latency_s


@dataclass(frozen=True)
class Mode:
    """What was measured in one power mode, by the name of the network."""

    idle_w: float
    runs: Mapping[str, NetworkRun]


def _mode(
    idle_w: float,
    fcn: tuple[float, float],
    deeplab: tuple[float, float],
    raspp: tuple[float, float],
) -> Mode:
    named = {"fcn_resnet50": fcn, "deeplabv3_resnet101": deeplab, "lraspp_mobilenet": raspp}
    return Mode(
        idle_w, {name: NetworkRun(ms * 1e-3, joules) for name, (ms, joules) in named.items()}
    )


XAVIER_MODES: Mapping[str, Mode] = {
    "MODE_10W": _mode(5.75, (781.5, 6.69), (1754.6, 15.06), (45.6, 0.386)),
    "MODE_15W": _mode(5.95, (319.8, 4.69), (712.2, 10.15), (27.3, 0.313)),
    "MODE_30W_ALL": _mode(5.9, (242.0, 4.47), (535.9, 9.51), (22.1, 0.290)),
    "MAXN": _mode(8.3, (176.2, 5.75), (370.8, 12.18), (13.7, 0.33)),
}
"""AGX Xavier, PyTorch fp32, batch size 1, 512 x 384, L4T 35.5, sum of six rails at 20 Hz, three
repeats, default governor (a public measurement). Milliseconds and joules per image; where a range
was given (idle of 10W and 15W, MobileNet at MAXN), its middle."""
