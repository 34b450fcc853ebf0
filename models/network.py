"""A network cut at its exit points: segments and heads, and no policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ..harness.errors import ExitbenchError
from .blocks import Classifier, State, main_path
from .counting import NetworkCounts, network_counts
from .heads import ExitHead, make_head


@dataclass(frozen=True)
class ExitPoint:
    """A place in the backbone where a head can be attached.

    Attributes:
        name: the name of the backbone unit after which it lies.
        stage: 1-based stage of the backbone (between two changes of resolution).
        channels: channels of the feature map there.
        side: height and width of the feature map there.
        window: side of the head's pooling window.
    """

    name: str
    stage: int
    channels: int
    side: int
    window: int


class ExitNetwork(nn.Module):
    """An ordered list of segments and heads.

    Exits are numbered 1..E in depth order; E + 1 is the classifier. Segment i holds the layers
    between exit i - 1 and exit i; segment E + 1 those between the last exit and the classifier.
    A backbone unit keeps its name whatever exits are chosen, so that a checkpoint of the backbone
    fits every choice.

    Args:
        units: the backbone's units by name, in depth order.
        candidates: every exit point of the architecture, in depth order.
        classifier: what turns the last state into logits.
        classes: number of classes.
        input_side: height and width of the input images.
        exits: which candidates get a head, as 1-based numbers; all if None; none if empty.
        share_heads: bag-of-features shared within a stage, linear layers across all exits.
    """

    def __init__(
        self,
        units: dict[str, nn.Module],
        candidates: Sequence[ExitPoint],
        classifier: Classifier,
        classes: int,
        input_side: int,
        exits: Sequence[int] | None = None,
        share_heads: bool = False,
    ) -> None:
        super().__init__()
        self.classes = classes
        self.input_side = input_side
        self.candidates = tuple(candidates)
        self.exit_points = tuple(self.candidates[i - 1] for i in _chosen(exits, len(candidates)))
        self.backbone = nn.ModuleDict(units)
        self.classifier = classifier
        self.heads = nn.ModuleDict(_make_heads(self.exit_points, classes, share_heads))
        self._segments = _cut(list(units), [point.name for point in self.exit_points])

    @property
    def num_exits(self) -> int:
        """E: how many exits there are besides the classifier."""
        return len(self.exit_points)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one input image: (channels, height, width)."""
        return (3, self.input_side, self.input_side)

    def segment_units(self, number: int) -> list[tuple[str, nn.Module]]:
        """The named backbone units of segment ``number`` (1..E + 1), in order."""
        return [(name, self.backbone[name]) for name in self._segments[number - 1]]

    def head(self, number: int) -> ExitHead:
        """The head at exit ``number`` (1..E)."""
        head = self.heads[self.exit_points[number - 1].name]
        assert isinstance(head, ExitHead)
        return head

    def run_segment(self, number: int, state: State) -> State:
        """The state after segment ``number``, from the state before it."""
        for _, unit in self.segment_units(number):
            state = unit(state)
        return state

    def run_head(self, number: int, state: State) -> Tensor:
        """Logits (N, classes) of head ``number`` on the state at its exit point."""
        logits: Tensor = self.head(number)(main_path(state))
        return logits

    def run_classifier(self, state: State) -> Tensor:
        """Logits (N, classes) of the backbone's own classifier on the last state."""
        logits: Tensor = self.classifier(main_path(state))
        return logits

    def run_backbone(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of the network without exits; images (N, 3, side, side)."""
        state: State = images
        for unit in self.backbone.values():
            state = unit(state)
        return self.run_classifier(state)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Logits (N, classes) of every head in depth order, then of the classifier."""
        logits: list[Tensor] = []
        state: State = images
        for number in range(1, self.num_exits + 1):
            state = self.run_segment(number, state)
            logits.append(self.run_head(number, state))
        state = self.run_segment(self.num_exits + 1, state)
        logits.append(self.run_classifier(state))
        return logits

    def counts(self) -> NetworkCounts:
        """MACs, FLOPs, parameters and bytes of every segment and head, for one sample."""
        return network_counts(self)

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the network without its exits."""
        yield from self.backbone.parameters()
        yield from self.classifier.parameters()

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the heads, each once."""
        return self.heads.parameters()


def scaled(channels: int, width: float) -> int:
    """``channels`` times ``width``, to the nearest multiple of 8 and at least 8."""
    return max(8, int(channels * width / 8 + 0.5) * 8)


def check_arguments(classes: int, input_side: int, width: float) -> None:
    """Refuse arguments that no network of this package can be built with.

    Raises:
        ExitbenchError: naming the argument, its value and what is allowed.
    """
    if classes < 2:
        raise ExitbenchError(f"classes is {classes}; a classifier needs at least 2")
    if input_side < 32 or input_side % 32:
        raise ExitbenchError(
            f"input side is {input_side}; it must be a multiple of 32 (32, 64, 96, ...), "
            "since the networks halve the resolution up to five times"
        )
    if not 0 < width <= 8:
        raise ExitbenchError(f"width is {width}; it must be above 0 and at most 8")


def _chosen(exits: Sequence[int] | None, count: int) -> list[int]:
    if exits is None:
        return list(range(1, count + 1))
    numbers = list(exits)
    if numbers != sorted(set(numbers)) or any(not 1 <= n <= count for n in numbers):
        raise ExitbenchError(
            f"exits are {numbers}; they must be rising numbers from 1 to {count} without repeats"
        )
    return numbers


def _cut(units: list[str], points: list[str]) -> list[list[str]]:
    segments: list[list[str]] = [[]]
    for name in units:
        segments[-1].append(name)
        if name in points:
            segments.append([])
    return segments


def _make_heads(
    points: Sequence[ExitPoint], classes: int, share: bool
) -> dict[str, nn.Module]:
    heads: dict[str, nn.Module] = {}
    shared: dict[object, nn.Module] = {}
    for point in points:
        head = make_head(point.channels, point.side, point.window, classes)
        if share:
            bag = shared.setdefault((point.stage, point.channels), head.bag)
            classify = shared.setdefault("classify", head.classify)
            reduce = head.reduce
            if reduce is not None:
                reduce = shared.setdefault(("reduce", reduce.in_features), reduce)  # type: ignore[assignment]
            head = ExitHead(bag, reduce, classify)  # type: ignore[arg-type]
        heads[point.name] = head
    return heads
