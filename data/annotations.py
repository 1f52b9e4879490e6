"""What is written about recordings: tables, lines of JSON, JSON files, and files beside each sound.

Read are the layouts of Hugging Face's audiofolder (`metadata.csv` or `.jsonl` of file_name and text), of AudioLDM's
training code (`{"data": [{"wav": ..., "caption": ...}]}`), of AudioCraft (manifests of `{"path": ...}`, a JSON file of
description and keywords beside each sound), of stable-audio-tools (a JSON file with a prompt beside each sound), and of
LJSpeech (`id|text|text in words`, without a header); tables of other programs by the names of their columns. CSV may be
divided by commas, semicolons, tabs or bars, in UTF-8 or UTF-16.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audioldm2_pl.errors import UserError, reason_of
from audioldm2_pl.tables import read_cells, read_table

# What a column holds => its names; the first that a row fills counts. Letters' case, blanks and dashes do not matter.
COLUMNS = {
    "file": ("file_name", "filename", "audio_file_name", "file", "path", "wav", "audio", "audio_path", "audio_file",
             "audio_filepath", "audio_filename", "filepath", "file_path", "wav_path", "fname", "sound"),
    "captions": ("captions", "caption", "prompt", "text", "description"),
    "transcript": ("transcript", "transcription", "sentence"),
    "labels": ("labels", "label", "category", "class", "tags", "keywords"),
    "pictures": ("image", "images", "image_file_name", "image_path", "picture", "pictures"),
    "split": ("split", "subset"),
    "licence": ("licence", "license"),
    "youtube": ("youtube_id", "ytid"),
    "freesound": ("freesound_id", "sound_id"),
}  # fmt: skip
TITLES = ("title", "name", "genre", "moods", "instrument", "keywords", "tags")  # of music, where nothing describes it
NUMBERED = re.compile(r"(?:caption|text|description)_?\d+")  # columns of several captions, such as Clotho's
MACHINE_ID = re.compile(r"/[mtg]/\w+")  # AudioSet's, which no caption can be made of
TABLES = (".csv", ".tsv", ".txt")
LINES = (".jsonl", ".ndjson", ".jsonl.gz")
DELIMITERS = (",", ";", "\t", "|")


@dataclass
class Annotation:
    """What a row says of a sound."""

    file: str = ""  # as the table calls it
    where: str = ""  # the table and the line
    captions: list[str] = field(default_factory=list)
    transcript: str | None = None
    labels: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    split: str | None = None
    licence: str | None = None
    source_id: tuple[str, str] | None = None  # the site, and the recording's id there

    def add(self, other: "Annotation") -> None:
        """Takes over what another row says of the same sound; what is known already stays."""
        for name in ("captions", "labels", "pictures"):
            setattr(self, name, list(dict.fromkeys([*getattr(self, name), *getattr(other, name)])))
        for name in ("transcript", "licence", "source_id"):
            setattr(self, name, getattr(self, name) or getattr(other, name))


def annotation_of(row: Mapping[str, Any], where: str, text: str = "caption") -> Annotation:
    """What a row, or a JSON object, says. `text` is what a column of that name holds: "caption" or "transcript"."""
    values = {_plain(name): value for name, value in row.items() if isinstance(name, str)}
    if text == "transcript" and "text" in values:
        values.setdefault("transcript", values.pop("text"))

    def first(kind: str) -> list[str]:
        return next((found for name in COLUMNS[kind] if name in values and (found := texts_of(values[name]))), [])

    numbered = [value for name in values if NUMBERED.fullmatch(name) for value in texts_of(values[name])]
    transcript = first("transcript")
    labels = first("labels")
    labels = [part.strip() for part in re.split(r"[,;|]", labels[0])] if len(labels) == 1 else labels
    ids = [(site, found[0]) for site in ("youtube", "freesound") if (found := first(site))]
    return Annotation(
        file=next(iter(first("file")), ""),
        where=where,
        captions=first("captions") + numbered,
        transcript=" ".join(transcript) or None,
        labels=[label for label in labels if label and not MACHINE_ID.fullmatch(label)],
        pictures=first("pictures"),
        split=next(iter(first("split")), None),
        licence=next(iter(first("licence")), None),
        source_id=ids[0] if ids else None,
    )


def texts_of(value: Any) -> list[str]:
    """The text of a cell, or the texts of a list; none where it is blank or something else."""
    if isinstance(value, dict):  # Hugging Face's {"path": ..., "bytes": ...}
        value = value.get("path")
    values = value if isinstance(value, list) else [value]
    return [text.strip() for text in values if isinstance(text, str) and text.strip()]


def sidecar(path: Path, text: str = "caption") -> Annotation:
    """What the file beside a sound says, JSON or plain text. UserError where it cannot be read."""
    content = decode_text(path, path.read_bytes())
    if path.suffix.lower() == ".txt":
        words = " ".join(content.split())
        return Annotation(transcript=words or None) if text == "transcript" else Annotation(captions=texts_of(words))
    fields = _load_json(content, str(path))
    if not isinstance(fields, dict):
        raise UserError(f"{path}: holds no fields of a sound; make it a JSON object")
    found = annotation_of(fields, path.name, text)
    if not found.captions:  # music of AudioCraft without a description
        titles = [word for name in TITLES for word in texts_of(fields.get(name))]
        found.captions = [", ".join(dict.fromkeys(titles))] if titles else []
    return found


def read_annotations(path: Path, text: str = "caption") -> Iterator[Annotation] | None:
    """The rows of a file that names sounds; None where it is no such file. UserError where it cannot be read."""
    name = path.name.lower()
    if name.endswith(TABLES):
        return _read_table(path, text)
    if name.endswith(LINES):
        rows = _read_lines(path)
    elif name.endswith(".json"):
        rows = _read_objects(path)
    else:
        raise UserError(f"{path}: tables are read as {', '.join((*TABLES, *LINES, '.json'))}; name one of these")
    first = next(rows, None)
    if first is None or not annotation_of(first[1], "").file:
        return None
    return (annotation_of(row, where, text) for where, row in _with_first(first, rows))


def _read_table(path: Path, text: str) -> Iterator[Annotation] | None:
    encoding = "utf-16" if path.open("rb").read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    faults: list[UserError] = []
    for delimiter in DELIMITERS:
        try:
            header = [name.strip() for name in next(read_cells(path, encoding, delimiter=delimiter), (1, []))[1]]
        except UserError as error:
            faults.append(error)
            continue
        columns = [column for name in COLUMNS["file"] for column in header if _plain(column) == name]
        if columns and len(header) > 1:
            rows = read_table(path, columns[:1], encoding, delimiter=delimiter)
            return (annotation_of(row, f"{path.name}, line {line}", text) for line, row in rows)
        if delimiter == "|" and len(header) in (2, 3) and all(header[:2]):
            return _read_bars(path)
    if len(faults) == len(DELIMITERS):
        raise faults[0]
    return None


def _read_bars(path: Path) -> Iterator[Annotation]:
    """LJSpeech's rows, `id|text|text in words`, in which quotation marks are text."""
    for number, line in enumerate(decode_text(path, path.read_bytes()).splitlines(), 1):
        name, *texts = [cell.strip() for cell in line.split("|")]
        if name and len(texts) > 2:
            raise UserError(f"{path}, line {number}: {len(texts) + 1} cells; a row is `id|text` or `id|text|in words`")
        if name:
            yield Annotation(name, f"{path.name}, line {number}", transcript=next(filter(None, texts[::-1]), None))


