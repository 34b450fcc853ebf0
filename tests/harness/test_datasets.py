"""torchvision's datasets: tiny ones in their real formats, and what happens offline.

The network is replaced at the vendor's boundary, and so are the checksums of archives that these
tests write themselves.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import socket
import tarfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from exitbench.harness.data import Augmentation, load_dataset
from exitbench.harness.errors import ExitbenchError
from torchvision import datasets as vendor

NAMES = ("cifar10", "cifar100", "svhn", "stl10", "mnist", "fashion-mnist")
ARCHIVES = {
    "cifar10": "cifar-10-python.tar.gz",
    "cifar100": "cifar-100-python.tar.gz",
    "svhn": "train_32x32.mat",
    "stl10": "stl10_binary.tar.gz",
    "mnist": "MNIST/raw/train-images-idx3-ubyte.gz",
    "fashion-mnist": "FashionMNIST/raw/t10k-labels-idx1-ubyte.gz",
}
LABELS = {"train": np.arange(20) % 10, "test": np.arange(10)}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No test here reaches the network; the addresses that were asked for."""
    asked: list[str] = []

    def refuse(request: urllib.request.Request, *_: Any, **__: Any) -> None:
        asked.append(request.full_url)
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return asked


def pixels(split: str, *shape: int) -> np.ndarray:
    generator = np.random.default_rng(len(split))
    return generator.integers(0, 256, (len(LABELS[split]), *shape), dtype=np.uint8)


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def idx(values: np.ndarray) -> bytes:
    """The idx format of MNIST: magic number with type 8 (bytes) and rank, sizes, values."""
    sizes = b"".join(length.to_bytes(4, "big") for length in values.shape)
    return bytes([0, 0, 8, values.ndim]) + sizes + values.astype(np.uint8).tobytes()


def mnist_files() -> dict[str, bytes]:
    files = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        files[f"{prefix}-images-idx3-ubyte"] = idx(pixels(split, 28, 28))
        files[f"{prefix}-labels-idx1-ubyte"] = idx(LABELS[split])
    return files


def write_mnist(root: Path, folder: str = "MNIST") -> Path:
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for name, content in mnist_files().items():
        (raw / name).write_bytes(content)
    return raw


