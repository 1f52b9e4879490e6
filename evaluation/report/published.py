"""The paper's tables I to V, as printed (Liu et al. 2023, arXiv:2308.05734): published/table_<n>.csv.

These numbers were measured by others, on other clips' audio and with other code: they stand beside measured ones, never
among them. `protocols.yaml` tells what is known of how they came about.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).with_name("published")
TITLES = {
    "I": "Text to audio, AudioCaps evaluation set",
    "II": "Text to audio on AudioCaps, by scale of the training data",
    "III": "Text to music, MusicCaps evaluation set; † reproduced by the paper's authors",
    "IV": "Text to speech, LJSpeech test set",
    "V": "Ablations on AudioCaps",
}


@dataclass
class PublishedTable:
    number: str  # as the paper has it: "I"
    title: str
    source: str  # publication and table
    year: int
    columns: list[str]  # metrics as printed; an arrow tells which way is better
    rows: list[tuple[str, list[str]]]  # system, cells as printed; "-" where the paper has none

    def cell(self, system: str, column: str) -> str:
        """The first row of that name's."""
        return next(cells for name, cells in self.rows if name == system)[self.columns.index(column)]


def read_published(path: Path, number: str) -> PublishedTable:
    with path.open(newline="", encoding="utf-8") as file:
        header, *lines = csv.reader(file, strict=True)
    assert header[0] == "system" and header[-2:] == ["source", "year"], path
    (source,), (year,) = {line[-2] for line in lines}, {line[-1] for line in lines}
    rows = [(line[0], line[1:-2]) for line in lines]
    return PublishedTable(number, TITLES[number], source, int(year), header[1:-2], rows)


def published_tables() -> list[PublishedTable]:
    return [read_published(FOLDER / f"table_{i}.csv", number) for i, number in enumerate(TITLES, 1)]
