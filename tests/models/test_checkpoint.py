"""Checkpoints: what is stored comes back, and what cannot be trusted is refused with a reason."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exitbench.harness.errors import ExitbenchError
from exitbench.models import (
    Checkpoint,
    ExitNetwork,
    ModelArguments,
    load_checkpoint,
    save_checkpoint,
)
from exitbench.models import checkpoint as checkpoint_module
from exitbench.models.checkpoint import read_header
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

NetworkFactory = Callable[..., ExitNetwork]
Saved = tuple[Path, ExitNetwork, Checkpoint]


def header_of(model: str = "vgg19", **arguments: Any) -> Checkpoint:
    return Checkpoint(
        model=model,
        arguments=ModelArguments(**{"width": 0.125, **arguments}),
        dataset="digits",
        class_names=tuple("0123456789"),
        normalisation={"mean": [0.1, 0.2, 0.3], "std": [0.9, 0.8, 0.7]},
        calibration={"activation": [1.5, 2.5]},
        training={"mode": "original", "epochs": 3, "accuracy": [0.25, 0.5]},
    )


@pytest.fixture
def save(tmp_path: Path, make_network: NetworkFactory) -> Callable[..., Saved]:
    """``save(model, **arguments)``: a network written to a file, and what was written."""

    def write(model: str = "vgg19", **arguments: Any) -> Saved:
        path = tmp_path / "network.safetensors"
        network = make_network(model, **arguments)
        header = header_of(model, **arguments)
        save_checkpoint(path, network, header)
        return path, network, header

    return write


def contents(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as handle:
        names = list(handle.keys())
        # Copies, since the file that the tensors are mapped from is about to be overwritten.
        return {name: handle.get_tensor(name).clone() for name in names}, handle.metadata()


def change(path: Path, **changes: Any) -> None:
    """Write the file again with keys of its header replaced; a value of ... removes the key."""
    tensors, metadata = contents(path)
    header = {**json.loads(metadata["exitbench"]), **changes}
    header = {key: value for key, value in header.items() if value is not ...}
    save_file(tensors, path, metadata={"exitbench": json.dumps(header)})


def change_tensors(path: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    tensors, metadata = contents(path)
    edit(tensors)
    save_file(tensors, path, metadata=metadata)


def assert_same_weights(first: ExitNetwork, second: ExitNetwork) -> None:
    expected, found = first.state_dict(), second.state_dict()
    assert list(expected) == list(found)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


# Round trips


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        ("vgg19", {}),
        ("vgg19", {"exits": (3, 10)}),
        ("vgg19", {"exits": ()}),
        ("vgg19", {"share_heads": True}),
        ("resnet34", {"classes": 7}),
        ("resnet34", {"exits": (7, 8), "input_side": 64}),
        ("resnet34", {"share_heads": True, "exits": (1, 9, 32)}),
    ],
)
def test_a_network_and_its_header_come_back_as_they_were(
    save: Callable[..., Saved], model: str, arguments: dict[str, Any]
) -> None:
    path, network, header = save(model, **arguments)
    loaded, found = load_checkpoint(path)
    images = torch.randn(2, *network.input_shape, generator=torch.Generator().manual_seed(0))

    assert found == header
    assert_same_weights(network, loaded)
    with torch.no_grad():
        pairs = zip(network(images), loaded(images), strict=True)
        assert all(torch.equal(first, second) for first, second in pairs)


def test_a_loaded_network_is_in_eval_mode_on_the_cpu(save: Callable[..., Saved]) -> None:
    network, _ = load_checkpoint(save()[0])

    assert not any(module.training for module in network.modules())
    assert {parameter.device.type for parameter in network.parameters()} == {"cpu"}


def test_shared_heads_are_stored_once_and_are_shared_again_after_loading(
    save: Callable[..., Saved],
) -> None:
    path, network, _ = save("vgg19", share_heads=True, exits=(1, 2, 4))
    loaded, _ = load_checkpoint(path)
    stored, _ = contents(path)

    assert sum(name.endswith("classify.weight") for name in stored) == 1
    assert loaded.head(1).bag is loaded.head(2).bag
    assert loaded.head(1).bag is not loaded.head(3).bag
    assert loaded.head(1).classify is loaded.head(3).classify
    assert_same_weights(network, loaded)


def test_the_header_can_be_read_without_the_network(save: Callable[..., Saved]) -> None:
    path, _, header = save()

    assert read_header(path) == header


@pytest.mark.parametrize("share_heads", [False, True])
def test_other_exits_can_be_chosen_when_loading(
    save: Callable[..., Saved], share_heads: bool
) -> None:
    path, network, _ = save("vgg19", share_heads=share_heads)
    loaded, header = load_checkpoint(path, exits=(5, 12))

    assert header.arguments.exits == (5, 12)
    assert [point.name for point in loaded.exit_points] == ["conv2_2", "conv4_1"]
    assert not loaded.training
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        everywhere, chosen = network(images), loaded(images)
    for number, logits in zip((5, 12, 21), chosen, strict=True):
        assert torch.equal(logits, everywhere[number - 1])


def test_heads_that_the_file_lacks_are_added_to_a_plain_network(
    save: Callable[..., Saved],
) -> None:
    path, network, _ = save("resnet34", exits=())
    loaded, _ = load_checkpoint(path, exits=(2, 4))

    assert loaded.num_exits == 2
    stored, found = network.state_dict(), loaded.state_dict()
    assert all(torch.equal(stored[name], found[name]) for name in stored)


# Files that are refused


def test_a_missing_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ExitbenchError, match=r"no checkpoint at .*none\.safetensors.*train"):
        load_checkpoint(tmp_path / "none.safetensors")


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExitbenchError, match="no checkpoint at"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(save: Callable[..., Saved], kept: int) -> None:
    path, _, _ = save("vgg19", exits=(1,))
    path.write_bytes(path.read_bytes()[:kept])

    with pytest.raises(ExitbenchError, match=r"network\.safetensors is not a complete safetensors"):
        load_checkpoint(path)


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.safetensors"
    path.write_text("these are no tensors, but there is enough text for a header\n" * 9)

    with pytest.raises(ExitbenchError, match=r"notes\.safetensors is not a complete safetensors"):
        load_checkpoint(path)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickled_file_is_refused_and_never_unpickled(tmp_path: Path) -> None:
    path, trigger = tmp_path / "network.pt", tmp_path / "unpickled"
    torch.save({"weights": torch.zeros(2), "bomb": Bomb(trigger)}, path)

    with pytest.raises(ExitbenchError, match=r"network\.pt is not .*never unpickled"):
        load_checkpoint(path)
    assert not trigger.exists()


def test_safetensors_of_another_program_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, path)

    with pytest.raises(ExitbenchError, match=r"other\.safetensors .*without an exitbench header"):
        load_checkpoint(path)


def test_a_header_that_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    save_file({"weight": torch.zeros(2)}, path, metadata={"exitbench": "{model: vgg19"})

    with pytest.raises(ExitbenchError, match=r"odd\.safetensors: the exitbench header is no JSON"):
        load_checkpoint(path)


@pytest.mark.parametrize("schema", [2, 0, "1", None, ...])
def test_another_schema_is_refused_with_both_numbers(
    save: Callable[..., Saved], schema: object
) -> None:
    path, _, _ = save(exits=())
    change(path, schema=schema)

    with pytest.raises(ExitbenchError, match=r"header schema .*, this version .* reads 1"):
        load_checkpoint(path)


def test_an_unknown_model_is_refused_with_the_known_ones(save: Callable[..., Saved]) -> None:
    path, _, _ = save(exits=())
    change(path, model="vgg16")

    with pytest.raises(ExitbenchError, match=r"unknown model 'vgg16', known are resnet34, vgg19"):
        load_checkpoint(path)


def test_a_model_other_than_the_expected_one_is_refused(save: Callable[..., Saved]) -> None:
    path, _, _ = save("vgg19", exits=())

    with pytest.raises(ExitbenchError, match=r"holds the model 'vgg19', but 'resnet34' was asked"):
        load_checkpoint(path, model="resnet34")
    assert load_checkpoint(path, model="vgg19")[1].model == "vgg19"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"arguments": ...}, "arguments"),
        ({"dataset": ...}, "dataset"),
        ({"arguments": {"depth": 19}}, "depth"),
        ({"surprise": 1}, "surprise"),
        ({"arguments": {"width": "wide"}}, "argument width is 'wide'"),
        ({"arguments": {"classes": 10.5}}, "argument classes is 10.5"),
        ({"arguments": {"exits": ["a"]}}, "argument exits is"),
        ({"model": ["vgg19"]}, "unknown model"),
        ({"normalisation": {"mean": [1]}}, "normalisation must hold mean and std"),
        ({"calibration": [1]}, "calibration is"),
        ({"class_names": "ab"}, "class_names is"),
    ],
)
def test_a_wrong_header_is_refused_with_the_key(
    save: Callable[..., Saved], changes: dict[str, Any], named: str
) -> None:
    path, _, _ = save(exits=())
    change(path, **changes)

    with pytest.raises(ExitbenchError, match=f"header is wrong.*{re.escape(named)}"):
        load_checkpoint(path)


def test_an_argument_out_of_range_is_refused_with_the_file(save: Callable[..., Saved]) -> None:
    path, _, _ = save(exits=())
    change(path, arguments={"classes": 10, "exits": [99]})

    with pytest.raises(ExitbenchError, match=r"safetensors: exits are \[99\]"):
        load_checkpoint(path)


def test_tensors_that_are_missing_are_named(save: Callable[..., Saved]) -> None:
    path, _, _ = save(exits=(1,))
    change_tensors(path, lambda tensors: tensors.__delitem__("classifier.linear.bias"))

    with pytest.raises(ExitbenchError, match=r"lacks tensors .*'classifier\.linear\.bias' of 1"):
        load_checkpoint(path)


def test_tensors_that_do_not_belong_there_are_named(save: Callable[..., Saved]) -> None:
    path, _, _ = save(exits=(1,))
    change_tensors(path, lambda tensors: tensors.update(stranger=torch.zeros(1)))

    with pytest.raises(ExitbenchError, match=r"has unknown tensors .*'stranger' of 1"):
        load_checkpoint(path)


def test_tensors_of_another_shape_are_named(save: Callable[..., Saved]) -> None:
    path, _, _ = save(exits=(1,))
    change(path, arguments={"classes": 12, "width": 0.125, "exits": [1]})

    with pytest.raises(ExitbenchError, match=r"has misshapen or mistyped tensors .*of 4"):
        load_checkpoint(path)


# Writing


def test_an_interrupted_write_leaves_the_old_file(
    save: Callable[..., Saved], make_network: NetworkFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _, header = save("vgg19", exits=(1,))
    before = path.read_bytes()

    def die_halfway(tensors: object, filename: Path, metadata: object) -> None:
        Path(filename).write_bytes(before[: len(before) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint_module, "save_file", die_halfway)
    other = make_network("vgg19", exits=(1,), seed=9)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, other, replace(header, dataset="mnist"))

    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_writing_again_replaces_the_whole_file(
    save: Callable[..., Saved], make_network: NetworkFactory
) -> None:
    path, _, _ = save("vgg19")
    small = make_network("vgg19", exits=(1,), seed=9)
    save_checkpoint(path, small, header_of("vgg19", exits=(1,)))
    loaded, header = load_checkpoint(path)

    assert header.arguments.exits == (1,)
    assert_same_weights(small, loaded)


def test_missing_folders_are_made(tmp_path: Path, make_network: NetworkFactory) -> None:
    path = tmp_path / "a" / "b" / "network.safetensors"
    save_checkpoint(path, make_network(exits=()), header_of(exits=()))

    assert path.is_file()


def test_a_place_that_cannot_hold_files_is_refused(
    tmp_path: Path, make_network: NetworkFactory
) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(ExitbenchError, match=r"cannot write .*file.*Choose a folder"):
        save_checkpoint(
            tmp_path / "file" / "network.safetensors", make_network(exits=()), header_of(exits=())
        )
