"""Synthetic clocks and schedules: what `govern` and `sweep` would write for the synthetic sweep.

Power and time follow a small model, so that bars and points lie as they will for a user.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from synthetic_sweep import Plan

IDLE_W, STATIC_W, TOP_W = 5.0, 6.0, 15.0
SETTING = ["policy", "criterion", "beta", "start_layer", "predictor", "precision"]
ROLES = ("full", "every-exit", "every-exit-best", "predictive", "predictive-table")
GOVERNORS = {
    "fixed": 0.8,
    "race-to-idle": 1.0,
    "proportional": 0.65,
    "deadline": 0.55,
    "deadline-safe": 0.62,
}
"""Share of the top clock at which each governor runs a policy that leaves early."""

DEVICES = {"generic-x86": (1.0, 1.0, "cpu"), "jetson-tx2": (3.5, 0.6, "gpu")}
"""Time and power against the machine of the sweep, and the device class."""


def power_w(clock: float) -> float:
    """Watts at a share of the top clock: static, and C V^2 f with a voltage floor."""
    voltage = max(0.83, 0.83 + 0.17 * (clock - 0.62) / 0.38)
    return STATIC_W + (TOP_W - STATIC_W) * clock * voltage**2


def governed_table(plan: Plan, comparison: pd.DataFrame, hardware: str) -> pd.DataFrame:
    """One row per role, governor and precision, on one hardware."""
    slower, weaker, device_class = DEVICES[hardware]
    rows = []
    for precision in plan.precisions:
        own = comparison[comparison.precision == precision].set_index("role")
        deadline = slower * own.latency_ms["full"]
        for role in ROLES:
            if role not in own.index:
                continue
            setting = own.loc[role].to_dict() | {"role": role, "precision": precision}
            for governor, asked in {"": 1.0, **GOVERNORS}.items():
                clock = 1.0 if role == "full" else asked
                factor = 0.1 + 0.9 / clock
                latency = min(slower * setting["latency_ms"] * factor, deadline)
                busy = latency * weaker * power_w(clock)
                late = 0.0 if role == "full" else 0.02 + 0.03 * (governor == "proportional")
                rows.append(
                    {key: setting[key] for key in ("role", *SETTING)}
                    | {
                        "hardware": hardware,
                        "device_class": device_class,
                        "governor": governor,
                        "operating_point": _point(clock) if governor in ("", "fixed") else "",
                        "deadline_ms": deadline,
                        "accuracy": setting["accuracy"],
                        "calibration_accuracy": setting["calibration_accuracy"],
                        "latency_ms": latency,
                        "latency_p99_ms": 1.4 * latency,
                        "missed": late,
                        "switches": 0.0 if governor in ("", "fixed") else 1.3,
                        "points": f"1000-MHz:0.3 {1000 * clock:g}-MHz:0.7",
                        "busy_energy_mj": busy,
                        "energy_mj": busy + max(0.0, deadline - latency) * weaker * IDLE_W,
                        "energy_source": "modelled",
                        "latency_source": "modelled" if governor or slower != 1 else "measured",
                    }
                )
    return _with_shares(pd.DataFrame(rows))


def _point(clock: float) -> str:
    return f"{1000 * clock:g} MHz"


def _with_shares(frame: pd.DataFrame) -> pd.DataFrame:
    """With shares of the full network and of every-exit, and the paper's claims beside them."""
    top = frame[frame.governor == ""]
    for role, column in (("full", "energy_vs_full"), ("every-exit", "energy_vs_every_exit")):
        base = top[top.role == role].set_index("precision").energy_mj.to_dict()
        frame[column] = frame.energy_mj / frame.precision.map(base)
    claimed = frame.role.str.startswith("predictive") & (frame.governor != "")
    frame["claim_vs_full"] = claimed.map({True: 0.271, False: None})
    frame["claim_vs_every_exit"] = claimed.map({True: 0.624, False: None})
    return frame


