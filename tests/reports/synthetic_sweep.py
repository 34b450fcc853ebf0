"""A synthetic sweep: made-up samples walked through made-up exits.

The numbers hang together as in a real study (the sweep is a small honest replay over drawn
confidences, priced with the drawn cost table), so that figures look as they will for a user.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

SPEED = {"fp32": 1.0, "bf16": 0.7, "int8": 0.38}


@dataclass(frozen=True)
class Plan:
    """How large the synthetic study is and what its energy is worth."""

    exits: int = 5
    samples: int = 250
    betas: int = 6
    criteria: tuple[str, ...] = ("softmax", "activation")
    precisions: tuple[str, ...] = ("fp32", "int8")
    predictors: tuple[str, ...] = ("convolution", "table", "perfect")
    starts: tuple[int, ...] = (1, 2, 3)
    energy_source: str = "modelled"
    forecast_ms: float = 0.004
    head_ms: float = 0.03
    seed: int = 7
    hardware: tuple[str, ...] = ("generic-x86", "jetson-tx2")
    periods_ms: tuple[float, ...] = (0.4, 5.0, 100.0)


def cost_table(plan: Plan) -> pd.DataFrame:
    """One row per segment, head, forecast and the classifier, per precision."""
    rows: list[dict[str, Any]] = []
    rng = np.random.default_rng(plan.seed)
    shape = 0.4 + 0.6 * rng.random(plan.exits + 1)
    for precision in plan.precisions:
        units = [
            ("segment", i + 1, int(6e6 * shape[i]), 0.12 * shape[i] * SPEED[precision])
            for i in range(plan.exits + 1)
        ]
        units += [("head", i + 1, 300_000, plan.head_ms) for i in range(plan.exits)]
        units += [("forecast", i + 1, 2_400, plan.forecast_ms) for i in range(plan.exits)]
        units += [("classifier", plan.exits + 1, 5_120, 0.002)]
        rows += [_cost_row(plan, precision, *unit) for unit in units]
    return pd.DataFrame(rows)


def _cost_row(plan: Plan, precision: str, kind: str, index: int, macs: int, ms: float) -> dict:
    energy = None if plan.energy_source == "unavailable" else 15.0 * ms
    return {
        "kind": kind,
        "index": index,
        "name": f"{kind}{index}",
        "precision": precision,
        "runtime": "eager",
        "device": "cpu",
        "threads": 1,
        "batch_size": 1,
        "operating_point": "default",
        "clock_mhz": None,
        "macs": macs,
        "flops": 2 * macs,
        "params": macs // 100,
        "bytes": macs // (2 + 5 * (index % 6)),
        "latency_ms": ms,
        "latency_low_ms": 0.98 * ms,
        "latency_high_ms": 1.03 * ms,
        "latency_source": "measured",
        "repeats": 200,
        "energy_mj": energy,
        "energy_low_mj": None if energy is None else 0.97 * energy,
        "energy_high_mj": None if energy is None else 1.04 * energy,
        "energy_uncertainty_mj": None if energy is None else 0.01 * energy,
        "energy_source": plan.energy_source,
        "net_energy_mj": None if energy is None else energy - 5.0 * ms - 0.05,
        "gpu_energy_mj": None,
        "gpu_energy_source": None,
        "cpu_energy_mj": energy,
        "cpu_energy_source": plan.energy_source,
        "power_w": 15.0,
        "uncounted": "",
    }


@dataclass(frozen=True)
class Evidence:
    """Drawn evidence of one split and precision: correct and confidence, (samples, exits + 1)."""

    correct: np.ndarray
    confidence: dict[str, np.ndarray]


def draw_evidence(plan: Plan, split: str, precision: str) -> Evidence:
    rng = np.random.default_rng([plan.seed, len(split), 3])
    depth = np.linspace(0.0, 1.0, plan.exits + 1)
    ability = 0.25 + 0.72 * depth**0.7 - (0.004 if precision == "int8" else 0.0)
    difficulty = rng.beta(1.6, 2.6, plan.samples)
    drift = np.cumsum(rng.normal(0, 0.05, (plan.samples, plan.exits + 1)), axis=1)
    margin = ability[None] - difficulty[:, None] + drift
    confidence = {}
    for number, name in enumerate(plan.criteria):
        blurred = margin + rng.normal(0, 0.08 + 0.05 * number, margin.shape)
        confidence[name] = 1 / (1 + np.exp(-9 * blurred)) * (1.0 if name == "softmax" else 1.4)
    return Evidence(margin > 0, confidence)


def walk(plan: Plan, would: np.ndarray, policy: str, start: int, predictor: str) -> tuple:
    """Where each sample leaves, which heads and forecasts it pays: (n,), (n, E), (n, E)."""
    count = len(would)
    rng = np.random.default_rng([plan.seed, start, len(predictor)])
    leaves = np.full(count, plan.exits)
    checked = np.zeros((count, plan.exits), bool)
    forecast = np.zeros((count, plan.exits), bool)
    due = np.full(count, start - 1)
    certain = np.hstack([would, np.ones((count, 1), bool)])
    for i in range(plan.exits):
        here = due == i
        checked[here, i] = True
        leaves[here & would[:, i]] = i
        stay = here & ~would[:, i]
        jump = np.ones(count, int)
        if policy == "predictive":
            forecast[stay, i] = predictor != "perfect"
            reach = i + 1 + certain[:, i + 1 :].argmax(1)
            blur = {"convolution": 2, "table": 1}.get(predictor, 0)
            jump = np.clip(reach - i + rng.integers(-blur, blur + 1, count), 1, 8)
        due = np.where(stay, i + jump, np.where(here, plan.exits + 1, due))
    return leaves, checked, forecast


def replay(plan: Plan, prices: pd.DataFrame, evidence: Evidence, setting: dict) -> dict[str, Any]:
    """One row of the sweep."""
    policy, count = setting["policy"], plan.samples
    checked = np.zeros((count, plan.exits), bool)
    forecast = checked.copy()
    if policy == "full":
        leaves = np.full(count, plan.exits)
    elif policy == "fixed":
        leaves = np.full(count, setting["start_layer"] - 1)
        checked[:, setting["start_layer"] - 1] = True
    elif policy == "oracle":
        right = evidence.correct
        leaves = np.where(right.any(1), right.argmax(1), plan.exits)
        checked[np.arange(count)[leaves < plan.exits], leaves[leaves < plan.exits]] = True
    else:
        would = evidence.confidence[setting["criterion"]][:, :-1] >= setting["beta"]
        leaves, checked, forecast = walk(
            plan, would, policy, setting["start_layer"], setting["predictor"] or ""
        )
    histogram = np.bincount(leaves, minlength=plan.exits + 1)
    row = setting | {
        "batch_size": 1,
        "operating_point": "default",
        "device": "cpu",
        "samples": count,
        "accuracy": float(evidence.correct[np.arange(count), leaves].mean()),
        "mean_exit": float(leaves.mean() + 1),
        "checks": float(checked.sum(1).mean()),
        "prediction_accuracy": None,
        "exit_histogram": " ".join(str(n) for n in histogram),
        "energy_source": plan.energy_source,
        "pareto": 0,
        "chosen_as": "",
    }
    passed = np.array([(leaves >= i).mean() for i in range(plan.exits + 1)])
    shares = np.concatenate([passed, checked.mean(0), forecast.mean(0), passed[-1:]])
    for column in ("macs", "flops", "latency_ms", "energy_mj"):
        price = prices[column]
        row[column] = None if price.isna().any() else float((shares * price.to_numpy(float)).sum())
    return row


def settings_of(plan: Plan, precision: str) -> Iterator[dict[str, Any]]:
    def setting(
        policy: str,
        criterion: str | None = None,
        beta: float | None = None,
        start: int | None = None,
        predictor: str | None = None,
    ) -> dict[str, Any]:
        return {
            "policy": policy,
            "criterion": criterion,
            "beta": beta,
            "start_layer": start,
            "predictor": predictor,
            "precision": precision,
        }

    yield setting("full")
    yield setting("oracle")
    yield from (setting("fixed", start=i + 1) for i in range(plan.exits))
    for criterion in plan.criteria:
        top = 1.0 if criterion == "softmax" else 1.4
        for beta in np.round(top * np.linspace(0.5, 0.999, plan.betas), 4):
            for start in plan.starts:
                yield setting("every-exit", criterion, float(beta), start)
                for predictor in plan.predictors:
                    yield setting("predictive", criterion, float(beta), start, predictor)


def sweep_table(plan: Plan, cost: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for precision in plan.precisions:
        prices = cost[cost.precision == precision].reset_index()
        for split in ("calibration", "test"):
            evidence = draw_evidence(plan, split, precision)
            rows += [
                {"split": split} | replay(plan, prices, evidence, setting)
                for setting in settings_of(plan, precision)
            ]
    frame = pd.DataFrame(rows)
    full = frame[frame.policy == "full"].set_index(["split", "precision"]).macs
    against = pd.Series(list(zip(frame.split, frame.precision, strict=True))).map(full.to_dict())
    frame["macs_saved_full"] = 1 - frame.macs / against
    frame["macs_saved_every_exit"] = None
    return frame
