"""Specifications, the embedded digits, splits, batches and augmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from exitbench.harness.data import (
    Augmentation,
    Dataset,
    Split,
    augment,
    batches,
    load_dataset,
    normalise,
    splits,
    subset,
)
from exitbench.harness.errors import ExitbenchError

PLAIN = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}


def pixels(count: int, side: int = 32, seed: int = 0) -> np.ndarray:
    shape = (count, side, side, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def stored(folder: Path, x_train: np.ndarray) -> str:
    """An npz file with these training images, as a specification."""
    y_train, x_test, y_test = np.arange(len(x_train)) % 3, pixels(3, seed=1), np.arange(3)
    np.savez(folder / "data.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return f"npz:{folder / 'data.npz'}"


def dataset(counts: tuple[int, ...] = (60, 30, 10)) -> Dataset:
    labels = np.random.default_rng(3).permutation(np.repeat(np.arange(len(counts)), counts))
    return Dataset(
        name="made",
        x_train=pixels(len(labels), side=4),
        y_train=labels,
        x_test=pixels(6, side=4),
        y_test=np.arange(6) % len(counts),
        class_names=tuple("abc"[: len(counts)]),
        side=4,
        augmentation=Augmentation(1, True),
        normalisation=PLAIN,
    )


def split_of(images: np.ndarray) -> Split:
    count = len(images)
    return Split("train", images, np.arange(count) % 3, np.arange(count))


# ---------------------------------------------------------------- digits and specifications


def test_digits_are_rgb_images_of_32_pixels_with_a_stratified_test_fifth() -> None:
    digits = load_dataset("digits")
    assert digits.x_train.shape == (1442, 32, 32, 3)
    assert digits.x_test.shape == (355, 32, 32, 3)
    assert digits.x_train.dtype == np.uint8
    assert digits.y_train.dtype == np.int64
    assert digits.x_train.max() == 255
    assert np.array_equal(digits.x_train[..., 0], digits.x_train[..., 2])
    every = np.bincount(digits.y_train) + np.bincount(digits.y_test)
    assert np.array_equal(np.bincount(digits.y_test), every // 5)
    assert digits.classes == 10
    assert digits.augmentation == Augmentation(crop_padding=4, mirror=False)


def test_digits_are_the_same_every_time_and_in_the_side_asked_for() -> None:
    first, again = load_dataset("digits"), load_dataset("digits", side=64)
    assert np.array_equal(first.y_test, again.y_test)
    assert again.x_test.shape[1:] == (64, 64, 3)
    assert again.augmentation.crop_padding == 8


def test_normalisation_is_that_of_the_training_images(tmp_path: Path) -> None:
    images = pixels(12)
    loaded = load_dataset(stored(tmp_path, images))
    scaled = images / 255
    # Rounding of double precision only.
    assert np.allclose(loaded.normalisation["mean"], scaled.mean(axis=(0, 1, 2)), rtol=1e-12)
    assert np.allclose(loaded.normalisation["std"], scaled.std(axis=(0, 1, 2)), rtol=1e-12)


def test_images_without_any_contrast_still_normalise_to_finite_values(tmp_path: Path) -> None:
    loaded = load_dataset(stored(tmp_path, np.full((12, 32, 32, 3), 7, np.uint8)))
    assert torch.isfinite(normalise(loaded.x_test, loaded.normalisation)).all()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cifar", "Did you mean cifar10"),
        ("imagenet", r"there is no dataset 'imagenet'.*folder:DIR.*npz:FILE.*svhn"),
        ("folder:", "write folder:DIR"),
        ("npz", "write npz:FILE"),
        ("digits:here", "takes no place"),
    ],
)
def test_a_specification_that_means_nothing_says_what_would(spec: str, message: str) -> None:
    with pytest.raises(ExitbenchError, match=message):
        load_dataset(spec)


@pytest.mark.parametrize("side", [0, -32, 28, 40])
def test_a_side_that_no_network_takes_is_refused(side: int) -> None:
    with pytest.raises(ExitbenchError, match=f"side is {side} pixels.*multiple of 32"):
        load_dataset("digits", side=side)


# ---------------------------------------------------------------- splits


def test_calibration_is_disjoint_from_train_and_together_they_are_all_of_it() -> None:
    made = dataset()
    parts = splits(made, seed=1)
    together = np.concatenate([parts["train"].indices, parts["calibration"].indices])
    assert sorted(together) == list(range(100))
    for name in ("train", "calibration"):
        part = parts[name]
        assert np.array_equal(part.images, made.x_train[part.indices])
        assert np.array_equal(part.labels, made.y_train[part.indices])
    assert np.array_equal(parts["test"].images, made.x_test)
    assert [part.name for part in parts.values()] == ["train", "calibration", "test"]


def test_calibration_has_the_classes_in_the_proportions_of_train() -> None:
    made = dataset((60, 30, 10))
    assert np.bincount(splits(made)["calibration"].labels).tolist() == [6, 3, 1]
    assert np.bincount(splits(made, calibration=25)["calibration"].labels).sum() == 25


def test_the_seed_decides_the_split() -> None:
    made = dataset()
    first, again, other = (splits(made, seed)["calibration"].indices for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_train_keeps_an_image_of_each_class() -> None:
    made = dataset((4, 1, 3))
    parts = splits(made, calibration=5)
    assert np.bincount(parts["train"].labels).tolist() == [1, 1, 1]


@pytest.mark.parametrize("calibration", [0, -1, 98, 1000])
def test_a_calibration_size_that_does_not_fit_is_refused(calibration: int) -> None:
    with pytest.raises(ExitbenchError, match=f"is {calibration}, but must be 1 to 97"):
        splits(dataset(), calibration=calibration)


def test_calibration_takes_at_most_5000() -> None:
    labels = np.arange(60_000) % 3
    large = Dataset(**{**vars(dataset()), "x_train": np.zeros((60_000, 1, 1, 3), np.uint8)})
    large = Dataset(**{**vars(large), "y_train": labels})
    assert len(splits(large)["calibration"]) == 5000
    with pytest.raises(ExitbenchError, match="at most 5000"):
        splits(large, calibration=5001)


def test_one_image_per_class_leaves_none_to_calibrate() -> None:
    with pytest.raises(ExitbenchError, match="one training image per class"):
        splits(dataset((1, 1, 1)))


def test_a_subset_keeps_track_of_where_its_samples_come_from() -> None:
    part = splits(dataset())["calibration"]
    chosen = subset(part, [4, 0])
    assert np.array_equal(chosen.images, part.images[[4, 0]])
    assert chosen.indices.tolist() == [part.indices[4], part.indices[0]]
    assert chosen.name == "calibration"
    assert len(chosen) == 2


@pytest.mark.parametrize(
    ("positions", "message"),
    [([], "at least one"), ([10], "position 10"), ([-1], "position -1"), ([1, 1], "twice")],
)
def test_a_subset_that_does_not_fit_is_refused(positions: list[int], message: str) -> None:
    with pytest.raises(ExitbenchError, match=message):
        subset(splits(dataset())["calibration"], positions)


# ---------------------------------------------------------------- batches and augmentation


def test_normalised_images_are_channels_last_floats() -> None:
    images = pixels(5)
    tensor = normalise(images, {"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3]})
    assert tensor.shape == (5, 3, 32, 32)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous(memory_format=torch.channels_last)
    expected = (images / 255 - [0.5, 0.4, 0.3]) / [0.1, 0.2, 0.3]
    # Single precision of values below 10.
    assert np.allclose(tensor.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)


def test_read_only_and_strided_images_normalise_alike() -> None:
    images = pixels(6)
    frozen = images.copy()
    frozen.setflags(write=False)
    assert torch.equal(normalise(frozen[::2], PLAIN), normalise(images[::2].copy(), PLAIN))


def test_batches_hold_every_sample_once_in_order() -> None:
    split = split_of(pixels(10))
    seen = list(batches(split, 4, PLAIN))
    assert [len(labels) for _, labels, _ in seen] == [4, 4, 2]
    assert np.concatenate([positions for _, _, positions in seen]).tolist() == list(range(10))
    images = torch.cat([images for images, _, _ in seen])
    assert torch.equal(images, normalise(split.images, PLAIN))
    assert seen[0][1].dtype == torch.int64


def test_a_shuffle_is_a_permutation_that_its_seed_decides() -> None:
    split = split_of(pixels(50))

    def order(seed: int | tuple[int, ...]) -> list[int]:
        return [int(p) for *_, at in batches(split, 8, PLAIN, shuffle_seed=seed) for p in at]

    assert order(1) == order(1)
    assert order((1, 2)) != order((1, 3))
    assert sorted(order(1)) == list(range(50))


def test_augmented_batches_are_seeded_and_do_not_depend_on_the_batch_size() -> None:
    split = split_of(pixels(20))

    def epoch(batch_size: int, seed: int) -> torch.Tensor:
        varied = Augmentation(4, True)
        parts = list(batches(split, batch_size, PLAIN, shuffle_seed=seed, augmentation=varied))
        order = np.argsort(np.concatenate([positions for *_, positions in parts]))
        return torch.cat([images for images, *_ in parts])[torch.from_numpy(order)]

    assert torch.equal(epoch(7, 1), epoch(20, 1))
    assert not torch.equal(epoch(7, 1), epoch(7, 2))
    assert not torch.equal(epoch(20, 1), normalise(split.images, PLAIN))


def test_augmentation_needs_a_seed_and_a_batch_needs_an_image() -> None:
    split = split_of(pixels(4))
    with pytest.raises(ValueError, match="shuffle_seed"):
        batches(split, 2, PLAIN, augmentation=Augmentation(4, True))
    with pytest.raises(ExitbenchError, match="batch size is 0"):
        batches(split, 0, PLAIN)


def test_a_crop_moves_the_image_inside_a_black_border() -> None:
    images = pixels(3, side=8)
    offsets = np.array([[2, 2], [0, 2], [4, 3]])
    moved = augment(images, offsets, np.zeros(3, bool), padding=2)
    assert np.array_equal(moved[0], images[0])
    assert np.array_equal(moved[1, 2:], images[1, :-2])
    assert not moved[1, :2].any()
    assert np.array_equal(moved[2, :-2, :-1], images[2, 2:, 1:])
    assert not moved[2, -2:].any()


def test_only_marked_images_are_mirrored() -> None:
    images = pixels(2, side=8)
    moved = augment(images, np.zeros((2, 2), int), np.array([False, True]), padding=0)
    assert np.array_equal(moved[0], images[0])
    assert np.array_equal(moved[1], images[1, :, ::-1])


def test_digits_are_never_mirrored() -> None:
    # A ramp from left to right: only a mirrored one falls anywhere but at the border.
    ramp = np.broadcast_to(np.arange(1, 33, dtype=np.uint8)[None, None, :, None], (64, 32, 32, 3))
    varied = load_dataset("digits").augmentation
    for images, *_ in batches(split_of(ramp), 64, PLAIN, shuffle_seed=0, augmentation=varied):
        steps = images[:, 0, 16].diff(dim=1)[:, 4:-4]
        assert (steps > 0).all()