def govern_facts(plan: Plan, hardware: str, frame: pd.DataFrame) -> dict[str, Any]:
    """What the manifest says of a governed hardware."""
    return {
        "profile": hardware,
        "description": f"the synthetic {hardware}",
        "device_class": DEVICES[hardware][2],
        "costs": "measured" if hardware == "generic-x86" else "modelled",
        "points": [{"name": "1000 MHz", "clock_mhz": {"cpu": 1000}, "power_w": TOP_W}],
        "deadline_ms": frame.groupby("precision").deadline_ms.first().to_dict(),
        "switch_ms": 1.0,
        "model": "Power and time below the top clock are modelled; all its figures are made up",
        "model_error": "The synthetic model is off by 3% on average and 9% at worst",
        "claims": "The paper claims 72.9% less than the full network, 37.6% less than early exit",
    }


def scenarios_table(plan: Plan, comparison: pd.DataFrame) -> pd.DataFrame:
    """One row per chosen setting and scene: energy with the idle between requests."""
    rows = []
    for row in comparison.to_dict("records"):
        for period in (None, *plan.periods_ms):
            keeps = period is None or row["latency_ms"] <= period
            served = period if period is not None and keeps else row["latency_ms"]
            idle = (served - row["latency_ms"]) * IDLE_W
            energy = None if row["energy_mj"] is None else row["energy_mj"] + idle
            power = None if energy is None else energy / served
            rows.append(
                {key: row[key] for key in ("role", *SETTING, "batch_size", "device", "accuracy")}
                | {
                    "scene": "continuous" if period is None else "periodic",
                    "period_ms": period,
                    "latency_ms": row["latency_ms"],
                    "busy_share": row["latency_ms"] / (period or row["latency_ms"]),
                    "keeps_up": int(keeps),
                    "energy_per_request_mj": energy,
                    "idle_energy_per_request_mj": idle,
                    "requests_per_hour": 3.6e6 / served,
                    "energy_per_hour_j": None if power is None else power * 3600,
                    "power_w": power,
                    "energy_source": plan.energy_source,
                    "idle_source": "modelled",
                }
            )
    return pd.DataFrame(rows)


def staged_lines(plan: Plan, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One of the runs again on a schedule, and one with a governor and simulated clocks."""
    first, last = lines[0], lines[-1]
    periodic = first | {
        "scene": "periodic",
        "period_ms": 5.0,
        "power_w": 6.1,
        "energy_per_hour_j": 21_960.0,
        "energy_flags": ["another process used the device for 3% of the window"],
    }
    governed = last | {
        "governor": "deadline",
        "clocks": "simulated",
        "deadline_ms": 0.6,
        "missed": 0.02,
        "switches": 1.3,
        "operating_point": "",
        "latency_source": "modelled",
    }
    return [periodic, governed]


def hardware_facts(plan: Plan) -> dict[str, Any]:
    """What profiling adds to the manifest's hardware."""
    figure = {"source": "made up", "assumption": True}
    return {
        "device_class": "cpu",
        "peaks": {
            "fp32_gflops": {"value": 160.0, "source": "made up", "assumption": False},
            "int8_gops": {"value": 150.0, **figure},
            "bandwidth_gb_s": {"value": 20.0, **figure},
        },
        "idle_w": IDLE_W,
        "idle_source": "modelled",
        "energy": "CPU from the hardware profile synthetic.",
        "meters": [
            {
                "name": "power of the hardware profile",
                "domains": ["cpu"],
                "source": plan.energy_source,
                "update_period_s": None,
            }
        ],
        "tier": "quick",
        "overhead": {"open_close_s": 0.0002, "share": 0.0001},
    }


def profile_facts(plan: Plan, cost: pd.DataFrame, precision: str) -> dict[str, Any]:
    """What profiling says of one precision: how, and the whole network beside its layers."""
    own = cost[(cost.precision == precision) & cost.kind.isin(("segment", "classifier"))]
    whole: dict[str, Any] = {"energy_source": plan.energy_source}
    for quantity in ("latency_ms", "energy_mj"):
        known = own[quantity].notna().all()
        parts = float(own[quantity].sum()) if known else None
        whole[quantity] = None if parts is None else 0.96 * parts
        whole[f"parts_{quantity}"] = parts
        whole[f"residue_{quantity}"] = None if parts is None else -0.04 * parts
    energy = {
        "tier": "quick",
        "windows": 5,
        "window_s": 1.0,
        "idle_w": IDLE_W,
        "flags": ["the clock was throttled: segment 2"] if precision == plan.precisions[0] else [],
    }
    return {"how": {"energy": "as the plan says"}, "whole": whole, "energy": energy}
