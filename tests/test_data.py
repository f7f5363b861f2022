import errno
import gzip
import hashlib
import os
import resource
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import requests
import torch

import data
from data import DataError, load, read_folder, read_idx, split_indices, split_tensors, stratified_blocks

CPU = torch.device("cpu")


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def arrays():
    """A small data set in MNIST's format: 12 x 10 pixels, 5 classes."""
    random = np.random.RandomState(0)
    return [
        random.randint(256, size=(200, 12, 10)),
        np.arange(200) % 5,
        random.randint(256, size=(40, 12, 10)),
        np.arange(40) % 5,
    ]


@pytest.fixture
def folder(tmp_path, arrays):
    for name, array in zip(data.IDX_NAMES, arrays, strict=True):
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


def test_blocks_are_shuffled_and_never_change():
    blocks = stratified_blocks(load("digits").train_labels, 20)
    digest = hashlib.sha256(np.concatenate(blocks).astype("<i8").tobytes()).hexdigest()
    assert digest.startswith("6a31c3df2319"), "other images would be the 5 %: every published number would change"


def test_train_and_val_share_no_image_and_lack_none():
    dataset = load("digits")
    images = {split: split_tensors(dataset, split, 3, CPU)[0] for split in data.SPLITS}
    together = torch.cat([images["train"], images["val"]]).flatten(1)
    assert len(images["train"]) == 72 and len(images["test"]) == 360
    assert sorted(together.tolist()) == sorted((torch.tensor(dataset.train_images).flatten(1) / 16).tolist())


def test_folds_have_disjoint_training_sets(folder):
    """Images that are numbered by their pixels show which ones a split holds."""
    dataset = read_folder(folder)
    numbered = dataset.train_images.copy()
    numbered[:, 0, 0] = np.arange(200)
    dataset = data.Dataset(
        "numbered", numbered, dataset.train_labels, dataset.test_images, dataset.test_labels, white=1
    )
    train, val = (
        [set(split_tensors(dataset, split, fold, CPU)[0][:, 0, 0].tolist()) for fold in range(20)]
        for split in ("train", "val")
    )
    assert all(len(images) == 10 for images in train)
    assert set.union(*train) == set(range(200))
    assert all(t | v == set(range(200)) and not t & v for t, v in zip(train, val, strict=True))


def test_labels_stay_with_their_images(folder):
    dataset = read_folder(folder)
    images, labels = split_tensors(dataset, "val", 7, CPU)
    where = [
        (torch.tensor(dataset.train_images) == (image * 255).round()).flatten(1).all(1).nonzero().item()
        for image in images
    ]
    assert labels.tolist() == dataset.train_labels[where].tolist()


def test_pixels_lie_between_0_and_1(folder):
    for dataset in (load("digits"), read_folder(folder)):
        images, labels = split_tensors(dataset, "train", 0, CPU)
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
    assert set(split_indices(labels, 18, 0.01)[0]) < set(blocks[18])
    assert set(split_indices(labels, 18, 0.1)[0]) == {*blocks[18], *blocks[19]}
    assert set(split_indices(labels, 18, 0.15)[0]) == {*blocks[18], *blocks[19], *blocks[0]}


def test_every_head_of_a_stratified_order_has_each_class_in_its_share():
    labels = np.random.RandomState(2).choice(7, 500, p=np.arange(1, 8) / 28)
    order = data.stratified_order(labels)
    assert sorted(order) == list(range(500))
    heads = np.cumsum(np.eye(7)[labels[order]], axis=0)
    assert np.abs(heads - np.outer(np.arange(1, 501), np.bincount(labels) / 500)).max() < 1


def test_one_percent_is_a_stratified_fifth_of_the_block():
    block, (train, _) = stratified_blocks(MNIST_LIKE, 20)[3], split_indices(MNIST_LIKE, 3, 0.01)
    assert len(train) == 600 and set(train) < set(block)
    assert np.abs(np.bincount(MNIST_LIKE[train]) - np.bincount(MNIST_LIKE[block]) / 5).max() < 1
    assert np.median(train) == pytest.approx(30_000, rel=0.1), "the first images of the files, instead of any"


def test_tensors_of_a_fraction():
    dataset = load("digits")
    splits = {split: split_tensors(dataset, split, 3, CPU, 0.9) for split in data.SPLITS}
    assert [len(labels) for _, labels in splits.values()] == [1293, 144, 360]
    train, _ = split_indices(dataset.train_labels, 3, 0.9)
    assert splits["train"][1].tolist() == dataset.train_labels[train].tolist()
    assert torch.equal(splits["test"][0], split_tensors(dataset, "test", 0, CPU)[0])