def _read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    content = path.read_bytes()
    if path.suffix.lower() == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path}: cannot be unpacked ({reason_of(error)}); fetch it again") from None
    for number, line in enumerate(decode_text(path, content).split("\n"), 1):
        if line.strip():
            row = _load_json(line, f"{path}, line {number}")
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number}: no JSON object; a line is one sound")
            yield f"{path.name}, line {number}", row


def _read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """A list of objects, alone or under "data"; or the captions under the names of their files."""
    content = _load_json(decode_text(path, path.read_bytes()), str(path))
    if isinstance(content, dict) and not isinstance(content.get("data"), list):
        items: list[Any] = [
            {"file_name": name} | (value if isinstance(value, dict) else {"text": value})
            for name, value in content.items()
            if re.search(r"\.\w{2,4}$", name) and isinstance(value, str | list | dict)
        ]
    else:
        items = content["data"] if isinstance(content, dict) else content
    if not isinstance(items, list):
        return
    for number, item in enumerate(items, 1):
        if not isinstance(item, dict):
            raise UserError(f"{path}: entry {number} is no JSON object; an entry is one sound")
        yield f"{path.name}, entry {number}", item


def _load_json(content: str, where: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: no whole JSON ({reason_of(error)}); write it again") from None


def decode_text(path: Path, content: bytes) -> str:
    """Text in UTF-8, with a byte order mark or without, or in UTF-16 with one; UserError for anything else."""
    try:
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except ValueError:
        raise UserError(f"{path}: holds a byte that is no text in UTF-8; save it as UTF-8") from None
    if "\0" in text:
        raise UserError(f"{path}: holds a byte that is no text in UTF-8; save it as UTF-8")
    return text


def _with_first(first: Any, rest: Iterable[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())
