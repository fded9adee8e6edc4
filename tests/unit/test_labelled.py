"""Labelled data that are damaged: one fault that names the file, whatever the reader of their format says."""

import gzip
import io
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from kvtools.errors import Corrupt
from kvtools.etree.data.labelled import read_labelled


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def archive(name, text):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zip_file:
        zip_file.writestr(name, text)
    return file.getvalue()


def tar(name, text):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar_file:
        info = tarfile.TarInfo(name)
        info.size = len(text)
        tar_file.addfile(info, io.BytesIO(text))
    return file.getvalue()


WHOLE = npz(x=np.zeros((9, 2), np.float32), y=np.arange(9) % 3)
PACKED = bytearray(gzip.compress(b"1,2,0\n" * 99))
PACKED[14] ^= 0xFF
NOT_LEAF = "this is not JSON as LEAF writes it, with users, and with x and y of each user in user_data"
DAMAGED = {
    "a.csv.gz": (bytes(PACKED), "the compressed data are damaged (CRC check failed 0x25b5d824 != 0xe8570e39)"),
    "cut.csv.gz": (gzip.compress(b"1,2,0\n" * 99)[:-12], "the file is cut short"),
    "a.npz": (WHOLE[: len(WHOLE) // 2], "this is not an .npz file of plain arrays"),
    "b.npz": (archive("x.txt", "no array"), "the arrays are x.txt, and x and y are needed"),
    "c.npz": (npz(x=np.zeros(3)), "the arrays are x, and x and y are needed"),
    "a.json": (b"[" * 100_000, "this is not JSON (it is nested too deeply)"),
    "b.json": (b"{,}", "this is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"),
    "c.json": (b"{}", NOT_LEAF),
    "d.json": (b"[]", NOT_LEAF),
    "e.json": (b'{"users": ["u"], "user_data": {"u": {"x": [[1], [2, 3]], "y": [0, 1]}}}', NOT_LEAF),
    "f.json": (b'{"users": [["u"]], "user_data": {}}', NOT_LEAF),
    "a.tar": (tar("cat/0.png", b"text"), "cat/0.png is not a picture that can be read"),
    "b.tar": (b"no tar", "the archive is damaged or cut short"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_refused_with_the_name_of_the_file(tmp_path, name):
    contents, message = DAMAGED[name]
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(Corrupt) as refused:
        read_labelled(str(tmp_path))
    assert str(refused.value) == f"{tmp_path / name}: {message}. Repair the file, or leave it out."


def test_a_field_without_end_is_refused_with_its_line(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"1," + b"9" * 200_000 + b",0\n")
    with pytest.raises(Corrupt, match=r"a\.csv: line 1: a field is longer than"):
        read_labelled(str(tmp_path))


def test_whole_files_are_read(tmp_path):
    (tmp_path / "a.npz").write_bytes(WHOLE)
    assert read_labelled(str(tmp_path)).n_classes == 3


def write_table(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n")


def test_columns_of_two_tables_are_matched_by_title(tmp_path):
    write_table(tmp_path / "train.csv", '\ufeffage,"body, mass",class', ["1,10,no", "2,20,yes", "3,30,no"])
    write_table(tmp_path / "test.csv", "class,body mass,age".replace("body mass", '"body, mass"'), ["yes,20,2"])
    data = read_labelled(str(tmp_path))
    np.testing.assert_allclose(data.test.x[0], data.train.x[1])
    assert (data.train.y.tolist(), data.test.y.tolist(), data.n_classes) == ([0, 1, 0], [1], 2)


def test_a_column_that_one_table_lacks_is_named(tmp_path):
    write_table(tmp_path / "train.csv", "age,mass,label", ["1,10,0", "2,20,1"])
    write_table(tmp_path / "test.csv", "age,height,label", ["1,10,0"])
    with pytest.raises(Corrupt, match="the column 'height' is not in each table once"):
        read_labelled(str(tmp_path))


def test_a_word_among_the_numbers_is_named_with_its_column(tmp_path):
    write_table(tmp_path / "a.csv", "age,label", ["1,0", "NA,1"])
    with pytest.raises(Corrupt, match=r"a\.csv: line 3: column age: 'NA' is not a number"):
        read_labelled(str(tmp_path / "a.csv"))


@pytest.mark.parametrize("mark", [";", ",", "\t"])
@pytest.mark.parametrize("word", ["nan", "-INF", "1e39", ""])
@pytest.mark.parametrize("has_titles", [True, False])
def test_a_cell_that_is_not_finite_is_named_with_its_line_and_column(tmp_path, mark, word, has_titles):
    rows = [mark.join(row) for row in (["1", "2", "0"], ["3", word, "1"])]
    write_table(
        tmp_path / "a.csv", mark.join(["age", "mass", "label"]) if has_titles else "7.5\t8\t1".replace("\t", mark), rows
    )
    with pytest.raises(Corrupt, match=rf"a\.csv: line 3: column {'mass' if has_titles else 2}: "):
        read_labelled(str(tmp_path / "a.csv"))


def test_arrays_of_objects_and_labels_that_are_missing_are_refused_in_plain_words(tmp_path):
    x, path = np.zeros((4, 2)), tmp_path / "set.npz"
    for arrays in ({"x": x.astype(object), "y": np.arange(4)}, {"x": x, "y": np.array(["a", 1, None, "b"], object)}):
        path.write_bytes(npz(**arrays))
        with pytest.raises(Corrupt, match=r"set\.npz: an array of it holds Python objects, which are never read\. Save it as"):
            read_labelled(str(path))
    for word in ("NA", " nan", ""):
        path.write_bytes(npz(x=x, y=np.array(["a", "b", word, "b"])))
        with pytest.raises(Corrupt, match=rf"y\[2\] is '{word}', which is no label"):
            read_labelled(str(path))


@pytest.mark.parametrize("title", ["", "Unnamed: 0"])
def test_an_index_is_left_out_and_told(tmp_path, title):
    write_table(tmp_path / "a.csv", f"{title},age,mass,label", [f"{n},{n % 3},5,{n % 2}" for n in range(10)])
    told = []
    assert read_labelled(str(tmp_path / "a.csv"), told.append).shape == (2,)
    assert told == ["the first column of a table has no title: it is an index, and left out"]


@pytest.mark.parametrize("word", ["NA", "nan", "", "?"])
def test_a_label_that_is_missing_is_refused_with_its_line_and_column(tmp_path, word):
    for other in ("cat", "0"):
        write_table(tmp_path / "a.csv", "a,b,class", [f"1,2,{other}", f"2,3,{word}", f"3,4,{other}"])
        with pytest.raises(Corrupt, match=r"a\.csv: line 3 has no label in the column class"):
            read_labelled(str(tmp_path))


@pytest.mark.parametrize("bare", ["train", "test"])
def test_a_table_without_titles_beside_one_with_them_is_refused(tmp_path, bare):
    for part in ("train", "test"):
        write_table(tmp_path / f"{part}.csv", "3,4,1" if part == bare else "a,b,label", ["1,2,0", "3,4,1"])
    with pytest.raises(Corrupt, match=f"{bare}.csv: its first line holds no titles"):
        read_labelled(str(tmp_path))


def test_words_are_labels_without_a_header_too(tmp_path):
    (tmp_path / "iris.data").write_text(
        "5.1,3.5,setosa\n7.0,3.2,versicolor\n4.9,3.0,setosa\n6.4,3.1,versicolor\n5.0,3.1,setosa\n"
    )
    data = read_labelled(str(tmp_path / "iris.data"))
    assert data.train.classes == ("setosa", "versicolor")
    assert len(data.train.y) + len(data.test.y) == 5


def test_leafs_own_folders_are_the_two_parts(tmp_path):
    for part, y in (("train", "[0, 1, 2]"), ("test", "[1]")):
        (tmp_path / "data" / part).mkdir(parents=True)
        x = str([[float(i)] for i in range(y.count(",") + 1)])
        text = f'{{"users": ["u"], "user_data": {{"u": {{"x": {x}, "y": {y}}}}}}}'
        (tmp_path / "data" / part / "all_data_niid_0_keep_0.json").write_text(text)
    data = read_labelled(str(tmp_path))
    assert (data.train.y.tolist(), data.test.y.tolist()) == ([0, 1, 2], [1])


def write_image(path, value, size=(4, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path)


def test_folders_of_images_are_classes_and_both_parts_number_them_alike(tmp_path):
    for part, classes in (("train", ("ant", "bee", "cow")), ("test", ("cow", "bee"))):
        for name in classes:
            write_image(tmp_path / part / name / f"test_{name}.png", 51)
    data = read_labelled(str(tmp_path))
    assert data.train.classes == ("ant", "bee", "cow")
    assert (data.train.y.tolist(), data.test.y.tolist()) == ([0, 1, 2], [1, 2])
    assert data.shape == (3, 3, 4)
    np.testing.assert_allclose(data.train.x[0, :, 0, 0], [0.2, 0, 0])


def test_a_class_of_the_test_part_alone_is_refused_by_name(tmp_path):
    write_image(tmp_path / "train" / "ant" / "0.png", 9)
    write_image(tmp_path / "test" / "bee" / "0.png", 9)
    with pytest.raises(Corrupt, match="the label bee is only in the test part"):
        read_labelled(str(tmp_path))


@pytest.mark.parametrize("shape", [(6, 8, 8, 3), (6, 3, 8, 8), (6, 8, 8, 1), (6, 8, 8)])
def test_arrays_as_keras_names_and_shapes_them(tmp_path, shape):
    x = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    y = np.arange(6)[:, None] % 3
    (tmp_path / "set.npz").write_bytes(npz(x_train=x, y_train=y, x_test=x[:3], y_test=y[:3]))
    data = read_labelled(str(tmp_path / "set.npz"))
    n_channels = 1 if len(shape) == 3 else min(shape[1:])
    assert data.shape == (n_channels, 8, 8)
    assert data.test.y.tolist() == [0, 1, 2]
    first = x[0] if shape[1] == 3 else np.moveaxis(x[0].reshape(8, 8, -1), -1, 0)
    np.testing.assert_allclose(data.train.x[0] * 255, first, atol=1e-4)


def test_labels_of_arrays_may_be_words(tmp_path):
    (tmp_path / "set.npz").write_bytes(npz(x=np.zeros((6, 2)), y=np.array(["b", "a", "a", "b", "a", "b"])))
    assert read_labelled(str(tmp_path)).train.classes == ("a", "b")
