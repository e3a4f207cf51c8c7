"""The readers of real data: small files in the published formats, written here, and what is wrong with damaged ones."""

from __future__ import annotations

import collections
import gzip
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import TensorDataset

import datasets
from datasets.idx import read_idx
from datasets.pickles import unpickle

Pictures = NDArray[np.uint8]

CIFAR = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
MNIST = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
PER_BATCH = 3


def drawn(seed: int, *shape: int, classes: int = 256) -> Pictures:
    return np.random.default_rng(seed).integers(0, classes, shape, dtype=np.uint8)


def text(content: bytes) -> bytes:
    """A str of Python 2 as a pickle of protocol 2 has it."""
    return b"T" + struct.pack("<I", len(content)) + content


def integers(numbers: list[int]) -> bytes:
    return b"](" + b"".join(b"K" + bytes([number]) for number in numbers) + b"e"


def python2_batch(pictures: Pictures, labels: list[int]) -> bytes:
    """Opcode by opcode what Python 2 wrote for {"batch_label": ..., "labels": [...], "data": array}."""
    rows, columns = pictures.shape
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|")
    dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    array += b"(K\x01" + b"J" + struct.pack("<i", rows) + b"J" + struct.pack("<i", columns) + b"\x86"
    array += dtype + b"\x89" + text(pictures.tobytes()) + b"tb"
    keys = text(b"batch_label") + text(b"a batch") + text(b"labels") + integers(labels) + text(b"data") + array
    return b"\x80\x02}(" + keys + b"u."


def python3_batch(pictures: Pictures, labels: list[int]) -> bytes:
    return pickle.dumps({"data": np.asfortranarray(pictures), "labels": labels}, protocol=4)


def binary_batch(pictures: Pictures, labels: list[int]) -> bytes:
    return b"".join(bytes([label]) + row.tobytes() for label, row in zip(labels, pictures))


WRITERS: dict[str, tuple[Callable[[Pictures, list[int]], bytes], str]] = {
    "python 2": (python2_batch, ""),
    "python 3": (python3_batch, ""),
    "binary": (binary_batch, ".bin"),
}


def write_cifar(folder: Path, writer: str) -> tuple[Pictures, list[int]]:
    folder.mkdir(parents=True, exist_ok=True)
    pictures = drawn(0, len(CIFAR) * PER_BATCH, 3072)
    labels = drawn(1, len(pictures), classes=10).tolist()
    write, suffix = WRITERS[writer]
    for number, name in enumerate(CIFAR):
        rows = slice(number * PER_BATCH, (number + 1) * PER_BATCH)
        (folder / f"{name}{suffix}").write_bytes(write(pictures[rows], labels[rows]))
    return pictures, labels


