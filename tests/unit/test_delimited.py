"""One reader of delimited text: encodings, quotes, headers, blank lines and bad rows, alike for columns and for rows."""

import csv
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtools.artifact.delimited import read_lines, read_rows, read_text
from kvtools.artifact.tables import ColumnReader
from kvtools.errors import Corrupt

OPEN = "a quote is opened and never closed. Close it or remove it."


def file_of(text, encoding="utf-8"):
    return io.BufferedReader(io.BytesIO(text if isinstance(text, bytes) else text.encode(encoding)))


def columns(text, *names, **options):
    reader = ColumnReader(file_of(text), "x", **options)
    table = reader.table(names or reader.types)
    return {name: column.to_list() for name, column in table.columns.items()}


def refusal(read, *args, **options):
    with pytest.raises(Corrupt) as fault:
        read(*args, **options)
    return str(fault.value)


cells = st.text(st.characters(codec="utf-8", exclude_characters="\0\x1f\r"), max_size=5)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(cells, cells, st.integers(0, 9).map(str)), min_size=1, max_size=8))
def test_what_the_csv_module_writes_reads_back_as_columns_and_as_rows(rows):
    text = io.StringIO()
    csv.writer(text).writerows([("a", "b", "n"), *rows])
    expected = {name: [row[i] or None for row in rows] for i, name in enumerate("abn")}
    assert columns(text.getvalue()) == expected
    read = read_rows(file_of(text.getvalue()), "x")
    assert (read.header, read.fields) == (["a", "b", "n"], [list(row) for row in rows])


@pytest.mark.parametrize("rest", ["", "3,4\n", "3,4\n" * 3_000_000], ids=["at the end", "short", "longer than a block"])
def test_a_quote_left_open_is_named_with_the_line_where_it_opened(rest):
    text = 'a,b\n1,"two\nlines"\n3,"x\n' + rest
    found = {refusal(columns, text), refusal(columns, text, "a"), refusal(columns, text, "b")}
    if len(rest) < 1000:
        assert found == {f"x: row 2: {OPEN}"}
        assert refusal(read_rows, file_of(text), "x") == f"x: line 4: {OPEN}"
    else:
        assert found == {"x: row 2: a row is longer than 8 MiB. Close the quote that may be open there."}


def test_a_quote_left_open_in_the_header_or_before_a_ragged_row_is_named_too():
    assert refusal(columns, 'a,"b\n1,2\n') == f"x: line 1: {OPEN}"
    assert refusal(columns, 'a,b\n"1,2\n3,4\n') == f"x: row 1: {OPEN}"


def test_quotes_within_cells_are_no_quotes():
    assert columns('a,b\n5" disk,1\n"say ""so""",2\n') == {"a": ['5" disk', 'say "so"'], "b": ["1", "2"]}


def test_titles_may_hold_commas_and_line_ends():
    assert columns('"a, b","c\nd"\n1,2\n') == {"a, b": ["1"], "c\nd": ["2"]}


def test_a_column_that_is_missing_or_there_twice_is_refused():
    assert refusal(columns, "a,b\n1,2\n", "c") == "x: there is no column 'c' among a, b. Name the right one."
    assert refusal(columns, "a,b,a\n1,2,3\n", "a") == "x: column 'a' is there twice. Rename one of the two."
    assert columns("a,b,a\n1,2,3\n", "b") == {"b": ["2"]}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_byte_order_mark_decides_the_encoding(encoding):
    text = "name,größe\nZoë,1\n"
    assert columns(text.encode(encoding)) == {"name": ["Zoë"], "größe": ["1"]}
    assert read_rows(file_of(text, encoding), "x").header == ["name", "größe"]
    assert read_lines(file_of(text, encoding), "x") == ["name,größe", "Zoë,1"]
    assert read_text(file_of(text, encoding), "x", encoding="utf-8") == text


def test_other_encodings_are_read_where_they_are_named_and_told_where_not():
    data = "a,b\nx,1\nZoë,2\n".encode("latin-1")
    assert columns(data, encoding="latin-1") == {"a": ["x", "Zoë"], "b": ["1", "2"]}
    assert read_rows(file_of(data), "x", encoding="latin-1").fields == [["x", "1"], ["Zoë", "2"]]
    said = "x: line 3 is not UTF-8 text. Convert the file, for example with iconv."
    for read in (lambda data: read_rows(file_of(data), "x"), lambda data: read_lines(file_of(data), "x")):
        assert refusal(read, data) == said
    reader = ColumnReader(file_of(data), "x")
    assert reader.table(reader.types).columns["a"].to_list() == ["x", "Zo\ufffd"]  # one letter does not cost a large table
    assert reader.undecoded == [1]


def test_blank_lines_mean_nothing_and_lines_keep_their_numbers():
    assert columns("a,b\n\n1,2\n\n\n3,4") == {"a": ["1", "3"], "b": ["2", "4"]}
    rows = read_rows(file_of("\na,b\r\n\r\n1,2\r\n \r\n3,4"), "x")
    assert (rows.header, list(rows)) == (["a", "b"], [(4, ["1", "2"]), (6, ["3", "4"])])
    assert read_lines(file_of("a\r\n\r\n b\n"), "x") == ["a", " b"]


@pytest.mark.parametrize("text", ["1,2\n3,\n", "1;2\n3;\n", "1\t2\n3\t\n", "1 2 # two\n# none\n3\tnan\n"])
def test_rows_of_numbers_are_read_with_any_delimiter(text):
    rows = read_rows(file_of(text), "x", comment="#")
    assert rows.header == []
    np.testing.assert_array_equal(rows.numbers([1, 0]), [[2, 1], [np.nan, 3]])


def test_columns_of_rows_are_found_by_name_and_bad_rows_are_named():
    rows = read_rows(file_of("Label, x \n1,2\n3,four\n"), "x")
    assert (rows.index("class", "label"), rows.index("x"), rows.index("user")) == (0, 1, None)
    assert refusal(rows.numbers, [1]) == "x: line 3: column x: 'four' is not a number. Correct the line."
    ragged = "1,2\n3\n"
    assert refusal(read_rows, file_of(ragged), "x") == "x: line 2 has 1 fields, and the first row has 2. Correct the line."
    assert read_rows(file_of(ragged), "x", is_ragged=True).fields == [["1", "2"], ["3"]]
    assert read_rows(file_of("1,2\n"), "x", has_header=True).header == ["1", "2"]
    assert read_rows(file_of(""), "x", has_header=True).fields == []