@pytest.mark.parametrize("fraction", [0.0, 0.0009, 0.951, 1.0, -0.05, float("nan"), float("inf")])
def test_a_fraction_out_of_range_is_one_clear_line(fraction):
    with pytest.raises(DataError, match=r"--fraction .*: must lie between 0.001 and 0.95"):
        split_indices(MNIST_LIKE, 0, fraction)


def test_a_fraction_of_one_image_is_one_clear_line():
    with pytest.raises(DataError, match=r"--fraction 0.001: 1 of 1437 images"):
        split_tensors(load("digits"), "val", 0, CPU, 0.001)


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


def test_processes_share_every_batch():
    images, labels = torch.arange(10.0).view(10, 1, 1), torch.arange(10)

    def labels_of(**share):
        return [
            batch.tolist() for _, batch in data.Batches(images, labels, 4, torch.Generator().manual_seed(0), **share)
        ]

    for batch, first, second in zip(labels_of(), labels_of(rank=0, ranks=2), labels_of(rank=1, ranks=2), strict=True):
        assert sorted(batch) == sorted(first + second) and abs(len(first) - len(second)) <= 1


def test_without_an_order_batches_are_slices():
    images, labels = torch.arange(10.0).view(10, 1, 1), torch.arange(10)
    assert [batch.tolist() for _, batch in data.Batches(images, labels, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


# --- files


def test_any_data_set_in_the_format_is_read(folder, arrays):
    (folder / data.IDX_NAMES[0]).unlink()
    (folder / f"{data.IDX_NAMES[0]}.gz").write_bytes(gzip.compress(idx_bytes(arrays[0])))
    dataset = load("auto", str(folder))
    assert dataset.name == folder.name and dataset.classes == 5 and dataset.in_features == 120
    read = [dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels]
    assert all((a == b).all() for a, b in zip(read, arrays, strict=True))


def header(*sizes: int) -> bytes:
    return struct.pack(f">HBB{len(sizes)}I", 0, 8, len(sizes), *sizes)


def edited(change, size=None):
    """Writes change(its bytes) over a file, and makes it `size` bytes long, with a hole at the end."""

    def damage(path: Path) -> None:
        path.write_bytes(change(path.read_bytes()))
        if size:
            os.truncate(path, size)

    return damage


def packed(change, size=None):
    """The same with a .gz file in place of the plain one."""

    def damage(path: Path) -> None:
        edited(lambda raw: gzip.compress(change(raw)), size)(path)
        path.rename(path.with_name(f"{path.name}.gz"))

    return damage


def instead(make):
    """Removes a file and calls make(path)."""
    return lambda path: (path.unlink(), make(path))


HUGE = 2**32 - 1
FAULTS = {  # which of the four files, what happens to it, words of the error
    "missing": (0, Path.unlink, "no such file"),
    "empty": (1, edited(lambda raw: b""), "not an IDX file"),
    "a picture": (0, edited(lambda raw: b"\x89PNG" + raw), "not an IDX file"),
    "floats": (0, edited(lambda raw: raw[:2] + b"\x0d" + raw[3:]), "0x0d"),
    "half a header": (0, edited(lambda raw: raw[:9]), "too short"),
    "truncated": (0, edited(lambda raw: raw[:-7]), "bytes where"),
    "too long": (2, edited(lambda raw: raw + b"\0"), "bytes where"),
    "huge sizes": (0, edited(lambda raw: raw[:4] + b"\xff" * 12 + raw[16:]), "bytes where"),
    "70 dimensions": (0, edited(lambda raw: header(*[1] * 70) + b"\0"), "rank 70"),
    "a product that is 0 in 64 bits": (0, edited(lambda raw: header(2**22, 2**22, 2**20)), "bytes where"),
    "no image of any size": (0, edited(lambda raw: header(0, HUGE, HUGE)), "(0, 4294967295, 4294967295)"),
    "images without pixels": (2, edited(lambda raw: header(40, 0, 10)), "(40, 0, 10)"),
    "images for labels": (1, edited(lambda raw: idx_bytes(np.zeros((200, 1)))), "rank"),
    "labels of another length": (1, edited(lambda raw: idx_bytes(np.arange(199) % 5)), "199 labels"),
    "other test size": (2, edited(lambda raw: idx_bytes(np.zeros((40, 9, 9)))), "(9, 9)"),
    "a class too many in test": (3, edited(lambda raw: idx_bytes(np.full(40, 5))), "test label 5"),
    "a stray label": (1, edited(lambda raw: raw[:-1] + b"\xc8"), "never occurs"),
    "one class": (1, edited(lambda raw: idx_bytes(np.zeros(200))), "one class"),
    "1 TB of zeros": (0, edited(lambda raw: b"", 2**40), "not an IDX file"),
    "1 TB of labels": (1, edited(lambda raw: raw, 2**40), "bytes where"),
    "1 TB of images, as it says": (0, edited(lambda raw: header(2**20, 2**10, 2**10), 2**40 + 16), "allowed are"),
    "packed, not": (1, lambda path: path.rename(f"{path}.gz"), "Not a gzipped file"),
    "packed, cut": (1, packed(lambda raw: raw[:-7]), "201 bytes where"),
    "packed, one more": (1, packed(lambda raw: raw + b"\0"), "more than 208 bytes where"),
    "packed, 8 MB for 200 labels": (1, packed(lambda raw: raw + bytes(2**23)), "more than 208 bytes where"),
    "packed, 64 MB for 200 labels": (1, packed(lambda raw: raw + bytes(2**26)), "bytes where"),
    "packed, 1 TB of zeros behind": (1, packed(lambda raw: raw, 2**40), "1099511627776 bytes where"),
    "packed, huge sizes": (0, packed(lambda raw: header(HUGE, HUGE, HUGE)), "allowed are"),
    "packed, more than there is memory": (0, packed(lambda raw: header(2**11, 2**10, 2**10)), "cannot be read"),
    "a folder": (0, instead(Path.mkdir), "no regular file"),
    "a pipe": (1, instead(os.mkfifo), "no regular file"),
    "a device": (1, instead(lambda path: path.symlink_to("/dev/zero")), "no regular file"),
    "a link to itself": (2, instead(lambda path: path.symlink_to(path)), "no such file"),
}


@pytest.fixture
def little_memory():
    """A process that may take 1 GB more than it has."""
    now, most = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, most))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (now, most))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_file_is_one_clear_line(folder, fault, little_memory):
    number, change, words = FAULTS[fault]
    path = folder / data.IDX_NAMES[number]
    change(path)
    with pytest.raises(DataError) as error:
        read_folder(folder)
    assert words in str(error.value) and str(folder) in str(error.value) and "\n" not in str(error.value)


