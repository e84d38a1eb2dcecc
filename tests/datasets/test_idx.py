"""IDX files: what is written comes back, and what is damaged is named."""

import gzip
import re
import struct

import numpy as np
import pytest

from jaxnn.datasets import idx_folder, read_idx

CODES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, CODES[array.dtype.name], array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write(path, data):
    """Bytes, or an array as IDX; compressed if the name says so."""
    data = idx_bytes(data) if isinstance(data, np.ndarray) else data
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


# ---------------------------------------------------------------- one file


@pytest.mark.quick
@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("shape", [(7,), (3, 2), (2, 3, 4)])
@pytest.mark.parametrize("dtype", CODES)
def test_what_is_written_comes_back(tmp_path, dtype, shape, end):
    numbers = np.random.default_rng(0).uniform(-1e9, 1e9, shape)
    array = numbers.astype(np.int64).astype(dtype) if "int" in dtype else numbers.astype(dtype)
    path = tmp_path / f"array{end}"
    write(path, array)
    back = read_idx(path)
    assert back.dtype == np.dtype(dtype)
    assert back.dtype.isnative
    assert back.flags.writeable
    np.testing.assert_array_equal(back, array)


# mtime=0: a test is named by its bytes, and every worker must collect the same names.
GOOD = idx_bytes(np.arange(6, dtype=np.int16).reshape(2, 3))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a", b"", "not an IDX file: it starts with b''"),
        ("a", GOOD[:3], "not an IDX file"),
        ("a", b"<!DOCTYPE html>", "not an IDX file: it starts with b'<!DO', expected two zero bytes"),
        ("a", b"\x01" + GOOD[1:], "not an IDX file"),
        ("a", gzip.compress(GOOD, mtime=0), "not an IDX file.* it is compressed: add .gz to its name"),
        ("a", b"\0\0\x0a" + GOOD[3:], "unknown type code 0x0a in byte 3; known: 0x08 uint8.* 0x0e float64"),
        ("a", GOOD[:9], "truncated: the header of 2 dimensions takes 12 bytes, found 9"),
        ("a", GOOD[:-1], r"truncated: an array of shape \(2, 3\) and type int16 takes 24 bytes .*, found 23"),
        ("a", GOOD + b"\0\0", "2 bytes after the end: .* takes 24 bytes with its header, found 26"),
        ("a.gz", GOOD, r"named .gz but not gzip: it starts with b'\\x00\\x00\\x0b\\x02'.*remove .gz"),
        ("a.gz", b"", "named .gz but not gzip"),
        ("a.gz", gzip.compress(GOOD, mtime=0)[:-12], "damaged gzip file of [0-9]+ bytes .*get the file again"),
        ("a.gz", gzip.compress(GOOD, mtime=0)[:-8] + bytes(8), r"damaged gzip file .*CRC"),
        ("a.gz", gzip.compress(GOOD, mtime=0)[:10] + b"\xff" * 30, "damaged gzip file .*block type"),
        ("a.gz", gzip.compress(GOOD[:-1], mtime=0), "truncated: .*takes 24 bytes .*, found 23"),
    ],
)
def test_damaged_files_are_named_with_what_is_wrong(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: {message}"):
        read_idx(path)


def test_a_file_that_is_not_there(tmp_path):
    (tmp_path / "images.gz").touch()
    with pytest.raises(FileNotFoundError, match=r"image\.gz: no such file; did you mean .*images\.gz\?"):
        read_idx(tmp_path / "image.gz")
    with pytest.raises(FileNotFoundError, match=r"no such file; there is no folder .*nowhere either"):
        read_idx(tmp_path / "nowhere" / "image.gz")
    with pytest.raises(ValueError, match="is a folder, expected a file"):
        read_idx(tmp_path)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = tmp_path / "secret"
    path.touch()
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ValueError, match="secret: no permission to read it"):
        read_idx(path)


# ---------------------------------------------------------------- a folder of four

TRAIN_X = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
TRAIN_Y = np.array([0, 2, 1, 2, 0], np.uint8)
TEST_X, TEST_Y = TRAIN_X[:3] + np.uint8(100), TRAIN_Y[2:]
FILES = {
    "train-images-idx3-ubyte": TRAIN_X,
    "train-labels-idx1-ubyte": TRAIN_Y,
    "t10k-images-idx3-ubyte": TEST_X,
    "t10k-labels-idx1-ubyte": TEST_Y,
}


