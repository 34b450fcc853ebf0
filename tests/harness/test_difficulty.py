"""Easy and hard samples, and the file that lists them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exitbench.harness.difficulty import (
    easy_positions,
    first_exits,
    hard_positions,
    read_samples,
    sample_list,
    write_samples,
)
from exitbench.harness.errors import ExitbenchError

# Eight exits; 9 is the classifier.
EXIT_AT = np.array([1, 9, 2, 3, 9, 8, 2])


def test_easy_samples_leave_at_or_before_the_given_exit() -> None:
    assert easy_positions(EXIT_AT, 8, last_exit=3).tolist() == [0, 2, 3, 6]


def test_the_first_exits_are_a_quarter_of_all_and_at_least_one() -> None:
    assert [first_exits(exits) for exits in (1, 3, 8, 20, 32)] == [1, 1, 2, 5, 8]
    assert easy_positions(EXIT_AT, 8).tolist() == [0, 2, 6]


def test_hard_samples_reach_the_classifier() -> None:
    assert hard_positions(EXIT_AT, 8).tolist() == [1, 4]


def test_no_sample_is_easy_and_hard() -> None:
    assert not np.intersect1d(easy_positions(EXIT_AT, 8, 8), hard_positions(EXIT_AT, 8)).size


@pytest.mark.parametrize("last_exit", [0, 9])
def test_an_exit_that_is_not_there_is_refused(last_exit: int) -> None:
    with pytest.raises(ExitbenchError, match=f"exit is {last_exit}, but the exits go from 1 to 8"):
        easy_positions(EXIT_AT, 8, last_exit)


def test_a_split_without_easy_samples_says_where_the_first_leaves() -> None:
    with pytest.raises(ExitbenchError, match=r"none of the 2 samples.*the first leaves at 5"):
        easy_positions(np.array([5, 9]), 8)


def test_a_split_without_hard_samples_says_where_the_last_leaves() -> None:
    with pytest.raises(ExitbenchError, match=r"none of the 2 samples.*last leaves at exit 4"):
        hard_positions(np.array([2, 4]), 8)


@pytest.mark.parametrize(
    ("exit_at", "message"),
    [
        (np.array([0, 3]), "go from 0 to 3"),
        (np.array([1, 10]), "go from 1 to 10"),
        (np.array([1.0, 2.0]), "one integer per sample"),
        (np.array([], int), "at least one sample"),
        (np.ones((2, 2), int), "one integer per sample"),
    ],
)
def test_exits_out_of_range_are_refused(exit_at: np.ndarray, message: str) -> None:
    with pytest.raises(ExitbenchError, match=message):
        hard_positions(exit_at, 8)


def test_a_list_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "hard.json"
    samples = sample_list("digits", "test", 7, np.array([4, 1]), difficulty="hard", beta=0.9)
    write_samples(path, samples)
    assert read_samples(path, "digits", "test", 7) == samples
    assert samples.positions == (1, 4)
    assert json.loads(path.read_text())["chosen"] == {"difficulty": "hard", "beta": 0.9}


@pytest.mark.parametrize(
    ("positions", "message"), [([], "empty"), ([7], "0 to 6"), ([-1], "0 to 6"), ([1, 1], "twice")]
)
def test_positions_that_do_not_fit_are_refused(positions: list[int], message: str) -> None:
    with pytest.raises(ExitbenchError, match=message):
        sample_list("digits", "test", 7, positions)


def test_a_list_of_another_split_says_everything_that_differs(tmp_path: Path) -> None:
    path = tmp_path / "easy.json"
    write_samples(path, sample_list("cifar10", "calibration", 50, [3]))
    with pytest.raises(ExitbenchError) as caught:
        read_samples(path, "digits", "test", 7)
    message = str(caught.value)
    assert str(path) in message
    assert "dataset is 'cifar10', but it is to be used with 'digits'" in message
    assert "split is 'calibration', but it is to be used with 'test'" in message
    assert "size is 50, but it is to be used with 7" in message
    assert "exitbench subset" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema 2"),
        ({"positions": "all"}, "positions is 'all'"),
        ({"positions": [1, 2.5]}, "positions holds 2.5"),
        ({"positions": [True]}, "positions holds True"),
        ({"positions": [1, 9]}, "positions holds 9, but they go from 0 to 6"),
        ({"size": "seven"}, "size is 'seven'"),
        ({"chosen": None}, "chosen is None"),
    ],
)
def test_a_list_changed_by_hand_is_checked(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "list.json"
    write_samples(path, sample_list("digits", "test", 7, [1]))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ExitbenchError, match=message):
        read_samples(path, "digits", "test", 7)


@pytest.mark.parametrize("text", ["[1, 2]", "{}", "{", ""])
def test_a_file_that_is_no_list_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ExitbenchError, match=str(path)):
        read_samples(path, "digits", "test", 7)


def test_missing_keys_are_all_named(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text('{"schema": 1, "dataset": "digits"}')
    with pytest.raises(ExitbenchError, match=r"(?s)split is missing.*size is missing.*positions"):
        read_samples(path, "digits", "test", 7)
