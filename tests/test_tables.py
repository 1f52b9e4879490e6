"""What a lenient reader takes without a word: cut, swallowed, misread rows. Each is refused with its line."""

import os

import pytest

from audioldm2_pl.errors import UserError
from audioldm2_pl.tables import read_cells, read_json, read_lines, read_table

COLUMNS = ("id", "caption")


def rows(path):
    return [row for _, row in read_table(path, COLUMNS)]


@pytest.fixture
def table(tmp_path):
    def write(content: str | bytes):
        path = tmp_path / "table.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_rows_and_their_lines(table):
    path = table('\ufeffid, caption,x\r\n1,"a, b",\r\n\r\n2,"two\nlines, and ""more""",y\r\n3,é,z\r\n')
    assert list(read_table(path, COLUMNS)) == [
        (2, {"id": "1", "caption": "a, b", "x": ""}),
        (4, {"id": "2", "caption": 'two\nlines, and "more"', "x": "y"}),
        (6, {"id": "3", "caption": "é", "x": "z"}),
    ]


@pytest.mark.parametrize(
    "content, message",
    [
        ('id,caption\n1,"a bell\n2,rain\n3,wind\n', "line 2: no row of CSV"),  # never closed
        ('id,caption\n1,"a bell\n2,rain"\n3,wind\n', "line 2: a quotation mark .* swallows the row"),
        ('id,caption\n1,"a bell\n2,"rain, wind"\n', "line 2: no row of CSV"),
        ('id,caption\n1,"a" bell\n', "line 2: no row of CSV"),
        ("id,caption\n1,a\n2,a bell rings, then rain\n", "line 3: more cells than columns"),
        ("id,caption\n1,a\n2\n", "line 3: the row is cut off after 1 of 2"),
        ("id,words\n1,a\n", "no column caption; it needs the columns id and caption"),
        ("id,caption,caption\n1,a,b\n", "two columns caption"),
        ("id;caption\n1;a\n", "no column id"),
        ("", "no column id"),
        ("id,caption\n1,a\n2,b\x00\n", "line 3: holds a byte"),
        ("id,caption\n1,a\n2,café\n".encode("cp1252"), "line 3: holds a byte"),
        ("id,caption\n1,a\n".encode("utf-16"), "line 1: holds a byte"),
    ],
)
def test_what_would_have_to_be_guessed_at_is_refused(table, content, message):
    with pytest.raises(UserError, match=message):
        rows(table(content))


def test_columns_that_rows_may_leave_out(table):
    path = table("id,caption,Approve,Reject\n1,a\n2,b,x,\n")
    assert [row["Approve"] for _, row in read_table(path, COLUMNS, optional=("Approve", "Reject"))] == ["", "x"]
    with pytest.raises(UserError, match="cut off after 1 of 4"):
        list(read_table(table("id,caption,Approve,Reject\n1\n"), COLUMNS, optional=("Approve", "Reject")))


def test_other_encodings_where_they_are_named(table):
    path = table("id,caption\n1,café\n".encode("latin-1"))
    assert [row["caption"] for _, row in read_table(path, COLUMNS, encoding="latin-1")] == ["café"]


def test_lines_and_cells(table):
    assert list(read_lines(table("\ufeffa|b\r\nc|d"))) == [(1, "a|b\r\n"), (2, "c|d")]
    assert list(read_cells(table('a, "b, c"\n'), skipinitialspace=True)) == [(1, ["a", "b, c"])]


def test_json(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"data": []}')
    assert read_json(path) == {"data": []}
    for content in (b'{"data": [', b"[" * 100_000, '"é"'.encode("latin-1"), b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match="not whole JSON"):
            read_json(path)


@pytest.mark.parametrize("read", [lambda path: list(read_lines(path)), rows, read_json])
def test_what_is_no_file(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    for name in ("none", "", "pipe"):
        with pytest.raises(UserError, match="no such file"):
            read(tmp_path / name)
