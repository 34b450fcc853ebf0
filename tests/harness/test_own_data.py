"""A user's own data: npz files and folders of images, and all that can be wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from exitbench.harness.data import Augmentation, load_dataset
from exitbench.harness.errors import ExitbenchError
from PIL import Image


def pixels(count: int, side: int = 32, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (count, side, side, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def arrays(count: int = 12, classes: int = 3, side: int = 32, channels: int = 3) -> dict:
    labels = np.arange(count) % classes
    return {
        "x_train": pixels(count, side, channels),
        "y_train": labels,
        "x_test": pixels(classes, side, channels, seed=1),
        "y_test": np.arange(classes),
    }


def stored(folder: Path, **changes: np.ndarray | None) -> str:
    """An npz file with ``changes`` (None: left out), as a specification."""
    content = {k: v for k, v in (arrays() | changes).items() if v is not None}
    np.savez(folder / "data.npz", **content)
    return f"npz:{folder / 'data.npz'}"


# ---------------------------------------------------------------- npz


def test_an_npz_file_is_read_as_it_is(tmp_path: Path) -> None:
    content = arrays()
    loaded = load_dataset(stored(tmp_path))
    assert np.array_equal(loaded.x_train, content["x_train"])
    assert loaded.y_train.dtype == np.int64
    assert loaded.class_names == ("0", "1", "2")
    assert loaded.side == 32
    assert loaded.augmentation == Augmentation(4, True)


def test_small_grey_images_become_rgb_of_32_pixels(tmp_path: Path) -> None:
    loaded = load_dataset(stored(tmp_path, **arrays(side=28, channels=1)))
    assert loaded.x_train.shape == (12, 32, 32, 3)
    assert np.array_equal(loaded.x_train[..., 0], loaded.x_train[..., 1])


def test_a_side_resizes(tmp_path: Path) -> None:
    assert load_dataset(stored(tmp_path), side=64).x_test.shape == (3, 64, 64, 3)


def test_a_flat_image_stays_flat_when_it_is_resized(tmp_path: Path) -> None:
    flat = np.full((12, 28, 28, 3), 200, np.uint8)
    content = arrays(side=28) | {"x_train": flat}
    assert (load_dataset(stored(tmp_path, **content)).x_train == 200).all()


BAD_ARRAYS: list[tuple[dict[str, np.ndarray | None], str]] = [
    ({"y_test": None}, "lacks y_test; it holds x_test, x_train, y_train"),
    ({"x_train": pixels(12) / np.float32(255)}, "x_train is float32, but must be uint8"),
    ({"x_train": pixels(12)[..., 0]}, r"x_train has shape \(12, 32, 32\)"),
    ({"x_train": pixels(12).transpose(0, 3, 1, 2)}, r"not 1 or 3; channels come last: transpose"),
    ({"x_train": pixels(12, channels=4)}, "x_train has 4 channels"),
    ({"x_train": pixels(12)[:, :, :16]}, "x_train has images of 32x16 pixels"),
    ({"x_train": pixels(0), "y_train": np.zeros(0, int)}, "x_train holds no images"),
    ({"x_test": pixels(3, side=64)}, "32x32x3 in x_train, but 64x64x3 in x_test"),
    ({"y_train": np.zeros(12)}, "y_train is float64, but must be integers"),
    ({"y_train": np.arange(11) % 3}, r"y_train has shape \(11,\), but x_train needs \(12,\)"),
    ({"y_train": np.arange(12) % 3 - 1}, "y_train holds the label -1"),
    ({"y_train": np.arange(12) % 3 * 2}, "no image of class 1, 3; labels must be"),
    ({"y_train": np.array([0, 2_000_000_000] * 6)}, "no image of class 1, 2, 3, 4, 5 and 19"),
    ({"y_train": np.zeros(12, int), "y_test": np.zeros(3, int)}, "a single class"),
    ({"y_test": np.array([0, 1, 3])}, "y_test holds the label 3, but the classes are 0 to 2"),
    ({"y_train": np.array([None] * 12)}, "not a whole npz file"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_ARRAYS)
def test_arrays_that_do_not_fit_are_refused(
    tmp_path: Path, changes: dict[str, np.ndarray | None], message: str
) -> None:
    spec = stored(tmp_path, **changes)
    with pytest.raises(ExitbenchError, match=message) as caught:
        load_dataset(spec)
    assert "data.npz" in str(caught.value)


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    spec = stored(tmp_path, x_train=pixels(12, channels=2), y_test=np.zeros(3))
    with pytest.raises(ExitbenchError, match=r"(?s)x_train has 2 channels.*y_test is float64"):
        load_dataset(spec)


def test_a_test_split_may_lack_a_class(tmp_path: Path) -> None:
    assert load_dataset(stored(tmp_path, y_test=np.zeros(3, int))).classes == 3


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 torn"])
def test_a_file_that_is_no_npz_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.npz"
    path.write_bytes(content)
    with pytest.raises(ExitbenchError, match=r"other\.npz is not a.*numpy\.savez"):
        load_dataset(f"npz:{path}")


def test_a_truncated_npz_is_refused(tmp_path: Path) -> None:
    path = Path(stored(tmp_path).removeprefix("npz:"))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ExitbenchError, match="not a whole npz file"):
        load_dataset(f"npz:{path}")


def test_an_absent_npz_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExitbenchError, match=r"there is no file .*none\.npz"):
        load_dataset(f"npz:{tmp_path / 'none.npz'}")


# ---------------------------------------------------------------- folder


def picture_folder(root: Path, side: int = 32, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    for split, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                image = np.full((side, side, 3), 100 * label + number, np.uint8)
                Image.fromarray(image).save(folder / f"{number}.png")
    return root


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    loaded = load_dataset(f"folder:{picture_folder(tmp_path)}")
    assert loaded.class_names == ("cat", "dog")
    assert loaded.y_train.tolist() == [0] * 4 + [1] * 4
    assert loaded.x_train[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 100, 101, 102, 103]
    assert loaded.x_test.shape == (4, 32, 32, 3)
    assert loaded.augmentation == Augmentation(4, True)
    assert loaded.name == f"folder:{tmp_path}"


@pytest.mark.parametrize(("own", "expected"), [(32, 32), (64, 64), (96, 96), (50, 32), (128, 32)])
def test_a_folder_keeps_its_side_if_a_network_takes_it(
    tmp_path: Path, own: int, expected: int
) -> None:
    assert load_dataset(f"folder:{picture_folder(tmp_path, own)}").side == expected


def test_mixed_sides_become_32_or_what_was_asked_for(tmp_path: Path) -> None:
    root = picture_folder(tmp_path, 64)
    Image.new("RGB", (48, 48)).save(root / "test" / "dog" / "1.png")
    assert load_dataset(f"folder:{root}").side == 32
    assert load_dataset(f"folder:{root}", side=96).x_test.shape == (4, 96, 96, 3)


@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.jpg", "L"), ("a.png", "P"), ("a.png", "RGBA"), ("a.jpg", "CMYK"), ("a.gif", "P"),
     ("a.bmp", "1"), ("a.webp", "RGB"), ("a.tiff", "RGB")],
)  # fmt: skip
def test_every_common_kind_of_image_is_read(tmp_path: Path, name: str, mode: str) -> None:
    root = picture_folder(tmp_path)
    Image.new(mode, (32, 32)).save(root / "train" / "cat" / name)
    assert len(load_dataset(f"folder:{root}").x_train) == 9


def test_the_orientation_of_a_photograph_is_obeyed(tmp_path: Path) -> None:
    root = picture_folder(tmp_path)
    image = np.zeros((32, 32, 3), np.uint8)
    image[:16] = 255
    tag = Image.Exif()
    tag[0x0112] = 3  # turned by half a circle
    Image.fromarray(image).save(root / "train" / "cat" / "0.png", exif=tag)
    first = load_dataset(f"folder:{root}").x_train[0]
    assert not first[:16].any()
    assert (first[16:] == 255).all()


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    root = picture_folder(tmp_path)
    (root / "train" / ".DS_Store").write_text("x")
    (root / "train" / "cat" / ".DS_Store").write_text("x")
    (root / "train" / "cat" / "Thumbs.db").write_text("x")
    assert len(load_dataset(f"folder:{root}").x_train) == 8


def test_unreadable_images_are_all_named(tmp_path: Path) -> None:
    root = picture_folder(tmp_path)
    (root / "train" / "cat" / "0.png").write_text("no image")
    whole = (root / "train" / "dog" / "1.png").read_bytes()
    (root / "train" / "dog" / "1.png").write_bytes(whole[:20])
    with pytest.raises(ExitbenchError, match=r"(?s)cat/0\.png: cannot be read.*dog/1\.png: cannot"):
        load_dataset(f"folder:{root}")


def test_an_image_that_breaks_off_is_named(tmp_path: Path) -> None:
    root = picture_folder(tmp_path)
    noise = Image.fromarray(pixels(1)[0])
    noise.save(root / "test" / "dog" / "1.png")
    whole = (root / "test" / "dog" / "1.png").read_bytes()
    (root / "test" / "dog" / "1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ExitbenchError, match=r"dog/1\.png: cannot be read as an image"):
        load_dataset(f"folder:{root}")


def test_images_that_are_not_square_are_named_with_their_size(tmp_path: Path) -> None:
    root = picture_folder(tmp_path)
    Image.new("RGB", (40, 30)).save(root / "train" / "cat" / "wide.png")
    with pytest.raises(ExitbenchError, match=r"wide\.png: 40x30 pixels; crop or pad"):
        load_dataset(f"folder:{root}")


def test_sixteen_bit_images_are_refused_rather_than_clipped(tmp_path: Path) -> None:
    root = picture_folder(tmp_path)
    Image.fromarray(np.full((32, 32), 40_000, np.uint16)).save(root / "train" / "cat" / "deep.png")
    with pytest.raises(ExitbenchError, match=r"deep\.png: pixels of mode I;16"):
        load_dataset(f"folder:{root}")


def test_many_faults_are_cut_short(tmp_path: Path) -> None:
    root = picture_folder(tmp_path)
    for number in range(15):
        (root / "train" / "cat" / f"bad{number}.png").write_text("no image")
    with pytest.raises(ExitbenchError, match="and 5 more"):
        load_dataset(f"folder:{root}")


def test_class_folders_that_differ_are_named(tmp_path: Path) -> None:
    root = picture_folder(tmp_path)
    (root / "test" / "dog").rename(root / "test" / "hound")
    with pytest.raises(ExitbenchError, match="differ: only in train: dog; only in test: hound"):
        load_dataset(f"folder:{root}")


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    root = picture_folder(tmp_path)
    for split in ("train", "test"):
        (root / split / "emu").mkdir()
    with pytest.raises(ExitbenchError, match=r"class folder .*train/emu is empty"):
        load_dataset(f"folder:{root}")


def test_an_empty_or_absent_folder_says_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ExitbenchError, match=r"there is no folder .*none/train.*needs the folders"):
        load_dataset(f"folder:{tmp_path / 'none'}")
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(ExitbenchError, match="holds 0 class folders"):
        load_dataset(f"folder:{tmp_path}")


def test_images_outside_a_class_and_folders_inside_one_are_named(tmp_path: Path) -> None:
    root = picture_folder(tmp_path)
    (root / "train" / "cat" / "more").mkdir()
    with pytest.raises(ExitbenchError, match="cat/more: a folder inside a class folder"):
        load_dataset(f"folder:{root}")
    Image.new("RGB", (32, 32)).save(root / "train" / "stray.png")
    with pytest.raises(ExitbenchError, match=r"files beside the class folders: stray\.png"):
        load_dataset(f"folder:{root}")