def write_folder(folder, joint="-", end="", **changed):
    """The four files; `changed` by the first letters of their names, None for no file."""
    for name, data in FILES.items():
        short = name.split("-idx")[0].replace("-", "_")
        data = changed.get(short, data)
        if data is not None:
            write(folder / (name.replace("-idx", f"{joint}idx") + end), data)


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("joint", ["-", "."])
def test_folder_of_four_files(tmp_path, joint, end):
    write_folder(tmp_path, joint, end)
    train, test = idx_folder(tmp_path)
    for data, x, y in ((train, TRAIN_X, TRAIN_Y), (test, TEST_X, TEST_Y)):
        assert (data.x.dtype, data.y.dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(data.x, x)
        np.testing.assert_array_equal(data.y, y)
        assert data.classes == ("0", "1", "2")
        assert data.features == ()


def test_labels_that_do_not_start_at_0_become_ids_that_do(tmp_path):
    write_folder(tmp_path, train_labels=TRAIN_Y + np.uint8(9), t10k_labels=TEST_Y + np.uint8(9))
    train, test = idx_folder(str(tmp_path))
    assert train.classes == test.classes == ("9", "10", "11")
    np.testing.assert_array_equal(train.y, TRAIN_Y)
    np.testing.assert_array_equal(test.y, TEST_Y)


def test_missing_files_are_named_and_so_are_those_found(tmp_path):
    write_folder(tmp_path, t10k_images=None, train_labels=None)
    with pytest.raises(FileNotFoundError) as caught:
        idx_folder(tmp_path)
    missing, found = str(caught.value).split("found")
    assert missing.startswith(f"{tmp_path}: missing ")
    assert "train-labels-idx1-ubyte[.gz], t10k-images-idx3-ubyte[.gz]" in missing
    assert "train-images" not in missing
    assert "'t10k-labels-idx1-ubyte', 'train-images-idx3-ubyte'" in found


def test_found_files_are_named_up_to_ten(tmp_path):
    with pytest.raises(FileNotFoundError, match="found nothing;"):
        idx_folder(tmp_path)
    for i in range(12):
        (tmp_path / f"{i:02}").touch()
    with pytest.raises(FileNotFoundError, match=r"found '00', .*'09', … and 2 more;"):
        idx_folder(tmp_path)


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(str(tmp_path / 'mnist'))}: no such folder"):
        idx_folder(tmp_path / "mnist")


@pytest.mark.parametrize(
    ("changed", "file", "message"),
    [
        ({"train_images": TRAIN_Y}, "train-images", r"array of shape \(5,\) .*expected images \(N, height, width\)"),
        ({"t10k_labels": TEST_X}, "t10k-labels", r"array of shape \(3, 4, 3\) .*expected labels \(N,\)"),
        ({"train_images": TRAIN_X.astype(np.int16)}, "train-images", "type int16, expected images .* of type uint8"),
        ({"train_labels": TRAIN_Y.astype(np.float32)}, "train-labels", "type float32, expected labels .* uint8"),
        ({"t10k_images": TEST_X[:0], "t10k_labels": TEST_Y[:0]}, "t10k-images", r"empty: .* shape \(0, 4, 3\)"),
        ({"train_labels": TRAIN_Y[:4]}, "train-labels", "4 labels, but train-images-idx3-ubyte holds 5 images"),
        ({"t10k_images": TEST_X[:, :, :2]}, "t10k-images", "images of 4×2 pixels, .* in train-images.* have 4×3"),
        ({"t10k_labels": np.array([0, 7, 1], np.uint8)}, "t10k-labels", "label 1 .* is 7, .*no training image has"),
        ({"train_labels": TRAIN_Y * np.uint8(0)}, "train-labels", "all 5 labels are '0'"),
        ({"train_images": b"?"}, "train-images", "not an IDX file"),
    ],
)
def test_files_that_do_not_fit_together(tmp_path, changed, file, message):
    write_folder(tmp_path, **changed)
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path / file))}-idx[13]-ubyte: .*{message}"):
        idx_folder(tmp_path)
