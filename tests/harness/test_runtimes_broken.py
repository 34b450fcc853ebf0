"""A runtime that computes wrongly, fails or is missing gives way to the next, which says why.

Every runtime but the last resort has its ways to break; a new entry of the registry needs some.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from exitbench.harness import cli
from exitbench.harness.errors import ExitbenchError
from exitbench.harness.runtime import (
    RUNTIMES,
    cudagraph,
    eager,
    onednn_float,
    onednn_int8,
    openvino_graph,
    openvino_models,
    prepare,
    registry,
)
from runtime_lab import EAGER, Case, Lab, cases, close, everything, pictures
from torch import Tensor

if TYPE_CHECKING:
    from pipeline_fixtures import Inputs

LAST_RESORT = eager.NAME
Patch = pytest.MonkeyPatch
Break = Callable[[Patch], None]


def fails(*arguments: Any) -> Tensor:
    raise RuntimeError("could not create a primitive\nat some line")


def _operator(module: Any, name: str, wrong: Callable[..., Any]) -> Break:
    """Lets the runtime of ``module`` find ``wrong(real)`` in the place of an operator."""

    def apply(monkeypatch: Patch) -> None:
        real = module.find_operators()
        changed = dataclasses.replace(real, **{name: wrong(getattr(real, name))})
        monkeypatch.setattr(module, "find_operators", lambda: changed)

    return apply


def _operator_ways(
    module: Any, space: str, given: Callable[[Tensor], Tensor], result: Callable[[Tensor], Tensor]
) -> dict[str, Break]:
    """Ways to break each private operator.

    Args:
        space: the part of ``torch.ops`` that they are looked up in.
        given: what a packing operator that is wrong makes of the weights.
        result: what another operator that is wrong makes of its result.
    """
    ways: dict[str, Break] = {
        "operators missing": lambda m: m.setattr(torch.ops, space, types.SimpleNamespace()),
    }
    for item in dataclasses.fields(module.Operators):
        name = item.name
        ways[f"{name} fails"] = _operator(module, name, lambda real: fails)
        if "pack" in name:
            ways[f"{name} is wrong"] = _operator(
                module, name, lambda real: lambda w, *rest: real(given(w), *rest)
            )
        else:
            ways[f"{name} is wrong"] = _operator(
                module, name, lambda real: lambda *arguments: result(real(*arguments))
            )
    return ways


def _one_channel_off(y: Tensor) -> Tensor:
    y[:, 0].add_(2)
    return y


def _no_number(y: Tensor) -> Tensor:
    return y.mul_(float("nan"))


def _on_small_maps(real: Callable[..., Tensor], wrong: Callable[..., Tensor]) -> Any:
    return lambda x, *rest: (wrong if x.shape[-1] == 4 else real)(x, *rest)


def _without_openvino(monkeypatch: Patch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "openvino"]:
        monkeypatch.setitem(sys.modules, name, None)


def _wrong_models(monkeypatch: Patch) -> None:
    real = openvino_models.Model.__call__

    def call(model: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        real(model, inputs, outputs)
        for y in outputs:
            y.add_(2) if y.dtype == torch.uint8 else y.mul_(1.05)

    monkeypatch.setattr(openvino_models.Model, "__call__", call)


def _without_capture(monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch.cuda.CUDAGraph, "capture_begin", fails)


def _stale_replays(monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: None)


BREAKS: dict[str, dict[str, Break]] = {
    # bf16 itself is 0.4% off, and so its self-test allows 3%.
    onednn_float.NAME: {
        **_operator_ways(onednn_float, "mkldnn", lambda w: w * 1.05, lambda y: y.mul_(1.05)),
        "no number": _operator(
            onednn_float, "conv", lambda real: lambda *arguments: _no_number(real(*arguments))
        ),
    },
    onednn_int8.NAME: {
        **_operator_ways(onednn_int8, "onednn", lambda w: w // 2, lambda y: y.add_(2)),
        # The check of the operators alone does not see these, that of the network's units does.
        "conv fails on small maps": _operator(
            onednn_int8, "conv", lambda real: _on_small_maps(real, fails)
        ),
        "conv is wrong in one channel of small maps": _operator(
            onednn_int8,
            "conv",
            lambda real: _on_small_maps(real, lambda *given: _one_channel_off(real(*given))),
        ),
    },
    openvino_graph.NAME: {
        "not installed": _without_openvino,
        "models fail": lambda m: m.setattr(openvino_models.Model, "__call__", fails),
        "models are wrong": _wrong_models,
        "nothing can be compiled": lambda m: m.setattr(openvino_models.Model, "__init__", fails),
    },
    cudagraph.NAME: {
        "nothing can be captured": _without_capture,
        "replays do nothing": _stale_replays,
        "torch without CUDA": lambda m: m.setattr(torch.version, "cuda", None),
    },
}
BROKEN = [
    pytest.param(*parameter.values, how, id=f"{parameter.id}-{how}", marks=parameter.marks)
    for parameter in cases()
    for how in BREAKS.get(parameter.values[0].runtime, {})
]


@pytest.fixture
def foremost(monkeypatch: Patch) -> Callable[[str], None]:
    """Puts a runtime first in the registry, also one that is not chosen unless by its name."""

    def put(name: str) -> None:
        ordered = {name: dataclasses.replace(RUNTIMES[name], by_name=False)} | {
            other: entry for other, entry in RUNTIMES.items() if other != name
        }
        monkeypatch.setattr(registry, "RUNTIMES", ordered)

    return put


def following(case: Case) -> str | None:
    """The runtime that serves when that of ``case`` does not."""
    where = torch.device(case.device)
    for name, entry in RUNTIMES.items():
        if name == case.runtime or entry.by_name or case.precision not in entry.precisions:
            continue
        if entry.unavailable(case.precision, where) is None:
            return name
    return None


def test_every_runtime_but_the_last_resort_is_broken_here() -> None:
    assert set(BREAKS) | {LAST_RESORT} >= set(RUNTIMES)


@pytest.mark.parametrize(("case", "how"), BROKEN)
def test_what_is_broken_gives_way_to_the_next_with_a_message(
    lab: Lab, case: Case, how: str, monkeypatch: Patch, foremost: Callable[[str], None]
) -> None:
    network, images = lab.network("resnet34"), pictures(16, seed=8)[0]
    foremost(case.runtime)
    assert prepare(network, case.precision, case.device, images).name == case.runtime
    BREAKS[case.runtime][how](monkeypatch)
    with pytest.raises(ExitbenchError, match=f"cannot prepare {case.precision}") as caught:
        prepare(network, case.precision, case.device, images, runtime=case.runtime)
    named = f"{case.runtime}: "
    assert named in str(caught.value)
    reason = str(caught.value).partition(named)[2]
    assert len(reason.split()) > 3
    assert "\n" not in reason
    successor = following(case)
    if successor is None:
        with pytest.raises(ExitbenchError) as caught:
            prepare(network, case.precision, case.device, images)
        assert reason in str(caught.value)
        return
    prepared = prepare(network, case.precision, case.device, images)
    assert prepared.name == successor
    assert prepared.precision == case.precision
    assert prepared.words.endswith(f" (not {named}{reason})")
    found = torch.stack(everything(prepared, images.to(case.device))[1], 1)
    exact = torch.stack(everything(lab.prepared(EAGER, "resnet34"), images)[1], 1)
    close(found, exact, case.bounds.error)


def test_the_first_that_can_serves_and_says_nothing_of_others(lab: Lab) -> None:
    for device, precision in {(p.values[0].device, p.values[0].precision) for p in cases()}:
        prepared = prepare(lab.network("vgg19"), precision, device, pictures(16, seed=8)[0])
        able = [
            name
            for name, entry in RUNTIMES.items()
            if precision in entry.precisions
            and not entry.by_name
            and entry.unavailable(precision, torch.device(device)) is None
        ]
        assert prepared.name == able[0]
        if device == "cpu":
            assert " (not " not in prepared.words


@pytest.fixture
def broken_onednn(monkeypatch: Patch) -> None:
    """A CPU on which oneDNN's prepacked convolution is wrong; skips where there is none."""
    if onednn_float.unavailable("fp32", torch.device("cpu")) is not None:
        pytest.skip("no oneDNN here")
    BREAKS[onednn_float.NAME]["conv is wrong"](monkeypatch)


