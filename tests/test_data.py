import gzip
import hashlib
import io
import re
import struct
from dataclasses import replace

import numpy as np
import pytest
import requests
import torch

import data
from data import DataError, load, split_indices, split_tensors, stratified_blocks
from support import files
from support.files import IDX_NAMES

CPU = torch.device("cpu")


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def arrays():
    """A small data set in MNIST's format: 12 x 10 pixels, 5 classes."""
    images, labels = np.random.RandomState(0).randint(256, size=(240, 12, 10)), np.arange(240) % 5
    return [images[:200], labels[:200], images[200:], labels[200:]]


@pytest.fixture
def folder(tmp_path, arrays):
    for name, array in zip(IDX_NAMES, arrays, strict=True):
        (tmp_path / name).write_bytes(idx_bytes(array))
    return tmp_path


# --- folds, splits, batches


@pytest.mark.parametrize("count", [60_000, 1437, 20, 333])
def test_blocks_are_a_stratified_partition(count):
    labels = np.random.RandomState(1).choice(10, count, p=np.arange(1, 11) / 55)
    blocks = stratified_blocks(labels, 20)
    assert sorted(np.concatenate(blocks)) == list(range(count))
    assert {len(block) for block in blocks} <= {count // 20, -(-count // 20)}
    counts = np.array([np.bincount(labels[block], minlength=10) for block in blocks])
    assert (counts.max(axis=0) - counts.min(axis=0) <= 1).all()


def test_images_of_a_split_keep_their_labels_and_are_in_no_other(folder):
    """Images that are numbered by a pixel show which ones a split holds."""
    dataset = load("auto", str(folder))
    numbered = dataset.train_images.copy()
    numbered[:, 0, 0] = np.arange(200)
    dataset = replace(dataset, train_images=numbered, white=1)
    trained = set()
    for fold in range(20):
        train, val = (split_tensors(dataset, split, fold, CPU) for split in ("train", "val"))
        numbers = [images[:, 0, 0].long().tolist() for images, _ in (train, val)]
        assert len(numbers[0]) == 10 and sorted(numbers[0] + numbers[1]) == list(range(200))
        assert torch.cat([train[1], val[1]]).tolist() == dataset.train_labels[numbers[0] + numbers[1]].tolist()
        trained |= set(numbers[0])
    assert trained == set(range(200)), "the folds train on disjoint images"


def test_tensors_of_a_fraction_lie_between_0_and_1():
    dataset = load("digits")
    splits = {split: split_tensors(dataset, split, 3, CPU, 0.9) for split in data.SPLITS}
    assert [len(labels) for _, labels in splits.values()] == [1293, 144, 360]
    assert torch.equal(splits["test"][0], split_tensors(dataset, "test", 0, CPU)[0])
    for images, labels in splits.values():
        assert images.dtype == torch.float32 and labels.dtype == torch.int64
        assert images.min() == 0 and images.max() == 1


MNIST_LIKE = (np.arange(60_000) * 7919 % 10_007 % 10).astype(np.uint8)


@pytest.mark.parametrize("labels, expected", [(MNIST_LIKE, "1e277b379480"), ("digits", "c63b4331c281")])
def test_the_5_percent_never_change(labels, expected):
    labels = load("digits").train_labels if isinstance(labels, str) else labels
    digest = hashlib.sha256()
    for fold in (0, 7, 19):
        for index in split_indices(labels, fold, 0.05):
            digest.update(index.astype("<i8").tobytes())
        assert (split_indices(labels, fold)[0] == stratified_blocks(labels, 20)[fold]).all()
    assert digest.hexdigest().startswith(expected), "other images train: every published number would change"


@pytest.mark.parametrize("labels", [MNIST_LIKE, np.random.RandomState(2).choice(7, 2345, p=np.arange(1, 8) / 28)])
def test_fractions_are_nested_stratified_and_begin_with_the_fold(labels):
    blocks = stratified_blocks(labels, 20)
    share = np.bincount(labels) / len(labels)
    smaller = set()
    for fraction in (0.001, 0.005, 0.01, 0.0377, 0.05, 0.07, 0.1, 0.2, 0.5, 0.9, 0.95):
        train, val = split_indices(labels, 18, fraction)
        assert sorted([*train, *val]) == list(range(len(labels))) and (np.diff(train) > 0).all()
        assert abs(len(train) - fraction * len(labels)) <= (5.5 if len(labels) % 20 else 0)  # of unequal blocks
        assert smaller <= set(train)
        smaller = set(train)
        off = np.abs(np.bincount(labels[train], minlength=len(share)) - share * len(train)).max()
        whole = fraction * 20  # blocks may differ by one image of a class; see test_blocks_are_a_stratified_partition
        assert off < 1.5 if whole <= 1 else off <= min(whole, 20 - whole) + 1
    head = split_indices(labels, 18, 0.01)[0]
    assert set(head) < set(blocks[18]) and np.median(head) == pytest.approx(len(labels) / 2, rel=0.3)
    assert set(split_indices(labels, 18, 0.1)[0]) == {*blocks[18], *blocks[19]}
    assert set(split_indices(labels, 18, 0.15)[0]) == {*blocks[18], *blocks[19], *blocks[0]}


def test_a_fraction_of_which_nothing_can_come_is_one_clear_line():
    nothing = [(1437, fraction, "allowed are 0.001 to 0.95") for fraction in (0.0009, 0.951, float("nan"))]
    nothing += [(1437, 0.001, "1 of 1437 images would train"), (3, 0.95, "3 of 3 images would train")]
    for images, fraction, words in nothing:
        with pytest.raises(DataError, match=f"--fraction {fraction}: {words}"):
            split_indices(np.arange(images) % 2, 0, fraction)


def test_the_digest_tells_data_sets_apart():
    dataset = load("digits")
    one_pixel = dataset.test_images.copy()
    one_pixel[-1, -1, -1] ^= 1
    others = [
        replace(dataset, white=255),
        replace(dataset, test_images=one_pixel),
        replace(dataset, train_images=dataset.train_images.reshape(-1, 4, 16)),
        replace(dataset, train_labels=dataset.train_labels[::-1]),
    ]
    assert len({dataset.sha256, *(other.sha256 for other in others)}) == 5
    assert replace(dataset, name="a copy", train_images=dataset.train_images.copy()).sha256 == dataset.sha256
    assert dataset.sha256.startswith("f3deae801b41"), "runs that were begun before would be refused"


def test_an_epoch_shows_every_image_once_in_a_drawn_order():
    images, labels = torch.arange(10.0).view(10, 1, 1), torch.arange(10)

    def epochs(seed, count):
        batches = data.Batches(images, labels, 4, torch.Generator().manual_seed(seed))
        assert len(batches) == 3
        return [list(batches) for _ in range(count)]

    first, second = epochs(0, 2)
    assert [len(batch) for _, batch in first] == [4, 4, 2]
    shown = [torch.cat([batch for _, batch in epoch]).tolist() for epoch in (first, second)]
    assert sorted(shown[0]) == list(range(10)) == sorted(shown[1])
    assert shown[0] != shown[1] and shown[0] != list(range(10))
    assert all((batch_images.flatten() == batch_labels).all() for batch_images, batch_labels in first)
    assert [torch.cat([batch for _, batch in epoch]).tolist() for epoch in epochs(0, 2)] == shown
    assert [batch.tolist() for _, batch in data.Batches(images, labels, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_processes_share_every_batch():
    images, labels = torch.arange(10.0).view(10, 1, 1), torch.arange(10)

    def labels_of(rank, ranks):
        batches = data.Batches(images, labels, 4, torch.Generator().manual_seed(0), rank, ranks)
        return [batch.tolist() for _, batch in batches]

    for batch, first, second in zip(labels_of(0, 1), labels_of(0, 2), labels_of(1, 2), strict=True):
        assert sorted(batch) == sorted(first + second) and abs(len(first) - len(second)) <= 1


# --- files


def read(folder) -> data.Dataset:
    return load("auto", str(folder))


def test_any_data_set_in_the_format_is_read(folder, arrays):
    (folder / IDX_NAMES[0]).unlink()
    (folder / f"{IDX_NAMES[0]}.gz").write_bytes(gzip.compress(idx_bytes(arrays[0]), mtime=0))
    dataset = read(folder)
    assert dataset.name == folder.name and dataset.classes == 5 and dataset.in_features == 120
    found = [dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels]
    assert all((a == b).all() for a, b in zip(found, arrays, strict=True))


LAYOUTS = {  # where the file of a usual name is found
    "7-Zip and Kaggle": lambda name: name.replace("-idx", ".idx"),
    "7-Zip, packed again": lambda name: f"{name.replace('-idx', '.idx')}.gz",
    "torchvision": lambda name: f"MNIST/raw/{name}",
    "torchvision's Fashion-MNIST, by its own folder": lambda name: f"raw/{name}.gz",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_usual_names_and_folders_are_found(folder, layout):
    whole = read(folder).sha256
    for name in IDX_NAMES:
        new = folder / LAYOUTS[layout](name)
        new.parent.mkdir(parents=True, exist_ok=True)
        raw = (folder / name).read_bytes()
        (folder / name).unlink()
        new.write_bytes(gzip.compress(raw, mtime=0) if new.suffix == ".gz" else raw)
        (folder / name).mkdir()  # as Kaggle has it beside the file
    load.cache_clear()
    assert read(folder).sha256 == whole


FAULTS = {  # which of the four files, what becomes of its bytes (packed, if the name says so), words of the error
    "empty": (1, lambda raw: b"", "starts with nothing"),
    "a picture": (0, lambda raw: b"\x89PNG" + raw, "starts with 89 50 4e 47"),
    "half a header": (0, lambda raw: raw[:9], "damaged, 9 bytes"),
    "cut": (0, lambda raw: raw[:-7], "damaged, 24009 bytes for sizes (200, 12, 10), not 24016"),
    "too long": (2, lambda raw: raw + b"\0", "damaged"),
    "no image": (2, lambda raw: idx_bytes(np.zeros((0, 12, 10))), "damaged"),
    "images and labels swapped": (1, lambda raw: idx_bytes(np.zeros((200, 12, 10))), "are the two swapped"),
    "labels of another length": (1, lambda raw: idx_bytes(np.arange(199) % 5), "200 train images but 199"),
    "other test size": (2, lambda raw: idx_bytes(np.zeros((40, 9, 9))), "(12, 10) in train, (9, 9) in test"),
    "a class too many in test": (3, lambda raw: idx_bytes(np.full(40, 5)), "test label 5; allowed"),
    "a stray label": (1, lambda raw: raw[:-1] + b"\xc8", "up to 200, none is 5"),
    "labels from 1 on": (1, lambda raw: idx_bytes(np.arange(200) % 5 + 1), "up to 5, none is 0"),
    "one class": (1, lambda raw: idx_bytes(np.zeros(200)), "up to 0, none is 1"),
    "packed, not": (1, gzip.decompress, "cannot be unpacked"),
    "packed, cut": (0, lambda raw: raw[:-20], "cannot be unpacked"),
    "packed, a flipped byte": (0, lambda raw: raw[:10] + b"\xff" + raw[11:], "cannot be unpacked"),
    "packed, a wrong checksum": (0, lambda raw: raw[:-8] + bytes(8), "cannot be unpacked"),
}


def refused(what, *words: str) -> None:
    """The one line with `words` in which what() refuses; no word of it is for programmers."""
    with pytest.raises(DataError) as error:
        what()
    line = str(error.value)
    assert all(word in line for word in words), line
    assert "\n" not in line and not re.search(r"\w(Error|Exception|File\b)|Errno|None", line), line


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_file_is_one_clear_line(folder, fault):
    number, change, words = FAULTS[fault]
    path = folder / IDX_NAMES[number]
    raw = path.read_bytes()
    path.unlink()
    if fault.startswith("packed"):
        path, raw = path.with_name(f"{path.name}.gz"), gzip.compress(raw, mtime=0)
    path.write_bytes(change(raw))
    refused(lambda: read(folder), str(folder), words)


def test_a_place_without_the_files_is_one_clear_line(folder):
    for place in (folder / IDX_NAMES[0], folder / "missing", folder / ("x" * 300)):
        refused(lambda place=place: read(place), IDX_NAMES[0])
    (folder / IDX_NAMES[2]).unlink()
    refused(lambda: read(folder), f"{IDX_NAMES[2]}: no such file")


# --- MNIST through datamaestro


class Network:
    """Stands in for the network: serves `files`, by the name at the end of the URL, and notes what was asked for."""

    def __init__(self, files: dict[str, bytes]):
        self.files, self.asked = files, []

    def get(self, url, timeout):
        assert timeout, "a silent server would be waited for"
        name = url.rsplit("/", 1)[1]
        self.asked.append(name)
        if not self.files:
            raise requests.ConnectionError(f"HTTPSConnectionPool: NameResolutionError {url}")
        response = requests.Response()
        response.status_code = 200 if name in self.files else 404
        response.raw = io.BytesIO(self.files.get(name, b"<Error>NoSuchKey</Error>"))
        return response


@pytest.fixture
def network(tmp_path, arrays, monkeypatch):
    """A network with a small MNIST, and datamaestro's cache in an empty folder."""
    from datamaestro.context import Context
    from datamaestro.definitions import AbstractDataset

    raw = [idx_bytes(array) for array in arrays]
    network = Network({f"{name}.gz": gzip.compress(one, mtime=0) for name, one in zip(IDX_NAMES, raw, strict=True)})
    digests = [hashlib.sha256(one).hexdigest() for one in raw]
    monkeypatch.setattr(requests, "get", network.get)
    monkeypatch.setattr(files, "MNIST_SHA256", dict(zip(files.MNIST_SHA256, digests, strict=True)))
    monkeypatch.setattr(Context.instance(), "_path", tmp_path)
    monkeypatch.setattr(AbstractDataset.find("com.lecun.mnist"), "config", None)  # it remembers where the files were
    return network


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "data/image/com/lecun/mnist"


def test_mnist_is_downloaded_once(network, arrays):
    dataset = load("mnist")
    assert dataset.name == "mnist" and not dataset.warning
    found = [dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels]
    assert all((a == b).all() and a.dtype == np.uint8 for a, b in zip(found, arrays, strict=True))
    assert len(network.asked) == 4
    load.cache_clear()
    load("mnist")
    assert len(network.asked) == 4


def test_a_damaged_cache_says_what_to_delete(network, cache):
    """As datamaestro leaves it where it was interrupted: half a file under the whole one's name."""
    whole = load("mnist").sha256
    path = cache / "test_images.idx"
    path.write_bytes(path.read_bytes()[:1000])
    load.cache_clear()
    refused(lambda: load("mnist"), f"{path} is damaged", "delete it and run again")
    assert path.stat().st_size == 1000 and len(network.asked) == 4
    path.unlink()
    assert load("mnist").sha256 == whole and len(network.asked) == 5


@pytest.mark.parametrize("served", [None, b"", b"<html>log in</html>", "half", gzip.compress(b"another file", mtime=0)])
def test_a_broken_download_leaves_nothing_and_does_not_stay_broken(network, cache, served):
    name = "train-labels-idx1-ubyte.gz"
    whole = network.files.pop(name)
    if served is not None:
        network.files[name] = whole[: len(whole) // 2] if served == "half" else served
    status = "status 404" if served is None else "status 200"
    refused(lambda: load("mnist"), name, f"could not be downloaded ({status})", "--data-dir")
    assert {path.name for path in cache.iterdir()} <= {".lock", "test_images.idx", "test_labels.idx"}
    network.files[name] = whole
    assert len(load("mnist").train_labels) == 200


def test_a_cache_that_cannot_be_written_is_one_clear_line(network, tmp_path):
    (tmp_path / "data").write_text("a file in the place of the folder")
    refused(lambda: load("mnist"), "data", "DATAMAESTRO_DIR")


def test_without_network_auto_takes_digits_and_mnist_fails(network, capfd):
    network.files.clear()
    dataset = load("auto")
    assert dataset.name == "digits" and "could not be downloaded (no connection)" in dataset.warning
    refused(lambda: load("mnist"), "could not be downloaded (no connection)")
    assert capfd.readouterr() == ("", "")


def test_real_mnist(mnist):
    dataset = load("mnist")
    assert dataset.name == "mnist" and not dataset.warning
    assert dataset.train_images.shape == (60_000, 28, 28) and dataset.test_images.shape == (10_000, 28, 28)
    assert dataset.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    images, labels = split_tensors(dataset, "train", 0, CPU)
    assert len(images) == 3000 and len(split_tensors(dataset, "val", 0, CPU)[1]) == 57_000
    assert np.abs(labels.bincount().numpy() - np.bincount(dataset.train_labels) / 20).max() < 1