def test_too_few_images_for_the_folds(folder):
    for name, count in zip(data.IDX_NAMES, (19, 19, 5, 5), strict=True):
        array = np.zeros((count, 4, 4)) if "images" in name else np.arange(count) % 2
        (folder / name).write_bytes(idx_bytes(array))
    with pytest.raises(DataError, match="19 training images"):
        read_folder(folder)


def test_a_damaged_gz_file_is_one_clear_line(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = gzip.compress(idx_bytes(np.zeros(1000)))
    for damaged in (b"no gzip", whole[:-20], whole[:-8] + bytes(8), whole[:12]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="cannot be read"):
            read_idx(path)


@pytest.mark.parametrize("name", ["a**b", "é", "[0-9]*", "two\nlines", "~"])
def test_a_folder_of_any_name_is_read(folder, name):
    moved = folder.rename(folder.with_name(name))
    assert load("auto", str(moved)).name == name
    (moved / data.IDX_NAMES[3]).unlink()
    with pytest.raises(DataError) as error:
        read_folder(moved)
    assert "\n" not in str(error.value) and name.replace("\n", r"\n") in str(error.value)


def test_a_name_that_is_not_utf_8_is_one_clear_line(folder):
    moved = folder.rename(os.fsdecode(bytes(folder) + b"\xff"))
    with pytest.raises(DataError, match=r"not UTF-8 .* rename") as error:
        read_folder(moved)
    str(error.value).encode()


def test_odd_places_are_one_clear_line(folder, monkeypatch):
    for place in (folder / data.IDX_NAMES[0], folder / "missing", folder / ("x" * 300), folder / "\0"):
        with pytest.raises(DataError, match=data.IDX_NAMES[0]):
            read_folder(place)

    def stat(path, **options):  # root, as whom containers test, may enter every folder
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "stat", stat)
    for read in (read_folder, read_idx):
        with pytest.raises(DataError, match=r"Permission denied") as error:
            read(folder)
        assert str(folder) in str(error.value)


# --- MNIST through datamaestro


class Network:
    """Stands in for the network: serves `files`, by the name at the end of the URL, and notes what was asked for."""

    def __init__(self, files: dict[str, bytes]):
        self.files, self.asked, self.time_outs = files, [], []

    def get(self, url, headers=None, stream=False, timeout=None):
        name = url.rsplit("/", 1)[1]
        self.asked.append(name)
        self.time_outs.append(timeout)
        if name not in self.files:
            raise requests.ConnectionError(f"no route to {url}")
        response = requests.Response()
        response.status_code = 200
        response.raw = gzip.io.BytesIO(self.files[name])
        return response