def tarball(path: Path, folder: str, files: dict[str, bytes]) -> str:
    """Write a tar.gz of ``files`` and give its MD5."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return md5(path.read_bytes())


def cifar_files() -> dict[str, bytes]:
    rows = {split: pixels(split, 3, 32, 32).reshape(-1, 3072) for split in LABELS}
    entries = {
        "data_batch_1": {"data": rows["train"], "labels": LABELS["train"].tolist()},
        "test_batch": {"data": rows["test"], "labels": LABELS["test"].tolist()},
        "batches.meta": {"label_names": [f"thing {label}" for label in range(10)]},
    }
    return {name: pickle.dumps(entry) for name, entry in entries.items()}


def trust_cifar(monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes], archive: str) -> None:
    cifar = vendor.CIFAR10
    monkeypatch.setattr(cifar, "train_list", [["data_batch_1", md5(files["data_batch_1"])]])
    monkeypatch.setattr(cifar, "test_list", [["test_batch", md5(files["test_batch"])]])
    monkeypatch.setattr(cifar, "meta", cifar.meta | {"md5": md5(files["batches.meta"])})
    monkeypatch.setattr(cifar, "tgz_md5", archive)


# ---------------------------------------------------------------- offline


@pytest.mark.parametrize("name", NAMES)
def test_offline_with_nothing_on_disk_names_the_folder_and_the_files(
    tmp_path: Path, name: str, offline: list[str]
) -> None:
    root = tmp_path / "data"
    with pytest.raises(ExitbenchError) as caught:
        load_dataset(name, root)
    message = str(caught.value)
    assert f"{name} is not in {root}" in message
    assert "no route to host" in message
    assert str(root / ARCHIVES[name]) in message
    assert "from http" in message
    assert offline
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_without_leave_to_download_the_network_is_not_touched(
    tmp_path: Path, name: str, offline: list[str]
) -> None:
    with pytest.raises(ExitbenchError, match="downloading is switched off") as caught:
        load_dataset(name, tmp_path / "data", download=False)
    assert ARCHIVES[name] in str(caught.value)
    assert offline == []
    assert not (tmp_path / "data").exists()


def test_a_download_that_breaks_off_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Torn(io.BytesIO):
        url, length = "http://torn", 10**6

        def read(self, size: int | None = -1) -> bytes:
            content = super().read(size)
            if not content:
                raise ConnectionResetError("connection reset by peer")
            return content

    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Torn(b"half a file"))
    lines: list[str] = []
    with pytest.raises(ExitbenchError, match="connection reset by peer"):
        load_dataset("svhn", tmp_path, say=lines.append)
    assert list(tmp_path.iterdir()) == []
    assert lines == [f"downloading svhn (246 MB) to {tmp_path}"]


def test_a_download_that_is_interrupted_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(urllib.request, "urlopen", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_dataset("cifar10", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_connections_have_a_time_limit_only_while_downloading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float | None] = []

    def refuse(*_: Any, **__: Any) -> None:
        limits.append(socket.getdefaulttimeout())
        raise urllib.error.URLError("no")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    before = socket.getdefaulttimeout()
    with pytest.raises(ExitbenchError):
        load_dataset("svhn", tmp_path)
    assert None not in limits
    assert socket.getdefaulttimeout() == before


def test_an_archive_that_is_not_whole_is_pointed_out(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"half")
    with pytest.raises(ExitbenchError, match="is not whole: its MD5 is not c58f30108f718f92"):
        load_dataset("cifar10", tmp_path, download=False)


# ---------------------------------------------------------------- formats


@pytest.mark.parametrize(
    ("name", "folder", "mirror", "first"),
    [("mnist", "MNIST", False, "0"), ("fashion-mnist", "FashionMNIST", True, "T-shirt/top")],
)
def test_mnist_files_become_bordered_rgb_images(
    tmp_path: Path, name: str, folder: str, mirror: bool, first: str
) -> None:
    write_mnist(tmp_path, folder)
    loaded = load_dataset(name, tmp_path, download=False)
    assert loaded.x_train.shape == (20, 32, 32, 3)
    assert np.array_equal(loaded.x_train[:, 2:30, 2:30, 1], pixels("train", 28, 28))
    assert not loaded.x_train[:, :2].any()
    assert np.array_equal(loaded.y_test, LABELS["test"])
    assert loaded.augmentation == Augmentation(4, mirror)
    assert loaded.class_names[0] == first


def test_underscores_and_capitals_name_the_same_dataset(tmp_path: Path) -> None:
    write_mnist(tmp_path, "FashionMNIST")
    assert load_dataset("Fashion_MNIST", tmp_path).name == "fashion-mnist"


def test_a_damaged_mnist_file_says_what_to_delete(tmp_path: Path) -> None:
    raw = write_mnist(tmp_path)
    whole = (raw / "train-images-idx3-ubyte").read_bytes()
    (raw / "train-images-idx3-ubyte").write_bytes(whole[:-100])
    with pytest.raises(ExitbenchError, match=r"MNIST/raw are damaged.*Delete them"):
        load_dataset("mnist", tmp_path)


def test_mnist_labels_that_lack_a_class_are_refused(tmp_path: Path) -> None:
    raw = write_mnist(tmp_path)
    (raw / "train-labels-idx1-ubyte").write_bytes(idx(LABELS["train"] % 9))
    with pytest.raises(ExitbenchError, match=r"mnist in .*MNIST/raw cannot be used.*\n.*class 9"):
        load_dataset("mnist", tmp_path)


def test_mnist_archives_in_place_are_unpacked_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: list[str]
) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    resources = []
    for name, content in mnist_files().items():
        (raw / f"{name}.gz").write_bytes(gzip.compress(content))
        resources.append((f"{name}.gz", md5((raw / f"{name}.gz").read_bytes())))
    monkeypatch.setattr(vendor.MNIST, "resources", resources)
    lines: list[str] = []
    loaded = load_dataset("mnist", tmp_path, download=False, say=lines.append)
    assert len(loaded.x_train) == 20
    assert lines == [f"unpacking mnist in {tmp_path}"]
    assert offline == []
    assert (raw / "train-images-idx3-ubyte").is_file()
    assert not (raw / "train-images-idx3-ubyte.gz").is_symlink()
    again = load_dataset("mnist", tmp_path, download=False, say=lines.append)
    assert len(lines) == 1
    assert np.array_equal(again.x_train, loaded.x_train)


def test_a_cifar10_archive_in_place_is_unpacked_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = cifar_files()
    archive = tarball(tmp_path / "cifar-10-python.tar.gz", "cifar-10-batches-py", files)
    trust_cifar(monkeypatch, files, archive)
    loaded = load_dataset("cifar10", tmp_path)
    expected = pixels("train", 3, 32, 32).transpose(0, 2, 3, 1)
    assert np.array_equal(loaded.x_train, expected)
    assert loaded.class_names[3] == "thing 3"
    assert loaded.augmentation == Augmentation(4, True)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
    ]


def test_a_cifar10_file_with_a_wrong_checksum_is_never_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("unpickled"))
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name, content in cifar_files().items():
        (folder / name).write_bytes(content)
    with pytest.raises(ExitbenchError, match=r"cifar-10-python\.tar\.gz"):
        load_dataset("cifar10", tmp_path)


def write_svhn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {}
    for split in ("train", "test"):
        # SVHN numbers the digit 0 as 10 and stores height, width, channels, image.
        labels = np.where(LABELS[split] == 0, 10, LABELS[split]).astype(np.uint8)[:, None]
        path = folder / f"{split}_32x32.mat"
        images = pixels(split, 32, 32, 3).transpose(1, 2, 3, 0)
        scipy.io.savemat(path, {"X": images, "y": labels})
        known[split] = [f"http://nowhere/{path.name}", path.name, md5(path.read_bytes())]
    monkeypatch.setattr(vendor.SVHN, "split_list", known)


def test_svhn_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_svhn(tmp_path, monkeypatch)
    loaded = load_dataset("svhn", tmp_path, download=False)
    assert np.array_equal(loaded.x_train, pixels("train", 32, 32, 3))
    assert np.array_equal(loaded.y_train, LABELS["train"])
    assert not loaded.augmentation.mirror


def test_a_download_ends_up_in_the_root_and_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: list[str]
) -> None:
    far, root = tmp_path / "far", tmp_path / "data"
    far.mkdir()
    write_svhn(far, monkeypatch)

    class Response(io.BytesIO):
        url, length = None, 1

    def serve(request: urllib.request.Request, *_: Any, **__: Any) -> Response:
        return Response((far / Path(request.full_url).name).read_bytes())

    with monkeypatch.context() as online:
        online.setattr(urllib.request, "urlopen", serve)
        lines: list[str] = []
        first = load_dataset("svhn", root, say=lines.append)
    assert lines == [f"downloading svhn (246 MB) to {root}"]
    assert sorted(file.name for file in root.iterdir()) == ["test_32x32.mat", "train_32x32.mat"]
    assert np.array_equal(load_dataset("svhn", root).x_train, first.x_train)
    assert offline == []


def test_stl10_files_are_read_at_96_pixels_or_resized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"class_names.txt": b"\n".join(b"thing %d" % label for label in range(10))}
    for split in ("train", "test"):
        # STL-10 stores channel, column, row, and labels from 1.
        stored = pixels(split, 96, 96, 3).transpose(0, 3, 2, 1)
        files[f"{split}_X.bin"] = stored.tobytes()
        files[f"{split}_y.bin"] = (LABELS[split] + 1).astype(np.uint8).tobytes()
    checks = {name: [name, md5(content)] for name, content in files.items()}
    archive = tarball(tmp_path / "stl10_binary.tar.gz", "stl10_binary", files)
    stl10 = vendor.STL10
    monkeypatch.setattr(stl10, "train_list", [checks["train_X.bin"], checks["train_y.bin"]])
    monkeypatch.setattr(stl10, "test_list", [checks["test_X.bin"], checks["test_y.bin"]])
    monkeypatch.setattr(stl10, "tgz_md5", archive)
    loaded = load_dataset("stl10", tmp_path, download=False)
    assert np.array_equal(loaded.x_train, pixels("train", 96, 96, 3))
    assert np.array_equal(loaded.y_train, LABELS["train"])
    assert loaded.augmentation == Augmentation(12, True)
    assert loaded.class_names[9] == "thing 9"
    assert load_dataset("stl10", tmp_path, side=32).x_test.shape == (10, 32, 32, 3)


def test_cifar100_keeps_its_own_folder_and_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = np.arange(100)
    rows = np.zeros((100, 3072), np.uint8)
    entry = pickle.dumps({"data": rows, "fine_labels": labels.tolist()})
    meta = pickle.dumps({"fine_label_names": [f"thing {label}" for label in labels]})
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name, content in (("train", entry), ("test", entry), ("meta", meta)):
        (folder / name).write_bytes(content)
    cifar = vendor.CIFAR100
    monkeypatch.setattr(cifar, "train_list", [["train", md5(entry)]])
    monkeypatch.setattr(cifar, "test_list", [["test", md5(entry)]])
    monkeypatch.setattr(cifar, "meta", cifar.meta | {"md5": md5(meta)})
    assert load_dataset("cifar100", tmp_path).classes == 100
