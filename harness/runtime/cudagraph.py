"""CUDA graphs on an NVIDIA GPU: a stretch, its head and the criterion as one launch.

At small batches a GPU waits for Python to launch one small kernel after the other. A graph launches
all kernels between two checks at once, and one copy brings label, confidence and rounds to the
host. The arithmetic is that of ``eager``, whose operators are captured; only cuDNN's choice of
algorithm may differ. ``cudagraph_network.py`` has the rules, ``cudagraph_capture.py`` what touches
the GPU.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...models.blocks import State
from ...models.network import ExitNetwork
from ..answers import Answers, LogitAnswers, Question
from ..errors import ExitbenchError
from ..predictors import convolution_stack
from . import eager
from .base import PlannedNetwork
from .cudagraph_capture import Capture, CudaCapture
from .cudagraph_memory import Layout, tensors
from .cudagraph_network import NAME as NAME
from .cudagraph_network import GraphNetwork
from .cudagraph_store import Store

TOLERANCES = {"fp32": 1e-3, "tf32": 2e-2, "bf16": 6e-2, "fp16": 2e-2}
"""Of a stretch's state, relative to eager's from the same input (L2 norm). Up to 18 layers round
to 24, 11, 8 or 11 bits and sum in any order; a wrong operator or a stale input is near 1."""

HEAD_TOLERANCE = 2e-3
"""Of logits (relative) and of confidences and rounds in 0..1: fp32, rounds stored as float16."""

TRIED = 3
"""Images of the self-test: not a power of two, so that padding takes part."""


def unavailable(precision: str, device: torch.device) -> str | None:
    """Why CUDA graphs cannot run ``precision`` on ``device``, None if they can."""
    if precision not in TOLERANCES:
        return f"CUDA graphs run {', '.join(TOLERANCES)}, not {precision}"
    reason = eager.unavailable(precision, device)
    if reason is not None:
        return reason
    if device.type != "cuda":
        return f"CUDA graphs need an NVIDIA GPU, and {device} is none"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is not built for CUDA, whose graphs this runtime uses"
    return None


def prepare_graphs(
    network: ExitNetwork, precision: str, device: torch.device, images: Tensor | None, ranges: str
) -> GraphNetwork:
    """The network as CUDA graphs, compared with eager on ``images`` or on noise.

    Raises:
        ExitbenchError: the self-test fails.
    """
    inner = eager.prepare_eager(network, precision, device, images, ranges)
    samples = eager.sample_images(network, images, TRIED).to(device)
    return assemble(inner, CudaCapture(device), samples)


def assemble(
    inner: PlannedNetwork, capture: Capture, images: Tensor, store: Store | None = None
) -> GraphNetwork:
    """The network ``inner`` in what ``capture`` captures, tested on ``TRIED`` images.

    Raises:
        ExitbenchError: nothing can be captured, or replays differ from ``inner``.
    """
    words = f"CUDA graphs, one per stretch between checks, heads inside, of {inner.words}"
    try:
        layouts, classes = survey(inner, images[:1])
        graphs = GraphNetwork(words, inner, capture, layouts, classes, store or Store())
        compare_with_eager(graphs, images)
    except RuntimeError as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise ExitbenchError(f"CUDA graphs fail here ({reason})") from error
    return graphs


@torch.inference_mode()
def survey(inner: PlannedNetwork, image: Tensor) -> tuple[tuple[Layout, ...], int]:
    """The layouts of the images and of the state after each segment, and the number of classes."""
    state: State = image
    layouts = [Layout.of(state)]
    for number in range(1, inner.num_exits + 2):
        state = inner.run_segment(number, state)
        layouts.append(Layout.of(state))
    return tuple(layouts), inner.run_classifier(state).shape[1]


@torch.inference_mode()
def compare_with_eager(graphs: GraphNetwork, images: Tensor) -> None:
    """Require of a check, and of the rest of the network, what eager computes from the same input.

    With the images in another order the second time: a graph that does not read its input anew
    gives the first answers again. And with one image alone, which has graphs of its own.

    Raises:
        ExitbenchError: a graph cannot be captured, or differs.
    """
    inner, exits = graphs.inner, graphs.num_exits
    middle = (exits + 1) // 2
    question = Question("softmax", convolution_stack(graphs.classes).to(graphs.device))
    for batch in (images, images.roll(1, 0), images[-1:]):
        state: State = batch
        if exits:
            state, answers = graphs.run_check(1, middle, batch, question)
            _require_close(state, inner.run_stretch(1, middle, batch), graphs, f"exit {middle}")
            _require_answers(answers, inner.run_head(middle, state), question, middle)
        last = graphs.run_stretch(middle + 1, exits + 1, state)
        wanted = inner.run_stretch(middle + 1, exits + 1, state)
        _require_close(last, wanted, graphs, "the last segment")
        logits = inner.run_classifier(last)
        off = (graphs.run_classifier(last) - logits).norm().item()
        if not off <= HEAD_TOLERANCE * logits.norm().item() + 1e-6:
            raise ExitbenchError("the classifier's graph differs from eager")
        if graphs.store.failures:
            (reason,) = list(graphs.store.failures.values())[:1]
            raise ExitbenchError(f"nothing can be captured here ({reason})")


def _require_close(found: State, wanted: State, graphs: GraphNetwork, where: str) -> None:
    tolerance = TOLERANCES[graphs.precision]
    for mine, other in zip(tensors(found), tensors(wanted), strict=True):
        exact = other.float()
        if not (mine.float() - exact).norm().item() <= tolerance * exact.norm().item() + 1e-6:
            raise ExitbenchError(
                f"the graph up to {where} differs from eager by more than {tolerance:g}"
            )


def _require_answers(answers: Answers, logits: Tensor, question: Question, exit: int) -> None:
    wanted, rows = LogitAnswers(logits, question), np.arange(len(logits))
    labels = torch.from_numpy(answers.label).to(logits.device)
    short = logits.amax(1) - logits.gather(1, labels[:, None])[:, 0]
    off = (
        np.abs(answers.confidence - wanted.confidence).max(),
        np.abs(answers.rounds(rows) - wanted.rounds(rows)).max(),
        (short / (1 + logits.abs().amax(1))).max().item(),
    )
    if not all(value <= HEAD_TOLERANCE for value in off):
        raise ExitbenchError(f"the answers of head {exit} from its graph differ from eager's")