@pytest.fixture
def network(tmp_path, arrays, monkeypatch):
    """A network with a small MNIST, and datamaestro's cache in an empty folder."""
    from datamaestro.context import Context
    from datamaestro.definitions import AbstractDataset

    raw = [idx_bytes(array) for array in arrays]
    network = Network({f"{name}.gz": gzip.compress(one) for name, one in zip(data.IDX_NAMES, raw, strict=True)})
    monkeypatch.setattr(requests, "get", network.get)
    monkeypatch.setattr(data, "MNIST_SHA256", tuple(hashlib.sha256(one).hexdigest() for one in raw))
    monkeypatch.setattr(Context.instance(), "_path", tmp_path)
    monkeypatch.setattr(AbstractDataset.find("com.lecun.mnist"), "config", None)  # it remembers where the files were
    return network


def test_mnist_is_downloaded_once_with_a_time_out(network):
    assert load("mnist").train_images.shape == (200, 12, 10)
    assert len(network.asked) == 4 and all(network.time_outs)
    data.load.cache_clear()
    load("mnist")
    assert len(network.asked) == 4


def test_a_damaged_cache_is_fetched_again_once(network):
    good = data.fetch_mnist()
    whole = good[2].read_bytes()
    good[2].write_bytes(b"damaged")
    assert data.fetch_mnist() == good and good[2].read_bytes() == whole
    assert len(network.asked) == 5

    good[2].write_bytes(b"damaged")
    network.files["t10k-images-idx3-ubyte.gz"] = gzip.compress(b"damaged as well")
    with pytest.raises(DataError, match=r"test_images.idx is damaged"):
        load("mnist")
    assert len(network.asked) == 6


@pytest.mark.parametrize("served", ["nothing", "half", "another", "a bomb"])
def test_a_damaged_file_stays_until_its_replacement_is_verified(network, served, monkeypatch):
    """Whatever comes of the download, the cache holds what it held, and nothing else."""
    paths = data.fetch_mnist()
    kept = b"worth something to someone"
    paths[1].write_bytes(kept)
    name = "train-labels-idx1-ubyte.gz"
    whole = network.files.pop(name)
    answers = {"half": whole[: len(whole) // 2], "another": gzip.compress(b"x"), "a bomb": gzip.compress(bytes(2**26))}
    if served != "nothing":
        network.files[name] = answers[served]
    during = []
    monkeypatch.setattr(requests, "get", lambda *a, **b: during.append(paths[1].read_bytes()) or network.get(*a, **b))
    words = r"train_labels.idx is damaged .* left as it is, and could not be downloaded"
    with pytest.raises(DataError, match=words) as error:
        data.fetch_mnist()
    assert "\n" not in str(error.value) and during == [kept] and paths[1].read_bytes() == kept
    assert sorted(paths[1].parent.iterdir()) == sorted(paths)

    network.files[name] = whole
    assert data.fetch_mnist() == paths and len(load("mnist").train_labels) == 200


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_in_the_cache_is_one_clear_line(network, make):
    path = data.fetch_mnist()[3]
    path.unlink()
    make(path)
    with pytest.raises(DataError, match=r"test_labels.idx is no regular file"):
        load("mnist")
    assert len(network.asked) == 4


def test_a_cache_that_cannot_be_written_is_one_clear_line(network, tmp_path):
    (tmp_path / "cache").write_text("a file in the place of the folder")
    with pytest.raises(DataError, match=r"cache: .*DATAMAESTRO_DIR"):
        load("mnist")


def test_a_broken_download_does_not_stay_broken(network):
    whole = network.files["train-labels-idx1-ubyte.gz"]
    network.files["train-labels-idx1-ubyte.gz"] = whole[:30]
    with pytest.raises(DataError, match=r"train_labels.idx"):
        load("mnist")
    network.files["train-labels-idx1-ubyte.gz"] = whole
    assert len(load("mnist").train_labels) == 200


def test_without_network_auto_takes_digits_and_mnist_fails(network, capfd):
    network.files.clear()
    dataset = load("auto")
    assert dataset.name == "digits" and "could not be downloaded" in dataset.warning
    with pytest.raises(DataError, match="could not be downloaded"):
        load("mnist")
    assert capfd.readouterr() == ("", ""), "datamaestro's stack traces are on the screen"


def test_real_mnist(mnist):
    dataset = load("mnist")
    assert dataset.name == "mnist" and not dataset.warning
    assert dataset.train_images.shape == (60_000, 28, 28) and dataset.test_images.shape == (10_000, 28, 28)
    assert dataset.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    images, labels = split_tensors(dataset, "train", 0, CPU)
    assert len(images) == 3000
    assert np.abs(labels.bincount().numpy() - np.bincount(dataset.train_labels) / 20).max() < 1
    assert len(split_tensors(dataset, "val", 0, CPU)[1]) == 57_000
