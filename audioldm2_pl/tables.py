"""Tables, lines and JSON that other programs wrote, read strictly: UTF-8 with or without a byte order mark, and what a
reader would have to guess at is refused with its file and line."""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from audioldm2_pl.errors import UserError

UNREADABLE = re.compile("[\x00\udc80-\udcff]")  # NUL, and bytes that the encoding does not have (surrogateescape)

csv.field_size_limit(1 << 24)  # descriptions of albums are longer than Python's default of 128 Ki


def read_lines(path: Path, encoding: str = "utf-8-sig") -> Iterator[tuple[int, str]]:
    """(number, line with its end) of a text file. UserError where it is missing or in another encoding."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with path.open(newline="", encoding=encoding, errors="surrogateescape") as file:
            for number, line in enumerate(file, 1):
                if UNREADABLE.search(line):
                    raise UserError(f"{path}, line {number}: holds a byte that is no text in UTF-8; save it as UTF-8")
                yield number, line
    except UnicodeDecodeError:  # UTF-16 that is cut off
        raise UserError(f"{path}: is not whole text in {encoding.upper()}; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def read_cells(
    path: Path, encoding: str = "utf-8-sig", *, delimiter: str = ",", skipinitialspace: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """(line where it begins, cells) of every row of a CSV file that is not blank.

    UserError where a quotation mark is never closed, or closes only in a later row.
    """
    lines: list[str] = []  # of the row that is being read

    def recorded() -> Iterator[str]:
        for _, line in read_lines(path, encoding):
            lines.append(line)
            yield line

    reader = csv.reader(recorded(), delimiter=delimiter, strict=True, skipinitialspace=skipinitialspace)
    while True:
        lines.clear()
        first = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(
                f"{path}, line {first}: no row of CSV ({error}); look for a quotation mark that is not closed"
            ) from None
        quoted = (re.split(r'(?<!")"(?!")', line, maxsplit=1)[0] for line in lines[1:])  # up to where the cell may end
        if any(_is_row(line.split(delimiter), cells) for line in quoted):
            raise UserError(f"{path}, line {first}: a quotation mark that is not closed swallows the row below")
        if cells:
            yield first, cells


def _is_row(names: Sequence[str], cells: Sequence[str]) -> bool:
    """Whether a line within a quoted cell has as many cells as the whole row, the first of the same kind."""
    kinds = [(" " in name.strip(), "." in name, name.strip().isdigit()) for name in (names[0], *cells[:1])]
    return len(names) == len(cells) > 1 and kinds[0] == kinds[1]


def read_table(
    path: Path,
    columns: Sequence[str],
    encoding: str = "utf-8-sig",
    *,
    delimiter: str = ",",
    optional: Sequence[str] = (),
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, row) of a CSV file with a header; a row may leave out the columns `optional` at its end.

    UserError where one of `columns` is missing, and where a row has more or fewer cells than the header.
    """
    rows = read_cells(path, encoding, delimiter=delimiter)
    header = [name.strip() for name in next(rows, (1, []))[1]]
    for column in columns:
        if header.count(column) != 1:
            found = "two columns" if column in header else "no column"
            raise UserError(f"{path} has {found} {column}; it needs the columns {' and '.join(columns)}")
    least = len(header) - len(set(header) & set(optional))
    for line, cells in rows:
        if any(cells[len(header) :]):  # spreadsheets add empty ones
            held = "a comma" if delimiter == "," else repr(delimiter)
            raise UserError(
                f"{path}, line {line}: more cells than columns ({len(cells)}, {len(header)}); "
                f"put a cell that holds {held} in quotation marks"
            )
        if len(cells) < least:
            raise UserError(f"{path}, line {line}: the row is cut off after {len(cells)} of {len(header)} cells")
        yield line, dict(zip(header, cells + [""] * (len(header) - len(cells))))


def read_json(path: Path) -> Any:
    """UserError where the file is missing or not whole."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not whole JSON ({error}); fetch it again") from None
