"""What the commands that run a network can be told about the machine; see ``configs.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Runtime = Literal["auto", "cudagraph", "onednn", "onednn-int8", "openvino", "eager"]
Ranges = Literal["min-max", "percentile"]
Tier = Literal["quick", "standard", "publish"]
ExternalUnit = Literal["watts", "joules"]
ExternalCovers = Literal["board", "module", "gpu", "cpu"]


@dataclass(frozen=True)
class DeviceConfig:
    """Where and how the network runs."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    threads: int = 0
    """CPU threads of the network; 0 takes the number of physical cores this process may use."""
    runtime: Runtime = "auto"
    (
        "What runs the prepared network. auto: the fastest here, or what the run directory was "
        "traced with. onednn stands for onednn-int8 too; openvino is an optional package."
    )
    ranges: Ranges | None = None
    (
        "How int8 takes the ranges of activations from calibration images: their extremes, or the "
        "99.99 percentile. None: min-max, or what the run directory was traced with."
    )


@dataclass(frozen=True)
class MeteringConfig:
    """How energy is measured."""

    tier: Tier = "quick"
    (
        "quick: 5 s of every unit in 5 windows; standard: 30 s and until the 95% interval is "
        "within 2%; publish: 600 s, idle before and after. Every window spans 50 updates of its "
        "counter. Modelled energy needs no windows."
    )
    external: str | None = None
    (
        "A meter of your own: a command that prints one number, or file:PATH that holds one. None: "
        "none."
    )
    external_unit: ExternalUnit = "watts"
    """What it prints: watts of now, or joules counted up."""
    external_covers: ExternalCovers = "board"
    """What it measures: board is everything behind one plug."""
