"""A synthetic run directory: made-up samples walked through made-up exits, plainly labelled so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from synthetic_clocks import (
    govern_facts,
    governed_table,
    hardware_facts,
    profile_facts,
    scenarios_table,
    staged_lines,
)
from synthetic_sweep import Plan, cost_table, sweep_table

ROLE_FILTERS: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "full": lambda f: f.policy == "full",
    "fixed": lambda f: f.policy == "fixed",
    "every-exit": lambda f: (f.policy == "every-exit") & (f.start_layer == 1),
    "every-exit-best": lambda f: f.policy == "every-exit",
    "predictive": lambda f: f.predictor == "convolution",
    "predictive-table": lambda f: f.predictor == "table",
    "perfect-predictor": lambda f: f.predictor == "perfect",
    "oracle": lambda f: f.policy == "oracle",
    "recommended": lambda f: (f.policy != "oracle") & (f.predictor != "perfect"),
}


DERIVED = ("role", "chosen_as", "calibration_accuracy")


def comparison_table(plan: Plan, sweep: pd.DataFrame) -> pd.DataFrame:
    """Per role and precision the cheapest calibration setting within a point, at test values."""
    price = "latency_ms" if plan.energy_source == "unavailable" else "energy_mj"
    keys = ["policy", "criterion", "beta", "start_layer", "predictor", "precision"]
    names = sweep[keys].astype(object).map(str).agg("|".join, axis=1)
    calibration = sweep[sweep.split == "calibration"]
    rows = []
    for precision in plan.precisions:
        part = calibration[calibration.precision == precision]
        for role, chosen in ROLE_FILTERS.items():
            pool = part if role != "recommended" else calibration
            limit = pool[pool.policy == "full"].accuracy.iloc[0] - 0.01
            pool = pool[chosen(pool)]
            pool = pool[pool.accuracy >= limit - 1e-9]
            if pool.empty or (role == "recommended" and precision != plan.precisions[0]):
                continue
            best = pool.loc[pool[price].idxmin()]
            same = names == names[best.name]
            sweep.loc[same, "chosen_as"] = [
                ";".join(filter(None, (old, role))) for old in sweep.loc[same, "chosen_as"]
            ]
            test = sweep[same & (sweep.split == "test")].iloc[0].to_dict()
            rows.append({"role": role} | test | {"calibration_accuracy": best.accuracy})
    frame = pd.DataFrame(rows)
    full = frame[frame.role == "full"].set_index("precision")
    for name, column in (("macs", "macs"), ("latency", "latency_ms"), ("energy", "energy_mj")):
        frame[f"{name}_vs_full"] = frame[column] / frame.precision.map(full[column].to_dict())
    return frame


def prediction_tables(plan: Plan) -> tuple[pd.DataFrame, pd.DataFrame]:
    rng = np.random.default_rng(plan.seed)
    rows, cells = [], []
    for precision in plan.precisions:
        for place, predictor in enumerate(p for p in plan.predictors if p != "perfect"):
            for start in range(1, plan.exits + 1):
                horizon = min(8, plan.exits + 1 - start)
                table = rng.integers(2, 12, (horizon, horizon))
                table += np.diag(rng.integers(20 + 25 * place, 70 + 25 * place, horizon))
                key = {
                    "criterion": "softmax",
                    "beta": None,
                    "predictor": predictor,
                    "precision": precision,
                    "start_layer": start,
                    "split": "test",
                }
                total, hits = int(table.sum()), int(np.trace(table))
                rows.append(
                    key | {"forecasts": total, "hits": hits, "prediction_accuracy": hits / total}
                )
                cells += [
                    key | {"forecast_jump": f + 1, "true_jump": t + 1, "count": int(table[f, t])}
                    for f in range(horizon)
                    for t in range(horizon)
                ]
    return pd.DataFrame(rows), pd.DataFrame(cells)


def chosen_betas(frame: pd.DataFrame, comparison: pd.DataFrame) -> list[float | None]:
    """The beta that was chosen for the predictor and precision of each row."""
    known = {(r.predictor, r.precision): r.beta for r in comparison.itertuples()}
    return [known.get((row.predictor, row.precision), 0.8) for row in frame.itertuples()]


def measurement_lines(plan: Plan, comparison: pd.DataFrame) -> list[dict[str, Any]]:
    lines = []
    for number, row in enumerate(comparison.to_dict("records")):
        if row["role"] in ("oracle", "perfect-predictor", "recommended", "fixed"):
            continue
        clean = {
            k: None if pd.isna(v) else v
            for k, v in row.items()
            if k not in DERIVED and not k.endswith("_vs_full")
        }
        gap = 1 + 0.015 * (number % 5)
        energy = clean["energy_mj"]
        lines.append(
            clean
            | {
                "latency_ms": row["latency_ms"] * gap,
                "latency_low_ms": row["latency_ms"] * gap * 0.99,
                "latency_high_ms": row["latency_ms"] * gap * 1.02,
                "energy_mj": None if energy is None else energy * gap,
                "replay_accuracy": row["accuracy"],
                "replay_latency_ms": row["latency_ms"],
                "replay_energy_mj": energy,
                "same_decisions": 0.9995,
                "repeats": 3,
                "stat_each_layer": layer_statistics(plan, row["exit_histogram"]),
                "confusion": [[5, 1], [2, 4]],
                "scene": "continuous",
                "tier": "quick",
                "net_energy_mj": None if energy is None else energy - 0.4,
                "energy_uncertainty_mj": None if energy is None else 0.02 * energy,
                "meter_overhead": 0.0001,
                "meters": ["profile"],
                "date": "2026-01-02T03:04:05",
            }
        )
    return lines


def layer_statistics(plan: Plan, histogram: str) -> list[dict[str, Any]]:
    left = [int(n) for n in histogram.split()]
    return [
        {
            "exit": i + 1,
            "checked": sum(left[i:]),
            "left": left[i],
            "correct": int(left[i] * 0.9),
            "mean_confidence": 0.8,
            "mean_forecast": 2.5 if i < plan.exits else None,
            "mean_true_jump": 2.25 if i < plan.exits else None,
            "prediction_hits": left[i] // 2,
            "forecasts": left[i],
        }
        for i in range(plan.exits + 1)
    ]


ENVIRONMENT = {
    "machine": "synthetic machine",
    "cpu": "Imaginary 3000",
    "cores": 2,
    "python": "3.11.4",
    "torch": "2.15.0",
    "threads": 1,
    "gpu": None,
}
CHECKPOINT = {
    "path": "runs/synthetic/network.safetensors",
    "sha256": "ab" * 32,
    "model": "vgg19",
    "arguments": {"width": 0.125},
    "dataset": "synthetic",
    "accuracy": 0.9,
}


def manifest_of(
    plan: Plan, cost: pd.DataFrame, governed: dict[str, pd.DataFrame]
) -> dict[str, Any]:
    return {
        "schema": 1,
        "command": "study",
        "config": {
            "run": "runs/synthetic",
            "accuracy_loss": 1.0,
            "batch_size": 1,
            "data": {"dataset": "synthetic", "split_seed": 0},
        },
        "environment": ENVIRONMENT,
        "accuracy_loss": 1.0,
        "exitbench": "0.1.0",
        "created": "2026-01-02T03:04:05+00:00",
        "checkpoint": CHECKPOINT,
        "profile": {
            f"{precision}, batch 1": profile_facts(plan, cost, precision)
            for precision in plan.precisions
        },
        "exit_names": [f"conv{i + 1}" for i in range(plan.exits)] + ["classifier"],
        "hardware": {
            "profile": "generic-x86",
            "description": "any 64-bit PC",
            "matched": True,
            "energy_source": plan.energy_source,
            **hardware_facts(plan),
        },
        "govern": {name: govern_facts(plan, name, frame) for name, frame in governed.items()},
        "precisions": {
            "fp32": {"runtime": "eager", "available": True, "reason": None},
            "bf16": {
                "runtime": None,
                "available": False,
                "reason": "this CPU has no bf16 instructions",
            },
        },
        "checksums": {},
    }


def write_run(folder: Path, plan: Plan | None = None) -> Path:
    """Write the synthetic run directory and return it."""
    plan = plan or Plan()
    folder.mkdir(parents=True, exist_ok=True)
    cost = cost_table(plan)
    sweep = sweep_table(plan, cost)
    comparison = comparison_table(plan, sweep)
    prediction, confusion = prediction_tables(plan)
    for frame in (prediction, confusion):
        frame["criterion"], frame["beta"] = "softmax", chosen_betas(frame, comparison)
    for name, frame in (
        ("cost", cost),
        ("sweep", sweep),
        ("comparison", comparison),
        ("prediction", prediction),
        ("prediction_confusion", confusion),
    ):
        frame.to_csv(folder / f"{name}.csv", index=False)
    governed = {}
    if plan.energy_source != "unavailable":
        scenarios_table(plan, comparison).to_csv(folder / "scenarios.csv", index=False)
        governed = {name: governed_table(plan, comparison, name) for name in plan.hardware}
    for name, frame in governed.items():
        frame.to_csv(folder / f"governed-{name}.csv", index=False)
    lines = measurement_lines(plan, comparison)
    lines += staged_lines(plan, lines)
    (folder / "measurements.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (folder / "manifest.json").write_text(json.dumps(manifest_of(plan, cost, governed), indent=2))
    return folder
