"""The meter of a run: those of the machine, and one of the user's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ..profiles.schema import Profile
from .configs import MeteringConfig
from .errors import ExitbenchError
from .meters.base import Clock, Unavailable
from .meters.choose import ChosenMeter, choose_meter, torch_uuid
from .meters.external import ExternalMeter, find_external


def open_meter(
    device: str,
    profile: Profile | None,
    metering: MeteringConfig,
    *,
    threads: int | None = None,
    root: Path = Path("/"),
    nvml: ModuleType | None = None,
    environ: Mapping[str, str] | None = None,
    cuda_uuid: Callable[[int], str | None] = torch_uuid,
    clock: Clock = time.perf_counter,
    insist: bool = True,
) -> ChosenMeter:
    """The meters of a run on ``device`` as one, the user's own (``--external``) among them.

    Args:
        device: as torch writes it: ``cpu``, ``cuda`` or ``cuda:N``.
        profile: the hardware profile that prices what cannot be measured; None if none fits.
        metering: says whether there is an external meter.
        threads: CPU threads of the network, by which modelled CPU power is scaled.
        root, nvml, environ, cuda_uuid, clock: as those of ``choose_meter``.
        insist: refuse an external meter that does not work; else it is told and the others serve.

    Raises:
        ExitbenchError: the device is of no known kind; the external meter does not work.
    """
    external = external_meter(metering, clock=clock)
    if insist and isinstance(external, Unavailable):
        # Who named an instrument wants its joules, and hears of a slip before an hour's work.
        raise ExitbenchError(
            f"--external: {external.reason}. Mend it: {external.remedy}; 'exitbench doctor' with "
            "the same options tries it. Without --external the machine's own meters serve."
        )
    return choose_meter(
        device,
        profile,
        threads=threads,
        external=external,
        root=root,
        nvml=nvml,
        environ=environ,
        cuda_uuid=cuda_uuid,
        clock=clock,
    )


def external_meter(
    metering: MeteringConfig, *, clock: Clock = time.perf_counter
) -> ExternalMeter | Unavailable | None:
    """The user's own meter, or why it cannot be used; None where there is none."""
    if metering.external is None:
        return None
    return find_external(
        metering.external, metering.external_unit, metering.external_covers, clock=clock
    )


def meter_facts(meter: ChosenMeter) -> list[dict[str, Any]]:
    """Every meter of a run as plain values for the manifest."""
    return [
        {
            "name": each.name,
            "domains": list(each.domains),
            "source": each.source,
            "update_period_s": each.update_period_s,
        }
        for each in meter.meters
    ]
