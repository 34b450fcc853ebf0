"""``exitbench trace``: from a network, or from logits of any framework, to traces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from .calibration import CALIBRATION
from .configs import DataConfig, TraceConfig
from .costs import CostTable
from .data import Split
from .difficulty import read_samples
from .environment import environment
from .errors import ExitbenchError
from .files import sha256
from .options import from_plain, to_plain
from .predictors import convolution_stack
from .rundir import RunDirectory
from .runtime.base import Prepared
from .serving import SPLITS, ranges_of, served
from .splitting import digest_of
from .subject import Subject, load_subject, thinned, usable_precisions
from .trace import Trace, TraceMeta, read_logits, record, trace_logits, writing

Say = Callable[[str], None]


def run_trace(config: TraceConfig, say: Say) -> None:
    """Record the evidence of both splits at every exit, per precision.

    A trace that is there already and was recorded in the same way is kept.

    Raises:
        ExitbenchError: the network, the data, the device or the logits cannot be used.
    """
    if (config.checkpoint is None) == (config.logits is None):
        raise ExitbenchError(
            "give either --checkpoint, a network with exits, or --logits, the logits of one"
        )
    convolution_stack(2, config.kernel, config.horizon)  # refuses a wrong kernel or horizon early
    for what, value in (("batch size", config.batch_size), ("limit", config.limit)):
        if value is not None and value < 1:
            raise ExitbenchError(f"{what} is {value}; it must be at least 1")
    if config.logits is not None:
        _from_logits(config, config.logits, say)
        return
    assert config.checkpoint is not None
    subject = load_subject(config.checkpoint, config.data, config.device, say, config.limit)
    precisions, _ = usable_precisions(
        config.precisions, subject.device, True, say, subject.runtime_of
    )
    directory = RunDirectory(config.run)
    begin(directory, "trace", to_plain(config), subject)
    trace_subject(directory, subject, precisions, config, say)
    directory.finish("trace")


def begin(
    directory: RunDirectory,
    command: str,
    config: dict[str, Any],
    subject: Subject,
    traced: bool = True,
) -> None:
    """Note that a command starts, with its network, data and exits, in the manifest.

    Args:
        traced: the samples of the splits matter to what will be written; else any will do.

    Raises:
        ExitbenchError: the directory belongs to another network, other data or an unlike
            environment; then nothing is written.
    """
    check_subject(directory, subject, traced)
    directory.begin(command, config, environment(str(subject.device), subject.threads))
    samples = {}
    if traced:
        samples = {
            "samples": {name: len(part) for name, part in subject.parts.items()},
            "positions": _positions(subject),
            "sizes": subject.sizes,
            "limit": subject.limit,
            "data": to_plain(subject.data),
        }
    training = subject.checkpoint.training
    directory.update(
        checkpoint={
            "path": str(subject.path),
            "sha256": subject.digest,
            "model": subject.checkpoint.model,
            "arguments": to_plain(subject.checkpoint.arguments),
            "dataset": subject.dataset,
            **samples,
            "training": {key: value for key, value in training.items() if key != "history"},
        },
        exit_names=list(subject.exit_names),
    )


def check_subject(directory: RunDirectory, subject: Subject, traced: bool = True) -> None:
    """Refuse a subject that is not the one of the run directory.

    Raises:
        ExitbenchError: the directory belongs to another network or other data.
    """
    _refuse_another(directory, "network", subject.digest)
    _refuse_another(directory, "dataset", subject.dataset)
    if traced:
        counts = {name: len(part) for name, part in subject.parts.items()}
        _refuse_another(directory, "splits", counts)
        known = directory.manifest.get("checkpoint", {}).get("data", {}).get("split_seed")
        seed = subject.data.split_seed
        if None not in (known, seed) and known != seed:
            raise ExitbenchError(
                f"{directory.path} was made with other splits (split seed {known}, now {seed}); "
                "choose another run directory, or delete this one"
            )
        _refuse_other_samples(directory, _positions(subject))


def _positions(subject: Subject) -> dict[str, str]:
    """A digest of the positions of each split's samples in the dataset."""
    return {name: digest_of(part.indices) for name, part in subject.parts.items()}


def _refuse_other_samples(directory: RunDirectory, new: dict[str, str]) -> None:
    known = directory.manifest.get("checkpoint", {}).get("positions", {})
    if other := [split for split, digest in new.items() if known.get(split, digest) != digest]:
        raise ExitbenchError(
            f"{directory.path} was made with other splits (as many samples, but other ones, in "
            f"{' and '.join(other)}); choose another run directory, or delete this one"
        )


