"""``exitbench hardware restore``: clocks that a killed exitbench left changed are put back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ..configs_device import HardwareRestoreConfig
from . import cores, cpufreq, devfreq, nvml
from .base import Actuator, ClockError
from .journal import (
    Lock,
    Record,
    damaged,
    is_there,
    journal_path,
    read_journal,
    remove_journal,
)

Say = Callable[[str], None]
_Rebuild = Callable[[Mapping[str, Any], ModuleType | None], Actuator]


def run_hardware_restore(
    config: HardwareRestoreConfig,
    say: Say,
    *,
    root: Path = Path("/"),
    nvml: ModuleType | None = None,
) -> None:
    """Put back what the journal says was changed, and say so; nothing to put back is fine, too.

    Args:
        config: which journal.
        say: takes one line.
        root: where ``proc`` is found.
        nvml: what answers as ``pynvml``; the installed one if None.

    Raises:
        ClockError: a live process still governs the clocks, the journal is damaged, or some
            clocks could not be put back; the others were.
    """
    journal = journal_path() if config.journal is None else config.journal
    if not is_there(journal):
        say(f"nothing to put back: there is no journal {journal}")
        _hint_at_roots(journal, say)
        return
    lock = Lock(journal)
    lock.take()
    try:
        record = read_journal(journal)
        if record is None:
            say(f"nothing to put back: there is no journal {journal}")
        elif not record.of_this_boot(root):
            say(
                f"nothing to put back: the machine was started anew after {record.time}, the time "
                "of the journal, and that puts clocks back; the journal is removed"
            )
            remove_journal(journal)
        else:
            _put_back(record, journal, say, nvml)
    finally:
        lock.give_back()


def _put_back(record: Record, journal: Path, say: Say, nvml: ModuleType | None) -> None:
    say(f"process {record.pid} has left clocks changed ({record.time})")
    failures = []
    for entry in record.entries:
        try:
            rebuild(entry.snapshot, journal, nvml).restore(entry.snapshot)
        except ClockError as error:
            failures.append(f"{entry.name}: {error}")
        else:
            say(f"  {entry.name}: put back")
    if failures:
        raise ClockError(
            f"not all clocks could be put back: {'; '.join(failures)}. The journal {journal} is "
            "kept; run the command again once this is mended, or start the machine anew"
        )
    remove_journal(journal)


def rebuild(snapshot: Mapping[str, Any], journal: Path, nvml: ModuleType | None = None) -> Actuator:
    """The actuator that a snapshot in a journal is of.

    Raises:
        ClockError: the snapshot is damaged, or the device is gone.
    """
    kind = str(snapshot.get("kind"))
    if kind not in _KINDS:
        raise damaged(journal, f"kind is {kind}, allowed: {', '.join(_KINDS)}")
    build, fits = _KINDS[kind]
    if not fits(snapshot):
        raise damaged(journal, f"the values of {kind} are of the wrong kind")
    return build(snapshot, nvml)


def _hint_at_roots(journal: Path, say: Say) -> None:
    roots = journal_path(root=True)
    if journal != roots and is_there(roots):
        say(f"root has one, {roots}: run the command as root to put back what it says")


def _cpufreq(snapshot: Mapping[str, Any], nvml: ModuleType | None) -> Actuator:
    del nvml
    policies = tuple(cpufreq.Policy(Path(folder)) for folder in snapshot["policies"])
    return cpufreq.CpufreqActuator(policies)


def _devfreq(snapshot: Mapping[str, Any], nvml: ModuleType | None) -> Actuator:
    del nvml
    domain = snapshot["domain"]
    return devfreq.DevfreqActuator(Path(snapshot["folder"]), domain, devfreq.SETTLE_S[domain])


def _emc(snapshot: Mapping[str, Any], nvml: ModuleType | None) -> Actuator:
    del nvml
    return devfreq.EmcActuator(Path(snapshot["folder"]))


def _cores(snapshot: Mapping[str, Any], nvml: ModuleType | None) -> Actuator:
    del nvml
    return cores.CoresActuator(Path(snapshot["folder"]))


def _card(snapshot: Mapping[str, Any], library: ModuleType | None) -> Actuator:
    return nvml.card_by_uuid(snapshot["domain"], snapshot["uuid"], library)


def _fits_cpufreq(snapshot: Mapping[str, Any]) -> bool:
    policies = snapshot.get("policies")
    return isinstance(policies, dict) and all(
        isinstance(was, dict)
        and _whole(was, "min", "max")
        and isinstance(was.get("governor"), str | None)
        for was in policies.values()
    )


def _fits_cores(snapshot: Mapping[str, Any]) -> bool:
    online = snapshot.get("online")
    return (
        isinstance(snapshot.get("folder"), str)
        and isinstance(online, dict)
        and all(cpu.isdigit() and isinstance(on, bool) for cpu, on in online.items())
    )


def _fits_devfreq(snapshot: Mapping[str, Any]) -> bool:
    known = snapshot.get("domain") in devfreq.SETTLE_S
    return known and isinstance(snapshot.get("folder"), str) and _whole(snapshot, "min", "max")


def _fits_emc(snapshot: Mapping[str, Any]) -> bool:
    return isinstance(snapshot.get("folder"), str) and _whole(snapshot, "locked", "rate")


def _fits_card(snapshot: Mapping[str, Any]) -> bool:
    return snapshot.get("domain") in devfreq.SETTLE_S and isinstance(snapshot.get("uuid"), str)


def _whole(values: Mapping[str, Any], *keys: str) -> bool:
    return all(isinstance(values.get(key), int) for key in keys)


_KINDS: Mapping[str, tuple[_Rebuild, Callable[[Mapping[str, Any]], bool]]] = {
    cpufreq.KIND: (_cpufreq, _fits_cpufreq),
    devfreq.KIND: (_devfreq, _fits_devfreq),
    devfreq.EMC_KIND: (_emc, _fits_emc),
    cores.KIND: (_cores, _fits_cores),
    nvml.KIND: (_card, _fits_card),
}
