"""What the values of a configuration may be, beyond their types: checked once, at the boundary.

A field has the same meaning and hence the same limits in every command, so they are kept by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from .configs import (
    DemoConfig,
    DeviceConfig,
    GovernConfig,
    ProfileConfig,
    RunConfig,
    StudyConfig,
    SubsetConfig,
    TraceConfig,
    TrainConfig,
)

_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _not_negative(value: float) -> bool:
    return math.isfinite(value) and value >= 0


def _at_least_one(value: int) -> bool:
    return value >= 1


def _each_at_least_one(values: tuple[int, ...]) -> bool:
    return bool(values) and all(value >= 1 for value in values)


def _rising_from_one(values: tuple[int, ...]) -> bool:
    return all(a < b for a, b in zip((0, *values), values, strict=False))


def _beta(values: Any) -> bool:
    if not isinstance(values, tuple):
        return _positive(values)
    if values == ("auto",):
        return True
    try:
        return bool(values) and all(_positive(float(value)) for value in values)
    except ValueError:
        return False


def _kernel(values: tuple[float, ...]) -> bool:
    return len(values) % 2 == 1 and all(math.isfinite(value) for value in values)


_Rule = tuple[Callable[[Any], bool], str]
_COUNT: _Rule = (_at_least_one, "a whole number from 1")
_COUNTS: _Rule = (_each_at_least_one, "at least one whole number, each from 1")
_SEED: _Rule = (lambda value: 0 <= value < 2**32, "a whole number from 0 to 4294967295")
_ABOVE_ZERO: _Rule = (_positive, "a finite number above 0")
_SECONDS: _Rule = (_not_negative, "a finite number of seconds from 0")
_DAY_MS = 86_400_000.0  # idle until a later deadline would drown, or overflow, all else
_CHOICES: _Rule = (
    lambda values: 0 < len(values) == len(set(values)),
    "at least one choice, none of them twice",
)

RULES: dict[str, _Rule] = {
    "accuracy_loss": (lambda value: 0 <= value < 100, "percentage points from 0, below 100"),
    "baseline_time": _SECONDS,
    "batch_size": _COUNT,
    "batch_sizes": _COUNTS,
    "beta": (_beta, "auto alone, or finite numbers above 0"),
    "beta_count": (lambda value: value >= 2, "a whole number from 2"),
    "calibration_samples": _COUNT,
    "criteria": _CHOICES,
    "core_num": _COUNT,
    "cpu_freq_level": _COUNT,
    "deadline_ms": (lambda value: 0 < value <= _DAY_MS, "a number above 0, up to a day in ms"),
    "device": (lambda value: bool(_DEVICE.fullmatch(value)), "auto, cpu, cuda or cuda:N"),
    "energy_seconds": _ABOVE_ZERO,
    "epochs": _COUNT,
    "exit": _COUNT,
    "exits": (_rising_from_one, "rising numbers from 1, such as 2 5 9"),
    "governors": _CHOICES,
    "gpu_freq_level": _COUNT,
    "horizon": _COUNT,
    "interval": (lambda value: 0 < value < 1, "a share between 0 and 1, such as 0.02 for 2%"),
    "kernel": (_kernel, "an odd number of finite weights"),
    "learning_rate": _ABOVE_ZERO,
    "limit": _COUNT,
    "patience": _COUNT,
    "period_ms": _ABOVE_ZERO,
    "periods_ms": (
        lambda values: all(map(_positive, values)) and len(values) == len(set(values)),
        "finite numbers above 0, none of them twice",
    ),
    "policies": _CHOICES,
    "precisions": _CHOICES,
    "predictors": _CHOICES,
    "rebatch_wait": (lambda value: value >= 0, "a whole number of batches from 0"),
    "repeats": _COUNT,
    "run_limit": _COUNT,
    "seconds": (_positive, "a finite number of seconds above 0"),
    "seed": _SEED,
    "side": _COUNT,
    "sleep_time": _SECONDS,
    "split_seed": _SEED,
    "start_layer": _COUNT,
    "start_layers": _COUNTS,
    "threads": (lambda value: value >= 0, "a whole number from 0"),
    "validation_share": (lambda value: 0 <= value <= 0.5, "a share from 0 to 0.5"),
    "weight_decay": (_not_negative, "a finite number from 0"),
    "width": _ABOVE_ZERO,
}


def faults(config: object) -> list[str]:
    """Every value of ``config`` that is out of its limits, as sentences; empty if all is well."""
    return [*_values_out_of_limits(config), *_combinations(config)]


def _values_out_of_limits(config: object) -> Iterator[str]:
    if not is_dataclass(config):
        return
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            yield from _values_out_of_limits(value)
        elif value is not None and item.name in RULES:
            holds, allowed = RULES[item.name]
            if not holds(value):
                yield f"{item.name} is {_shown(value)}; allowed: {allowed}"


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(str(item) for item in value) or "empty"
    return repr(value) if isinstance(value, str) else str(value)


def _combinations(config: object) -> Iterator[str]:
    if isinstance(config, TrainConfig) and config.mode == "exits" and config.init is None:
        yield (
            "mode 'exits' trains heads on a frozen backbone and needs --init CHECKPOINT; "
            "train a backbone first with --mode original"
        )
    runs = isinstance(config, (TraceConfig, ProfileConfig, RunConfig, StudyConfig, DemoConfig))
    if not runs or (isinstance(config, TraceConfig) and config.logits is not None):
        yield from _no_runtime(getattr(config, "device", None))
    if isinstance(config, TraceConfig):
        yield from _trace_combinations(config)
    if isinstance(config, RunConfig):
        yield from _run_combinations(config)
    if isinstance(config, GovernConfig):
        yield from _govern_combinations(config)
    if isinstance(config, SubsetConfig) and config.exit is not None and config.difficulty == "hard":
        yield "exit is given with difficulty 'hard', which has no use for it; leave one of them out"


def _no_runtime(device: Any) -> Iterator[str]:
    """Options about prepared networks, for commands that run none."""
    for name in ("runtime", "ranges"):
        if isinstance(device, DeviceConfig) and getattr(device, name) not in (None, "auto"):
            yield (
                f"{name} is given, but this command runs no prepared network; leave out --{name}"
            )


def _govern_combinations(config: GovernConfig) -> Iterator[str]:
    if config.operating_point is not None and "fixed" not in config.governors:
        yield "operating_point is given, but not the governor fixed, to which it belongs"


def _run_combinations(config: RunConfig) -> Iterator[str]:
    if (config.scene == "periodic") != (config.period_ms is not None):
        state = "no period is given" if config.period_ms is None else "the scene is continuous"
        yield f"period_ms and scene: {state}; give --scene periodic --period-ms MS, or neither"
    if config.governor is None:
        for name in ("operating_point", "deadline_ms"):
            if getattr(config, name) is not None:
                yield f"{name} is given without a governor; it belongs to --governor NAME"
        if config.clocks == "device":
            yield "clocks is device without a governor that sets them; give --governor NAME, too"
    elif config.operating_point is not None and config.governor != "fixed":
        yield f"operating_point is given beside governor {config.governor}; it belongs to fixed"
    if (config.governor or config.scene == "periodic") and config.batch_size not in (None, 1):
        yield f"batch_size is {config.batch_size}; requests come one by one, so it must be 1"
    if config.forward_mode == "accuracy" and (config.governor or config.scene == "periodic"):
        yield "forward_mode is accuracy, which judges forecasts; leave out --governor and --scene"
    if config.rebatch_wait is not None:
        yield from _rebatch_combinations(config)


def _rebatch_combinations(config: RunConfig) -> Iterator[str]:
    given = f"rebatch_wait is {config.rebatch_wait}"
    if config.governor or config.scene == "periodic":
        beside = "a governor" if config.governor else "a periodic scene"
        yield (
            f"{given} beside {beside}, where requests come one by one and no batches are there to "
            "be put together; leave one of them out"
        )
    elif config.batch_size == 1:
        yield f"{given} beside batch_size 1; give --batch-size 2 or more, or leave one of them out"
    if config.forward_mode == "accuracy":
        yield f"{given}, but forward_mode accuracy times nothing; leave out --rebatch-wait"


def _without_meaning(config: TraceConfig) -> Iterator[str]:
    """Options about images that have no use beside logits; better refused than ignored."""
    names = ["dataset", "calibration_samples"]
    if config.calibration_logits is not None:
        names.append("split_seed")
    for name in names:
        if getattr(config.data, name) is not None:
            yield f"{name} is given beside logits, which have no use for it; leave it out"


def _trace_combinations(config: TraceConfig) -> Iterator[str]:
    if (config.checkpoint is None) == (config.logits is None):
        state = "neither" if config.checkpoint is None else "both"
        yield (
            f"checkpoint and logits: {state} given, exactly one is needed; --checkpoint FILE for "
            "a network of exitbench, --logits FILE for one of another framework"
        )
    if config.logits is not None:
        yield from _without_meaning(config)
    for name in ("calibration_logits", "cost"):
        if getattr(config, name) is not None and config.logits is None:
            yield f"{name} is given without logits; it belongs to --logits FILE"