def traced_subject(
    directory: RunDirectory, path: Path | None, data: DataConfig
) -> tuple[Path | None, DataConfig, int | None]:
    """Network, data and limit of a directory's traces, where nothing else was asked for.

    Args:
        path: the network that was asked for; that of the directory if None.
        data: the data that were asked for; what is left at its default is that of the directory.

    Raises:
        ExitbenchError: the directory was made from logits.
    """
    known = directory.manifest.get("checkpoint", {})
    if known.get("model") == "logits":
        raise ExitbenchError(
            f"{directory.path} was made from logits: there is no network to run; its replay is "
            "all that can be had"
        )
    if path is None and "path" in known:
        path = Path(known["path"])
    if known.get("data") is not None:
        traced = from_plain(DataConfig, known["data"], str(directory.manifest_path))
        default = DataConfig()
        names = [item.name for item in fields(DataConfig)]
        left = [name for name in names if getattr(data, name) == getattr(default, name)]
        data = replace(data, **{name: getattr(traced, name) for name in left})
    return path, data, known.get("limit")


def _refuse_another(directory: RunDirectory, what: str, new: Any) -> None:
    key = {"network": "sha256", "splits": "samples"}.get(what, what)
    words = "other splits" if what == "splits" else f"another {what}"
    old = directory.manifest.get("checkpoint", {}).get(key)
    if old is not None and old != new:
        raise ExitbenchError(
            f"{directory.path} was made with {words} ({old}, now {new}); choose another "
            "run directory, or delete this one"
        )


def trace_subject(
    directory: RunDirectory,
    subject: Subject,
    precisions: list[str],
    config: TraceConfig,
    say: Say,
) -> dict[str, Any]:
    """Record both splits in every precision; gives the prepared networks by precision."""
    prepared = {}
    for precision in precisions:
        prepared[precision] = subject.prepare(precision)
        _drop_unlike(directory, prepared[precision], subject.ranges, say)
        tell_runtime(directory, prepared[precision], say, ranges=subject.ranges)
        for split in SPLITS:
            _record(directory, subject, split, precision, prepared[precision], config, say)
    return prepared


def _drop_unlike(
    directory: RunDirectory, prepared: Prepared, ranges: str | None, say: Say
) -> None:
    """Delete traces that were recorded with another runtime or other ranges.

    Before what is recorded now is noted: a kill in between must not lend its name to old traces.
    """
    precision = prepared.precision
    found, now = served(directory, precision), (prepared.name, ranges_of(precision, ranges))
    if found is None or found == now:
        return
    words = [" with ranges ".join(filter(None, each)) for each in (found, now)]
    say(f"trace {precision}: the one that is there is of {words[0]}, now {words[1]}: recorded anew")
    for split in SPLITS:
        directory.trace(split, precision).unlink(missing_ok=True)


def tell_runtime(
    directory: RunDirectory,
    prepared: Prepared,
    say: Say,
    new: bool = True,
    ranges: str | None = None,
) -> None:
    """Say which runtime serves a precision, and note it in the manifest.

    Args:
        new: takes the place of what is noted; else what the trace was made with stays there.
        ranges: those of int8 that were asked for.
    """
    say(f"{prepared.precision}: {prepared.words}")
    known = directory.manifest.get("precisions", {}).get(prepared.precision, {})
    if new or not known.get("available"):
        found = {"available": True, "reason": None, "words": prepared.words}
        found |= {"ranges": ranges_of(prepared.precision, ranges)}
        directory.update(precisions={prepared.precision: {"runtime": prepared.name} | found})


def _record(
    directory: RunDirectory,
    subject: Subject,
    split: str,
    precision: str,
    prepared: Any,
    config: TraceConfig,
    say: Say,
) -> None:
    part = subject.parts[split]
    path = directory.trace(split, precision)
    meta = TraceMeta(
        split=split,
        precision=precision,
        samples=len(part),
        exits=subject.network.num_exits,
        classes=subject.network.classes,
        kernel=config.kernel,
        horizon=config.horizon,
        dataset=subject.dataset,
        network=subject.digest,
        exit_names=subject.exit_names,
    )
    if _is_there(path, meta, part, config.keep_logits):
        say(f"trace {split} {precision}: already there")
        return
    say(f"trace {split} {precision}: {len(part)} images, {meta.exits} exits")
    with writing(path, meta, part.labels, part.indices, config.keep_logits) as writer:
        record(writer, subject.batches(split, config.batch_size), prepared)
    trace = Trace(path)
    final = float(trace.correct()[-1].mean())
    say(f"trace {split} {precision}: accuracy of the full network {final:.2%}")


def _is_there(path: Path, meta: TraceMeta, part: Split, logits: bool) -> bool:
    if not path.is_file():
        return False
    try:
        trace = Trace(path)
        return (
            trace.meta == meta
            and np.array_equal(trace.indices, part.indices)
            and np.array_equal(trace.truth, part.labels)
            and (trace.holds("logits") or not logits)
        )
    except ExitbenchError:
        return False