def idx(array: Pictures) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder: Path, suffix: str = "") -> list[Pictures]:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = [drawn(0, 7, 5, 4), drawn(1, 7, classes=10), drawn(2, 3, 5, 4), drawn(3, 3, classes=10)]
    for name, array in zip(MNIST, arrays):
        content = idx(array)
        (folder / f"{name}{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    return arrays


def expect(found: TensorDataset, pictures: Pictures, labels: list[int], train: Pictures) -> None:
    """`found` is `pictures` in units of the training pictures' channels."""
    mean, deviation = (f(train.astype(np.float64), axis=(0, 2, 3), keepdims=True) for f in (np.mean, np.std))
    x, y = found.tensors
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    np.testing.assert_allclose(x, (pictures - mean) / deviation, atol=1e-5)
    assert y.tolist() == labels


@pytest.mark.parametrize("unpacked", [False, True], ids=["files", "archive's folder"])
@pytest.mark.parametrize("writer", WRITERS)
def test_cifar_is_read_from_every_version(tmp_path: Path, writer: str, unpacked: bool) -> None:
    version = "bin" if writer == "binary" else "py"
    rows, labels = write_cifar(tmp_path / f"cifar-10-batches-{version}" if unpacked else tmp_path, writer)
    pictures = rows.reshape(-1, 3, 32, 32)
    cut = 5 * PER_BATCH
    train, test = datasets.cifar10(tmp_path)
    expect(train, pictures[:cut], labels[:cut], pictures[:cut])
    expect(test, pictures[cut:], labels[cut:], pictures[:cut])


def test_the_batch_written_here_is_one_that_numpy_reads() -> None:
    """The opcodes above are what the real files hold only if Python's own unpickler takes them, too."""
    pictures = drawn(0, 2, 3072)
    content = pickle.loads(python2_batch(pictures, [4, 2]), encoding="bytes")
    np.testing.assert_array_equal(content[b"data"], pictures)
    assert content[b"labels"] == [4, 2]


@pytest.mark.parametrize("folder", [".", "MNIST/raw"])
@pytest.mark.parametrize("suffix", ["", ".gz"], ids=["plain", "gz"])
def test_mnist_is_read_plain_and_compressed(tmp_path: Path, suffix: str, folder: str) -> None:
    arrays = write_mnist(tmp_path / folder, suffix)
    train, test = datasets.mnist(tmp_path)
    expect(train, arrays[0][:, None], arrays[1].tolist(), arrays[0][:, None])
    expect(test, arrays[2][:, None], arrays[3].tolist(), arrays[0][:, None])


def test_digits_are_split_the_same_way_every_time() -> None:
    train, test = datasets.digits()
    assert train.tensors[0].shape == (1347, 1, 8, 8)
    assert test.tensors[0].shape == (450, 1, 8, 8)
    assert train.tensors[0].mean().item() == pytest.approx(0, abs=1e-5)
    assert train.tensors[0].std(correction=0).item() == pytest.approx(1, abs=1e-5)
    shares = [collections.Counter(split.tensors[1].tolist()) for split in (train, test)]
    assert all(abs(shares[0][digit] - 3 * shares[1][digit]) <= 3 for digit in range(10))
    for first, second in zip((train, test), datasets.digits()):
        assert all(torch.equal(*pair) for pair in zip(first.tensors, second.tensors))


def test_no_digit_is_both_learned_from_and_tested() -> None:
    train, test = ({picture.numpy().tobytes() for picture in split.tensors[0]} for split in datasets.digits())
    assert not train & test


def test_a_constant_channel_is_centred_only(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / MNIST[0]).write_bytes(idx(np.full((7, 5, 4), 9, np.uint8)))
    train, _ = datasets.mnist(tmp_path)
    assert not train.tensors[0].any()


def test_a_data_set_is_found_by_its_name(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    write_cifar(tmp_path, "binary")
    assert datasets.load()[0].tensors[0].shape[1:] == (1, 8, 8)
    assert datasets.load("mnist", tmp_path)[0].tensors[0].shape[1:] == (1, 5, 4)
    assert datasets.load("cifar10", tmp_path)[0].tensors[0].shape[1:] == (3, 32, 32)
    with pytest.raises(ValueError, match="no data set is called 'cifar': there are 'digits', 'cifar10', 'mnist'"):
        datasets.load("cifar", tmp_path)
    with pytest.raises(ValueError, match="mnist is read from files: say in which folder"):
        datasets.load("mnist")


def test_absent_files_are_named_and_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        datasets.cifar10(tmp_path)
    message = str(raised.value)
    assert str(tmp_path) in message
    assert all(f"{name}{suffix}" in message for name in CIFAR for suffix in ("", ".bin"))
    assert "cifar-10-batches-py/test_batch" in message
    assert "https://www.cs.toronto.edu/~kriz/cifar.html" in message
    with pytest.raises(FileNotFoundError) as raised:
        datasets.mnist(tmp_path)
    message = str(raised.value)
    assert all(f"{name}{suffix}" in message for name in MNIST for suffix in ("", ".gz"))
    assert "https://ossci-datasets.s3.amazonaws.com/mnist/" in message


def test_files_that_are_missing_from_a_version_are_named_alone(tmp_path: Path) -> None:
    write_cifar(tmp_path, "binary")
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"or data_batch_3\.bin \(1 of 6 missing\)\n"):
        datasets.cifar10(tmp_path)


def test_a_binary_batch_that_is_damaged(tmp_path: Path) -> None:
    write_cifar(tmp_path, "binary")
    batch = tmp_path / "data_batch_2.bin"
    whole = batch.read_bytes()
    batch.write_bytes(whole[:-1])
    cut = r"data_batch_2.bin is cut short: of its 9,218 bytes, 3,072 are left after 2 pictures of 3,073 bytes"
    with pytest.raises(ValueError, match=cut):
        datasets.cifar10(tmp_path)
    batch.write_bytes(b"\x11" + whole[1:])
    with pytest.raises(ValueError, match=r"data_batch_2.bin has the label 17, and labels are 0 to 9"):
        datasets.cifar10(tmp_path)
    batch.write_bytes(b"")
    with pytest.raises(ValueError, match=r"data_batch_2.bin holds no pictures"):
        datasets.cifar10(tmp_path)


PICTURES = drawn(5, 2, 3072)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (python2_batch(PICTURES, [4, 2])[:-900], "is damaged: pickle data was truncated"),
        (b"", "is damaged: "),
        (b"no pickle", "is damaged: "),
        (pickle.dumps([1, 2]), "it holds a list and not a dict"),
        (pickle.dumps({"data": PICTURES.astype(np.int16), "labels": [4, 2]}, 4), "an array in it is not of bytes"),
        (pickle.dumps({"data": PICTURES[:, 1:], "labels": [4, 2]}, 4), "no array of 3,072 bytes for each picture"),
        (pickle.dumps({"labels": [4, 2]}), "no array of 3,072 bytes for each picture under 'data'"),
        (pickle.dumps({"data": PICTURES}, 4), "no list under 'labels'"),
        (python2_batch(PICTURES, [4]), "holds 2 pictures, and there are 1 labels"),
        (python2_batch(PICTURES, [4, 10]), "has the label 10"),
        (pickle.dumps({"data": PICTURES, "labels": [4, "cat"]}, 4), "has the label 'cat'"),
        (
            python2_batch(PICTURES, [4, 2]).replace(b"J\x02\0\0\0J", b"J\x03\0\0\0J"),
            r"shape \(3, 3072\) and 6,144 bytes",
        ),
        (
            python2_batch(PICTURES, [4, 2]).replace(b"J\x02\0\0\0J", b"J\xfe\xff\xff\xffJ"),
            r"has the shape \(-2, 3072\)",
        ),
    ],
)
def test_a_pickled_batch_that_is_damaged(tmp_path: Path, content: bytes, sentence: str) -> None:
    write_cifar(tmp_path, "python 2")
    (tmp_path / "data_batch_4").write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as raised:
        datasets.cifar10(tmp_path)
    assert str(tmp_path / "data_batch_4") in str(raised.value)


