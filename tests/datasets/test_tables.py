"""The user's own CSV and NPZ files: what is right is read, what is wrong is named."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxnn.datasets import csv_file, npz_file


@pytest.fixture
def csv(tmp_path):
    """Reads a text as a CSV file."""

    def read(text, **kwargs):
        path = tmp_path / "pets.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return csv_file(path, **kwargs)

    return read


@pytest.fixture
def npz(tmp_path):
    """Reads arrays as an NPZ file."""

    def read(task="auto", **arrays: Any):
        np.savez(tmp_path / "pets.npz", **arrays)
        return npz_file(tmp_path / "pets.npz", task)

    return read


# ---------------------------------------------------------------- CSV that is right


@pytest.mark.quick
def test_csv_of_text_labels(csv):
    data = csv("age,weight,kind\n3,4.5,dog\n1,-2e-1,cat\n7,.5,dog\n")
    assert data.x.dtype == np.float32
    np.testing.assert_array_equal(data.x, np.array([[3, 4.5], [1, -0.2], [7, 0.5]], np.float32))
    assert data.y.dtype == np.int32
    assert data.y.tolist() == [1, 0, 1]
    assert data.classes == ("cat", "dog")
    assert data.features == ("age", "weight")


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffage,kind\n3,dog\n1,cat\n",
        "age,kind\r\n3,dog\r\n1,cat\r\n",
        "age,kind\r3,dog\r1,cat",
        '"age","kind"\n"3","dog"\n"1","cat"\n',
        "\n age , kind \n\n 3 , dog \n   \n1,  \"cat\"\n\n",
    ],
    ids=["byte order mark", "Windows", "old Macintosh", "quoted", "blanks"],
)
def test_csv_in_many_hands(csv, text):
    data = csv(text)
    assert data.x.tolist() == [[3], [1]]
    assert data.y.tolist() == [1, 0]
    assert (data.classes, data.features) == (("cat", "dog"), ("age",))


def test_csv_label_in_any_column(csv):
    data = csv('a,"the ""kind"", named",b\n1,x,2\n3,y,4\n', label='the "kind", named')
    assert data.x.tolist() == [[1, 2], [3, 4]]
    assert data.features == ("a", "b")
    assert data.classes == ("x", "y")


@pytest.mark.parametrize(
    ("labels", "task", "y", "classes"),
    [
        (["10", "9", "10.0"], "auto", [1, 0, 1], ("9", "10")),  # sorted as numbers, and 10.0 is 10
        (["-1", "1", "-1"], "auto", [0, 1, 0], ("-1", "1")),
        (["0.5", "1", "0.5"], "auto", [0.5, 1, 0.5], ()),
        (["0.5", "1", "0.5"], "classification", [0, 1, 0], ("0.5", "1")),
        (["0", "1", "0"], "regression", [0, 1, 0], ()),
        (["b10", "b9", "b10"], "auto", [0, 1, 0], ("b10", "b9")),  # sorted as text
        (["1", "x", "2"], "classification", [0, 2, 1], ("1", "2", "x")),
        ([str(i) for i in range(20)], "auto", list(range(20)), tuple(str(i) for i in range(20))),
        ([str(i) for i in range(21)], "auto", list(range(21)), ()),
    ],
)
def test_task_by_the_labels(csv, npz, labels, task, y, classes):
    data = csv("a,label\n" + "".join(f"0,{label}\n" for label in labels), task=task)
    assert data.classes == classes
    assert data.y.dtype == (np.int32 if classes else np.float32)
    np.testing.assert_array_equal(data.y, np.array(y, data.y.dtype))

    try:
        array = np.array([float(label) for label in labels])
    except ValueError:
        array = np.array(labels)
    same = npz(task, x=np.zeros((len(labels), 1)), y=array)
    assert same.classes == classes
    assert same.y.dtype == data.y.dtype
    np.testing.assert_array_equal(same.y, data.y)


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(st.tuples(finite, finite, finite), min_size=1))
def test_csv_numbers_come_back_exactly(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "numbers.csv"
    path.write_text("a,b,c\n" + "".join(",".join(map(repr, row)) + "\n" for row in rows))
    data = csv_file(path, task="regression")
    np.testing.assert_array_equal(np.column_stack([data.x, data.y]), np.array(rows, np.float32))


# ---------------------------------------------------------------- CSV that is wrong


@pytest.mark.parametrize(
    ("text", "kwargs", "message"),
    [
        ("", {}, ": the file is empty"),
        ("\n  \n", {}, ": the file is empty"),
        ("a,b\n", {}, ": only a header, no rows below it"),
        ("1,2\n3,4\n", {}, r", row 1: only numbers \('1', '2'\), expected a header"),
        ("a;b\n1;2\n", {}, ", row 1: only one column, 'a;b'; .* commas"),
        ("a,b,a\n1,2,3\n", {}, r", row 1, column 3: a second column 'a' \(the first is column 1\)"),
        (",a,b\n0,1,2\n", {}, ", row 1, column 1: has no name; .*index=False"),
        ("age,kind\n1,x\n", {"label": "kin"}, ": no column 'kin' .*did you mean 'kind'.* are 'age', 'kind'"),
        ("age,kind\n1,x\n", {"label": "zzz"}, ": no column 'zzz' for the labels; the columns are 'age', 'kind'"),
        ("a,b\n1,x\n\n2\n", {}, ", row 4: 1 fields, but the header names 2 columns"),
        ("a,b\n1,x\n2,y,z\n", {}, ", row 3: 3 fields, but the header names 2 columns"),
        ("a,b,c\n1,2,x\n3,tall,y\n", {}, ", row 3, column 'b': expected a finite number, found 'tall'"),
        ("a,b,c\n1,2,x\n3,,y\n", {}, ", row 3, column 'b': expected a number, the cell is empty"),
        ("a,b,c\n1,2,x\n3,  ,y\n", {}, ", row 3, column 'b': expected a number, the cell is empty"),
        ("a,b,c\n1,NaN,x\n3,4,y\n", {}, ", row 2, column 'b': expected a finite number, found 'NaN'"),
        ("a,b,c\n1,2,x\n-inf,4,y\n", {}, ", row 3, column 'a': expected a finite number, found '-inf'"),
        ("a,b,c\n1,2,x\n3,1_000,y\n", {}, ", row 3, column 'b': expected a finite number, found '1_000'"),
        ("a,b,c\n1,2,x\n3,1e39,y\n", {}, ", row 3, column 'b': 1e39 is too large for a float32"),
        ("c,a\nx,1\ny,?\n", {"label": "c"}, ", row 3, column 'a': expected a finite number, found '?'"),
        ('a,b\n"1\n",x\n?,y\n', {}, ", row 4, column 'a': .* found '?'"),  # the row above takes two lines
        ("a,b\n1,x\n2, \n", {}, ", row 3, column 'b': the label is missing"),
        ("a,b\n1,2.5\n2,nan\n", {}, ", row 3, column 'b': the label is missing .*nan"),
        ("a,b\n1,x\n2,nan\n", {}, ", row 3, column 'b': the label is missing .*nan"),
        ("a,b\n1,2.5\n2,n/a\n", {}, ", row 3, column 'b': .* 'n/a', but the label in row 2 is one; .*classification"),
        ("a,b\n1,2.5\n2,inf\n", {}, ", row 3, column 'b': expected a finite number, found 'inf'"),
        ("a,b\n1,2\n2,x\n", {"task": "regression"}, ", row 3, column 'b': .* 'x'; a regression needs a number"),
        ("a,b\n1,2\n2,1e39\n", {"task": "regression"}, ", row 3, column 'b': 1e39 is too large for a float32"),
        ("a,b\n1,x\n2,x\n", {}, ", column 'b': all 2 labels are 'x', .* at least two classes"),
        ("a,b\n1,0\n2,0\n", {}, ", column 'b': all 2 labels are '0', .* at least two classes"),
        (b"a,b\n1,x\n2,caf\xe9\n", {}, ", row 3, column 2: the byte 0xe9 is not UTF-8 text"),
        ("a,b\n1,x\n".encode("utf-16"), {}, ", row 1, column 1: the byte 0xff is not UTF-8 text"),
        ('a,b\n1,x\n2,"y\n3,z\n', {}, ", row 3: unexpected end of data; check the quotes"),
        ('a,b\n1,x\n2,"y"z\n', {}, ", row 3: .*; check the quotes"),
    ],
)
def test_csv_errors_name_file_row_and_column(tmp_path, csv, text, kwargs, message):
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path / 'pets.csv'))}{message}"):
        csv(text, **kwargs)


@pytest.mark.parametrize("read", [csv_file, npz_file])
def test_no_file_and_no_such_task(tmp_path, read):
    (tmp_path / "pets.data").touch()
    with pytest.raises(FileNotFoundError, match=r"pet\.data: no such file; did you mean .*pets\.data\?"):
        read(tmp_path / "pet.data")
    with pytest.raises(ValueError, match="unknown task 'regresion'; did you mean 'regression'"):
        read(tmp_path / "pets.data", task="regresion")


# ---------------------------------------------------------------- NPZ that is right

X = np.arange(12.0).reshape(4, 3)
Y = np.array([5, 7, 5, 7])


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64, np.int8, np.uint16, bool])
def test_npz_numbers_become_float32(npz, dtype):
    data = npz(x=X.astype(dtype), y=Y)
    assert data.x.dtype == np.float32
    np.testing.assert_array_equal(data.x, X.astype(dtype).astype(np.float32))
    assert data.y.tolist() == [0, 1, 0, 1]
    assert (data.classes, data.features) == (("5", "7"), ())


@pytest.mark.parametrize("shape", [(4, 3), (4, 2, 3), (4, 2, 3, 1)])
def test_npz_images_stay_uint8(npz, shape):
    x = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    data = npz(x=x, y=np.array(["b", "a", "b", "a"]))
    assert data.x.dtype == np.uint8
    np.testing.assert_array_equal(data.x, x)
    assert data.y.tolist() == [1, 0, 1, 0]
    assert data.classes == ("a", "b")


@pytest.mark.parametrize(
    ("y", "task", "expected", "classes"),
    [
        (Y[:, None], "auto", [0, 1, 0, 1], ("5", "7")),
        (Y == 5, "auto", [1, 0, 1, 0], ("0", "1")),
        (np.array([0.1, 0.2, 0.1, 0.2], np.float32), "classification", [0, 1, 0, 1], ("0.1", "0.2")),
        (X[:, :2], "auto", X[:, :2], ()),
        (np.eye(4), "regression", np.eye(4), ()),
    ],
)
def test_npz_labels(npz, y, task, expected, classes):
    data = npz(task, x=X, y=y)
    assert data.classes == classes
    assert data.y.dtype == (np.int32 if classes else np.float32)
    np.testing.assert_array_equal(data.y, expected)


# ---------------------------------------------------------------- NPZ that is wrong


def at(index, value, array: np.ndarray = X) -> np.ndarray:
    array = array.astype(np.float64)
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("arrays", "task", "message"),
    [
        ({"data": X, "target": Y}, "auto", ": no array 'x' and no array 'y', found 'data', 'target'; .*np.savez"),
        ({"x": X, "labels": Y}, "auto", ": no array 'y', found 'x', 'labels'"),
        ({}, "auto", ": no array 'x' and no array 'y', found nothing"),
        ({"x": X, "y": np.array(["a", None, "a", "b"], object)}, "auto", ": .*Object arrays .*not Python objects"),
        ({"x": X.astype(str), "y": Y}, "auto", ": x has type <U.* expected numbers in x"),
        ({"x": X, "y": Y.astype(complex)}, "auto", ": .*y has type complex128; expected .*numbers or text in y"),
        ({"x": X[0], "y": Y}, "auto", r": x has shape \(3,\), expected \(N, features\)"),
        ({"x": np.float32(1), "y": Y}, "auto", r": x has shape \(\), expected \(N, features\)"),
        ({"x": X[:, None, None, None], "y": Y}, "auto", r": x has shape \(4, 1, 1, 1, 3\)"),
        ({"x": X, "y": np.int32(3)}, "auto", r": y has shape \(\), expected \(N,\)"),
        ({"x": X, "y": X}, "classification", r": y has shape \(4, 3\), expected \(N,\)"),
        ({"x": X, "y": X.astype(str)}, "auto", r": y has shape \(4, 3\), expected \(N,\)"),
        ({"x": X, "y": Y[:3]}, "auto", r": x has 4 examples \(shape \(4, 3\)\) but y has 3"),
        ({"x": X[:0], "y": Y[:0]}, "auto", r": empty: x has shape \(0, 3\)"),
        ({"x": X[:, :0], "y": Y}, "auto", r": empty: x has shape \(4, 0\)"),
        ({"x": at((2, 1), np.nan), "y": Y}, "auto", r", array x, row 2, column 1 \(counted from 0\): .*found 'nan'"),
        ({"x": at((3, 0), -np.inf), "y": Y}, "auto", ", array x, row 3, column 0 .*found '-inf'"),
        ({"x": at((1, 2), 1e39), "y": Y}, "auto", r", array x, row 1, column 2 .*1e\+39 is too large for a float32"),
        ({"x": at((2, 1), np.nan)[:, :, None], "y": Y}, "auto", ", array x, row 2, column 1, 0 .*found 'nan'"),
        ({"x": X, "y": at(2, np.nan, Y)}, "auto", r", array y, row 2 \(counted from 0\): .*found 'nan'"),
        ({"x": X, "y": at((1, 0), np.inf)}, "auto", ", array y, row 1, column 0 .*found 'inf'"),
        ({"x": X, "y": np.array(["a", "b", "", "a"])}, "auto", r", array y, row 2 \(counted from 0\): .*empty text"),
        ({"x": X, "y": np.array(["a", "b"] * 2)}, "regression", ", y: the labels are text, such as 'a', but a regr"),
        ({"x": X, "y": Y * 0}, "auto", ", y: all 4 labels are '0', .* at least two classes"),
        ({"x": X, "y": np.eye(4)}, "auto", r": y of shape \(4, 4\) looks like one-hot classes; .*argmax"),
    ],
)
def test_npz_errors_name_file_array_and_index(tmp_path, npz, arrays, task, message):
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path / 'pets.npz'))}{message}"):
        npz(task, **arrays)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "not an NPZ file"),
        (lambda data: b"x,y\n1,2\n", "not an NPZ file"),
        (lambda data: data[:-30], "not an NPZ file, or a truncated one"),
        (lambda data: data[100:], "not an NPZ file"),
        (lambda data: data.replace(b"x.npy", b"z.npy", 1), "damaged: "),
        (lambda data: data[:150] + bytes([data[150] ^ 1]) + data[151:], "damaged: .*CRC"),
    ],
    ids=["empty", "text", "end missing", "start missing", "names differ", "one bit"],
)
def test_npz_that_is_damaged(tmp_path, damage, message):
    path = tmp_path / "pets.npz"
    np.savez(path, x=X, y=Y)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: {message}"):
        npz_file(path)