@dataclass(frozen=True)
class _Part:
    """Logits (N, E + 1, classes) and labels (N,) of a split; their places in a file of ``size``."""

    logits: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    size: int


def _from_logits(config: TraceConfig, path: Path, say: Say) -> None:
    if config.cost is None:
        raise ExitbenchError(
            "--logits needs --cost, a cost table (CSV) of the same network; docs/counting.md "
            "describes its columns, of which kind, index and macs are enough"
        )
    if len(config.precisions) != 1:
        raise ExitbenchError("--logits are of one precision; name it alone in --precisions")
    costs = CostTable.read(config.cost)
    parts = _parts(config, path, say)
    precision, exits = config.precisions[0], parts["test"].logits.shape[1] - 1
    _refuse_other_costs(costs, precision, exits, path)
    directory = RunDirectory(config.run)
    digest = sha256(path)
    _refuse_another(directory, "network", digest)
    samples = {split: digest_of(part.positions, part.logits) for split, part in parts.items()}
    _refuse_other_samples(directory, samples)
    directory.begin("trace", to_plain(config), environment())
    names = (*(f"exit {number}" for number in range(1, exits + 1)), "classifier")
    directory.update(
        checkpoint={
            "path": str(path), "sha256": digest, "model": "logits", "dataset": str(path),
            "sizes": {split: part.size for split, part in parts.items()},
            "positions": samples,
        },
        exit_names=list(names),
        precisions={
            precision: {"runtime": "none", "available": True, "reason": None, "words": "logits"}
        },
    )  # fmt: skip
    for split, part in parts.items():
        meta = TraceMeta(
            split, precision, len(part.labels), exits, part.logits.shape[2], config.kernel,
            config.horizon, str(path), digest, names,
        )  # fmt: skip
        where = directory.trace(split, precision)
        trace_logits(where, part.logits, part.labels, part.positions, meta, config.keep_logits)
        say(f"trace {split} {precision}: {len(part.labels)} samples, {exits} exits")
    costs.write(directory.cost)
    directory.finish("trace")


def _refuse_other_costs(costs: CostTable, precision: str, exits: int, path: Path) -> None:
    priced = costs.select(precision).exits
    if priced != exits:
        raise ExitbenchError(
            f"{costs.where} prices {priced} exits, but {path} holds logits of {exits} exits and "
            "the classifier; correct the table, or name the one of this network"
        )


def _parts(config: TraceConfig, path: Path, say: Say) -> dict[str, _Part]:
    """The two splits: two files, or the halves of one."""
    logits, labels = read_logits(path)
    count = len(logits)
    if config.calibration_logits is not None:
        first, first_labels = read_logits(config.calibration_logits)
        if first.shape[1:] != logits.shape[1:]:
            raise ExitbenchError(
                f"{config.calibration_logits} holds logits {_shape(first)}, {path} "
                f"{_shape(logits)}; they must be of the same network"
            )
        parts = {
            CALIBRATION: _Part(first, first_labels, np.arange(len(first)), len(first)),
            "test": _Part(logits, labels, np.arange(count), count),
        }
    else:
        if count < 2:
            raise ExitbenchError(
                f"{path} holds one sample; the two splits need at least two, or "
                "--calibration-logits"
            )
        order = np.random.default_rng(config.data.split_seed or 0).permutation(count)
        halves = {CALIBRATION: order[: count // 2], "test": order[count // 2 :]}
        parts = {
            split: _Part(logits[rows], labels[rows], rows, count)
            for split, rows in ((split, np.sort(half)) for split, half in halves.items())
        }
        say(f"trace: {path} is cut in halves, one to choose settings on and one to report on")
    if config.data.subset is not None:
        parts["test"] = _listed(parts["test"], config.data.subset, path)
    return {split: _limited(part, config.limit) for split, part in parts.items()}


def _listed(part: _Part, listed: Path, path: Path) -> _Part:
    """The samples of the test split that a list of ``exitbench subset`` names."""
    chosen = read_samples(listed, str(path), "test", part.size)
    rows = np.flatnonzero(np.isin(part.positions, chosen.positions))
    if len(rows) < len(chosen.positions):
        raise ExitbenchError(
            f"{listed} names samples of the half of {path} that is the calibration split now; "
            "give the --split-seed and --calibration-logits that the list was made with"
        )
    return _Part(part.logits[rows], part.labels[rows], part.positions[rows], part.size)


def _limited(part: _Part, limit: int | None) -> _Part:
    if limit is None:
        return part
    rows = thinned(len(part.labels), limit)
    return _Part(part.logits[rows], part.labels[rows], part.positions[rows], part.size)


def _shape(logits: np.ndarray) -> str:
    return f"(N, {logits.shape[1]}, {logits.shape[2]})"