def test_trace_and_profile_tell_who_serves_and_why(
    broken_onednn: None, inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    on = ["--run", str(run), "--device", "cpu", "--threads", "1"]
    assert cli.main(["trace", "--checkpoint", str(inputs.vgg), "--limit", "12", *on]) == 0
    said = capsys.readouterr()
    assert "not onednn: unit" in said.out + said.err
    noted = json.loads((run / "manifest.json").read_text())["precisions"]["fp32"]
    assert (noted["runtime"], noted["available"], noted["reason"]) == ("eager", True, None)
    assert "not onednn: unit" in noted["words"]
    assert "differs from eager" in noted["words"]

    seconds = ["--batch-sizes", "2", "--seconds", "0.05", "--no-energy"]
    assert cli.main(["profile", *seconds, *on]) == 0
    said = capsys.readouterr()
    # What the traces were recorded with is asked for by name: nothing is passed over.
    assert "fp32: fp32 by torch's own convolutions" in said.out + said.err
    assert "(not" not in said.out + said.err
    alone = tmp_path / "alone"
    on = ["--run", str(alone), "--device", "cpu", "--threads", "1"]
    assert cli.main(["profile", "--checkpoint", str(inputs.vgg), *seconds, *on]) == 0
    said = capsys.readouterr()
    assert "not onednn: unit" in said.out + said.err
    noted = json.loads((alone / "manifest.json").read_text())["precisions"]["fp32"]
    assert (noted["runtime"], noted["available"]) == ("eager", True)
    assert "not onednn: unit" in noted["words"]


def test_a_broken_runtime_that_was_asked_for_ends_the_command(
    broken_onednn: None, inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["trace", "--checkpoint", str(inputs.vgg), "--run", str(tmp_path / "run")]
    assert cli.main([*words, "--device", "cpu", "--limit", "12", "--runtime", "onednn"]) == 2
    assert "onednn: unit 'conv1_1' differs from eager" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.npz"))


def test_int8_that_is_broken_is_refused_before_anything_is_written(
    inputs: Inputs, tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    if onednn_int8.unavailable("int8", torch.device("cpu")) is not None:
        pytest.skip("no int8 here")
    BREAKS[onednn_int8.NAME]["conv is wrong"](monkeypatch)
    run = tmp_path / "run"
    words = ["trace", "--checkpoint", str(inputs.vgg), "--run", str(run), "--device", "cpu"]
    assert cli.main([*words, "--precisions", "int8"]) == 2
    assert "differs from the reference" in capsys.readouterr().err
    assert not run.exists()
