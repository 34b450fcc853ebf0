"""Every precision is known everywhere, and means what it says."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from exitbench.harness.configs import Precision, StudyConfig
from exitbench.harness.errors import ExitbenchError
from exitbench.harness.profiler import ELEMENT_BYTES
from exitbench.harness.roofline import PEAK_OF
from exitbench.harness.runtime import PRECISIONS, RUNTIMES, availability, eager
from exitbench.harness.runtime.base import exit_modules
from exitbench.harness.runtime.plan import make_plan
from exitbench.harness.subject import usable_precisions
from exitbench.models.network import ExitNetwork
from exitbench.profiles.schema import PEAKS
from exitbench.reports import figures_roofline, style, view

KNOWN = get_args(Precision)
CPU = torch.device("cpu")


def test_all_lists_name_the_same_precisions_in_the_same_order() -> None:
    assert KNOWN == PRECISIONS == view.PRECISIONS
    for table in (ELEMENT_BYTES, PEAK_OF, style.PRECISION_LOOKS, figures_roofline.ROOFS):
        assert tuple(table) == KNOWN
    assert set(PEAK_OF.values()) <= set(PEAKS)
    assert {name for entry in RUNTIMES.values() for name in entry.precisions} == set(KNOWN)


def test_each_looks_like_no_other_in_colour_and_in_black_and_white() -> None:
    colours, hatches = zip(*style.PRECISION_LOOKS.values(), strict=True)
    assert len(set(colours)) == len(set(hatches)) == len(KNOWN)


def test_bytes_are_those_of_an_element() -> None:
    assert ELEMENT_BYTES == {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2, "int8": 1}
    for name, dtype in eager.DTYPES.items():
        assert dtype.itemsize == ELEMENT_BYTES[name]


def test_fp32_has_its_own_roof_and_not_that_of_tf32() -> None:
    peaks = {
        name: figures_roofline.Roof(name, value, False)
        for name, value in (("fp32_gflops", 1.0), ("tf32_gflops", 8.0), ("fp16_gflops", 16.0))
    }
    roofs = {name: figures_roofline.compute_roofs(peaks, name) for name in KNOWN}
    values = {name: [roof.value for _, roof in found] for name, found in roofs.items()}
    assert values == {"fp32": [1.0], "tf32": [8.0], "bf16": [16.0], "fp16": [16.0], "int8": []}


def test_the_cpu_leaves_out_what_only_a_gpu_has() -> None:
    said: list[str] = []
    usable, missing = usable_precisions(("fp32", "tf32", "fp16"), CPU, False, said.append)
    assert usable == ["fp32"]
    assert missing.keys() == {"tf32", "fp16"}
    assert "NVIDIA GPUs have from Ampere on. Use fp32, bf16 or int8 on the CPU" in missing["tf32"]
    assert "would be emulated" in missing["fp16"]
    assert said == [f"leaving out {name}: {why}" for name, why in missing.items()]
    with pytest.raises(ExitbenchError, match="precision tf32 cannot be run: cpu has no TF32"):
        usable_precisions(("fp32", "tf32"), CPU, True, said.append)
    assert StudyConfig.__dataclass_fields__["precisions"].default == ("fp32", "bf16", "int8")


@pytest.mark.parametrize("precision", ["tf32", "fp16"])
def test_the_reason_is_said_once(precision: str) -> None:
    reason = availability(precision, "cpu")
    assert reason == eager.unavailable(precision, CPU)


@pytest.mark.parametrize("precision", list(eager.DTYPES))
def test_a_gpu_computes_as_the_precision_says_and_the_process_does_not(
    tiny_vgg: ExitNetwork, precision: str
) -> None:
    """The settings are the process's, so they can be seen from inside without a GPU."""
    seen: list[tuple[str, ...]] = []

    def settings() -> tuple[str, ...]:
        backends = torch.backends
        found = backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision
        return tuple("ieee" if name == "none" else name for name in found)

    def look(x: torch.Tensor, *_: object) -> torch.Tensor:
        seen.append(settings())
        return x

    plan = make_plan(tiny_vgg, eager.EagerKit(eager.DTYPES[precision], CPU))
    plan = type(plan)(
        plan.enter,
        tuple((look, *steps) for steps in plan.segments),
        tuple(lambda x, own=own: own(look(x)) for own in plan.features),
        plan.names,
    )
    heads, classifier = exit_modules(tiny_vgg, CPU)
    network = eager.EagerOnCuda("eager", "", precision, CPU, plan, heads, classifier)
    before = settings()
    state = network.run_stretch(1, 2, torch.randn(1, 3, 32, 32))
    assert seen == [("tf32" if precision == "tf32" else "ieee", "ieee")] * 2
    network.run_head(2, state)
    network.run_classifier(network.run_stretch(3, 21, state))
    assert {products for _, products in seen} == {"ieee"}
    assert settings() == before


def test_a_network_that_exceeds_fp16_is_refused(tiny_vgg: ExitNetwork) -> None:
    prepared = eager.prepare_eager(tiny_vgg, "fp16", CPU, None, "")
    assert (prepared.precision, prepared.name) == ("fp16", "eager")
    with torch.no_grad():
        for block in tiny_vgg.backbone.children():
            if hasattr(block, "bn"):
                block.bn.weight.fill_(1e3)
    eager.prepare_eager(tiny_vgg, "bf16", CPU, None, "")
    with pytest.raises(ExitbenchError, match="exceed what fp16 can hold"):
        eager.prepare_eager(tiny_vgg, "fp16", CPU, torch.randn(4, 3, 32, 32), "")