class Trap:
    """A pickle of it calls a function when it is read."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_pickle_runs_nothing(tmp_path: Path, protocol: int) -> None:
    victim, batch = tmp_path / "made by the pickle", tmp_path / "data_batch_1"
    batch.write_bytes(pickle.dumps({"data": Trap(open, str(victim), "w")}, protocol))
    with pytest.raises(ValueError, match=r"it asks for .*\.open, which no picture needs"):
        unpickle(batch)
    assert not victim.exists()
    pickle.loads(batch.read_bytes())["data"].close()
    assert victim.exists()


@pytest.mark.parametrize(
    "function", [eval, getattr, np.load, np.frombuffer, collections.OrderedDict, np.ndarray.tofile, torch.load]
)
def test_a_pickle_gets_no_class_or_function(tmp_path: Path, function: Callable[..., object]) -> None:
    batch = tmp_path / "data_batch_1"
    batch.write_bytes(pickle.dumps({"data": Trap(function)}, 4))
    with pytest.raises(ValueError, match="which no picture needs"):
        unpickle(batch)


def test_a_pickle_cut_short_anywhere_is_damaged(tmp_path: Path) -> None:
    batch = tmp_path / "data_batch_1"
    whole = python2_batch(PICTURES[:, :40], [4, 2])
    for length in range(len(whole)):
        batch.write_bytes(whole[:length])
        with pytest.raises(
            ValueError, match="data_batch_1 is not a batch of CIFAR-10 that Python wrote, or is damaged"
        ):
            unpickle(batch)


def test_damage_to_one_byte_never_escapes_as_another_error(tmp_path: Path) -> None:
    batch = tmp_path / "data_batch_1"
    whole = python2_batch(PICTURES[:, :40], [4, 2])
    refused = 0
    for position in range(len(whole)):
        for value in b"\x00.Rbt\xff":
            batch.write_bytes(whole[:position] + bytes([value]) + whole[position + 1 :])
            try:
                unpickle(batch)
            except ValueError:
                refused += 1
    assert refused > len(whole)  # what is left is damage to a pixel, a label or a key


def test_an_idx_file_that_is_damaged(tmp_path: Path) -> None:
    whole = idx(drawn(0, 7, 5, 4))
    path = tmp_path / "train-images-idx3-ubyte"
    for content, sentence in (
        (whole[:-1], "says that it holds 7 x 5 x 4 bytes, and holds 139"),
        (whole + b"\0", "says that it holds 7 x 5 x 4 bytes, and holds 141"),
        (whole[:10], "starts with 00 00 08 03, and an idx file of bytes with 3 dimensions"),
        (b"\0\0\x0d\x03" + whole[4:], "starts with 00 00 0d 03, and an idx file"),
        (idx(drawn(1, 7)), "starts with 00 00 08 01, and an idx file of bytes with 3 dimensions with 00 00 08 03"),
        (b"", "starts with nothing, and an idx file"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=sentence):
            read_idx(path, 3)


def test_a_compressed_file_that_is_damaged(tmp_path: Path) -> None:
    whole = idx(drawn(0, 7, 5, 4))
    packed = gzip.compress(whole)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    flipped = packed[:20] + bytes([packed[20] ^ 0xFF]) + packed[21:]
    no_such_block = packed[:10] + b"\xff" + packed[11:]
    for content in (whole, packed[:-9], packed[:5], flipped, packed[:-8] + bytes(8), no_such_block):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz cannot be decompressed: "):
            read_idx(path, 3)


def test_pictures_and_labels_of_mnist_belong_together(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / MNIST[1]).write_bytes(idx(drawn(1, 6, classes=10)))
    with pytest.raises(ValueError, match="holds 7 pictures, and there are 6 labels"):
        datasets.mnist(tmp_path)
