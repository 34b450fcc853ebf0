"""What the commands about devices can be told: ``hardware`` and ``doctor``; see ``configs.py``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .configs import DeviceConfig, MeteringConfig


@dataclass(frozen=True)
class HardwareListConfig:
    """List the hardware profiles that come with exitbench."""


@dataclass(frozen=True)
class HardwareShowConfig:
    """Show one hardware profile with the source of every figure."""

    name: str
    """Name of a shipped profile, or a TOML file."""


@dataclass(frozen=True)
class HardwareDetectConfig:
    """Show this machine: CPU, GPU, memory, usable meters and the profile that fits."""


@dataclass(frozen=True)
class HardwareCalibrateConfig:
    """Measure this machine and write a hardware profile of it."""

    write: Path
    """TOML file to write."""
    name: str | None = None
    """Name of the profile. None: the stem of the file."""
    seconds: float = 5.0
    """Time of each measurement in seconds."""
    metering: MeteringConfig = field(default_factory=MeteringConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)


@dataclass(frozen=True)
class HardwareRestoreConfig:
    """Put clocks back that a killed exitbench left changed, from its journal."""

    journal: Path | None = None
    """The journal. None: where exitbench writes it."""


@dataclass(frozen=True)
class DoctorConfig:
    """Say which meters and clocks work here, and the command that would mend the others."""

    seconds: float = 2.0
    """Time for which the noise floor of a meter is watched, in seconds."""
    hardware: str = "auto"
    """Hardware profile: auto, a shipped name, or a TOML file."""
    metering: MeteringConfig = field(default_factory=MeteringConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
