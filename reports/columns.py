"""The columns of a run's tables: which a report needs, which it uses, and what their cells hold."""

from __future__ import annotations

ENERGY_SOURCES = ("measured", "modelled", "unavailable")

SETTING = ("policy", "criterion", "beta", "start_layer", "predictor", "precision")
PLACE = ("batch_size", "operating_point", "device")

TEXT = frozenset(
    {
        *("split", "role", "chosen_as", "policy", "criterion", "predictor", "precision"),
        *("operating_point", "device", "runtime", "kind", "name", "uncounted", "exit_histogram"),
        *("energy_source", "gpu_energy_source", "cpu_energy_source", "energy_note", "ranked_by"),
        *("latency_source", "idle_source", "scene", "hardware", "device_class", "governor"),
        "points",
    }
)
SOURCES = ("energy_source", "gpu_energy_source", "cpu_energy_source", "latency_source")
SHARES = (*("accuracy", "prediction_accuracy", "calibration_accuracy", "missed", "keeps_up"),)
NOT_NEGATIVE = (
    *("macs", "latency_ms", "latency_p99_ms", "energy_mj", "energy_uncertainty_mj", "bytes"),
    *("busy_energy_mj", "energy_per_request_mj", "idle_energy_per_request_mj", "power_w"),
    *("requests_per_hour", "energy_per_hour_j", "switches", "period_ms", "deadline_ms"),
    *("count", "forecasts", "hits", "busy_share"),
)
"""Net energies are not among them: less the idle power, a short window may come out below 0."""

GOVERNED = "governed-*.csv"
REQUIRED = {
    "sweep.csv": ("split", "policy", "precision", "samples", "accuracy", "macs"),
    "comparison.csv": ("role", "policy", "precision", "accuracy", "macs"),
    "cost.csv": ("kind", "index", "macs"),
    "prediction.csv": ("predictor", "start_layer", "forecasts", "hits"),
    "prediction_confusion.csv": ("forecast_jump", "true_jump", "count"),
    "scenarios.csv": ("role", "policy", "precision", "scene", "keeps_up"),
    GOVERNED: ("role", "policy", "precision", "accuracy", "hardware"),
}
"""Needed, with a value in every row; by the name of the file or the pattern of names."""

PRESENT = {"scenarios.csv": ("period_ms",), GOVERNED: ("governor", "energy_mj")}
"""Needed as well, but a cell may be empty."""

OPTIONAL = {
    "sweep.csv": (
        *("criterion", "beta", "start_layer", "predictor", "batch_size", "operating_point"),
        *("device", "flops", "latency_ms", "energy_mj", "energy_source", "mean_exit", "checks"),
        *("prediction_accuracy", "exit_histogram", "pareto", "chosen_as"),
        *("macs_saved_full", "macs_saved_every_exit", "net_energy_mj", "latency_source"),
    ),
    "comparison.csv": (
        *("split", "criterion", "beta", "start_layer", "predictor", "batch_size"),
        *("operating_point", "device", "samples", "flops", "latency_ms", "energy_mj"),
        *("energy_source", "mean_exit", "checks", "prediction_accuracy", "exit_histogram"),
        *("calibration_accuracy", "ranked_by", "net_energy_mj", "latency_source"),
    ),
    "cost.csv": (
        *("name", "precision", "runtime", "device", "threads", "batch_size", "operating_point"),
        *("flops", "params", "bytes", "latency_ms", "latency_low_ms", "latency_high_ms"),
        *("energy_mj", "energy_low_mj", "energy_high_mj", "energy_source", "uncounted"),
        *("net_energy_mj", "energy_uncertainty_mj", "latency_source", "power_w"),
    ),
    "prediction.csv": ("criterion", "beta", "precision", "split", "prediction_accuracy"),
    "prediction_confusion.csv": (
        *("criterion", "beta", "predictor", "precision", "start_layer", "split"),
    ),
    "scenarios.csv": (
        *("criterion", "beta", "start_layer", "predictor", "batch_size", "device", "accuracy"),
        *("latency_ms", "busy_share", "energy_per_request_mj", "idle_energy_per_request_mj"),
        *("requests_per_hour", "energy_per_hour_j", "power_w", "energy_source", "idle_source"),
        "latency_source",
    ),
    GOVERNED: (
        *("criterion", "beta", "start_layer", "predictor", "device_class", "operating_point"),
        *("deadline_ms", "calibration_accuracy", "latency_ms", "latency_p99_ms", "missed"),
        *("switches", "points", "busy_energy_mj", "energy_source", "latency_source"),
        *("energy_vs_full", "energy_vs_every_exit", "claim_vs_full", "claim_vs_every_exit"),
    ),
}
SCENES = ("continuous", "periodic")
GOVERNORS = ("fixed", "race-to-idle", "proportional", "deadline", "deadline-safe")
WRITERS = {
    "cost.csv": "profile",
    **dict.fromkeys(("sweep.csv", "comparison.csv", "scenarios.csv"), "sweep"),
    **dict.fromkeys(("prediction.csv", "prediction_confusion.csv"), "sweep"),
}
"""The command that writes a table; all others are of 'exitbench govern'."""
MISSING = {
    "cost.csv": "There is no cost table (cost.csv), so the cost per layer is not shown; "
    "'exitbench profile' writes one.",
    "comparison.csv": "There is no comparison at equal accuracy (comparison.csv); 'exitbench "
    "sweep' writes it.",
    "prediction.csv": "How often the forecasts are right is not shown: there is no prediction.csv"
    "; 'exitbench sweep' writes it.",
    "prediction_confusion.csv": "The confusion of forecast and true jumps is not shown: there is "
    "no prediction_confusion.csv; 'exitbench sweep' writes it.",
    "scenarios.csv": "Energy per hour on a schedule, idle time included, is not shown: there is no "
    "scenarios.csv; 'exitbench sweep' writes it where the cost table has batch size 1.",
    GOVERNED: "What setting the clocks after each forecast would bring is not shown: there is no "
    "governed-HARDWARE.csv; 'exitbench govern' writes one.",
    "measurements.jsonl": "Nothing was really run (no measurements.jsonl): every cost below is "
    "replayed from the cost table and not yet confirmed; 'exitbench run' does that.",
}

MEASURED_NUMBERS = (
    *("accuracy", "macs", "samples", "repeats", "batch_size", "beta", "start_layer"),
    *("latency_ms", "latency_low_ms", "latency_high_ms", "energy_mj", "same_decisions"),
    *("replay_accuracy", "replay_latency_ms", "replay_energy_mj"),
    *("net_energy_mj", "energy_uncertainty_mj", "period_ms", "deadline_ms", "missed"),
    *("idle_w", "meter_overhead", "power_w", "energy_per_hour_j", "switches"),
    *("rebatch_wait", "waited_batches", "longest_wait_batches", "rows_per_segment"),
)
RUN_KEY = (
    *SETTING,
    *PLACE,
    *("runtime", "scene", "period_ms", "governor", "deadline_ms", "clocks", "rebatch_wait"),
)
"""What tells one really run setting from another: the last run of each counts."""
