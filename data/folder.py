"""Your own recordings: a folder of sounds in any of the usual layouts, which is recognised.

    python -m data.folder recordings shards/mine --test-fraction 0.1

SOURCE holds sounds in any folders (wav, flac, mp3, ogg, opus, aiff, and of videos the sound) and what is known of them:

    metadata.csv or .jsonl                 of file_name and text, in one folder or in train/ and test/ (audiofolder)
    any .csv .tsv .jsonl .jsonl.gz .json   whose rows name sounds: of captions, transcripts, labels, pictures, splits
    dog.wav dog.json, dog.wav dog.txt      a caption in the file beside each sound, or its transcript (--text)
    metadata.csv                           `id|text|text in words`, transcripts as of LJSpeech
    dog.wav dog.png                        a picture of what is heard beside the sound
    dog/1.wav rain/1.wav                   folders named by what is heard: captions as those of ESC-50

`data/annotations.py` lists the columns. Several rows of a sound are several captions. The split is that of the row, of
the table's name or folder (`train.csv`, `test/metadata.csv`) or of the sound's folder, else "train"; --test-fraction
draws test clips by their names, so that an added file moves no other. Links that lead out of SOURCE are left out.

What is held out here, and what a list in --exclude names by a YouTube or FreeSound id in a column or a file's name, is
refused in training.
"""

import os
import posixpath
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audioldm2_pl.errors import UserError
from audioldm2_pl.media import PICTURES

from .annotations import LINES, TABLES, Annotation, read_annotations, sidecar
from .corpus import MAX_SECONDS, MAX_SECONDS_OPTION, Corpus
from .esc50 import captions_for
from .folder_files import FileIndex, Notes, split_suffix, walk
from .folder_names import (
    SPLIT_NAMES,
    SPLITS,
    draw,
    label_of_folders,
    printable,
    shown,
    site_of,
    split_in,
    split_of_folders,
    unique_key,
    words_of,
)
from .leakage import ids_of
from .shards import Clip
from .sources import source_id

CAPTIONS = ("metadata", "labels", "filename", "none")
PREFERRED = (".flac", ".wav")  # of a sound that is there in several formats


@dataclass
class FolderOptions:
    """How a folder is read."""

    metadata: list[Path] | None = None  # the tables; None: those that are found
    captions: str | None = None  # where they come from, a word of CAPTIONS; None: the first of these that there are
    text: str = "caption"  # what a column `text` and a .txt file hold: "caption" or "transcript"
    test_fraction: float = 0.0
    follow_links: bool = False
    max_seconds: float = MAX_SECONDS

    def __post_init__(self) -> None:
        if not 0 <= self.test_fraction < 1:
            raise UserError(f"--test-fraction {self.test_fraction:g} is not from 0 to below 1")
        if not self.max_seconds > 0:
            raise UserError(f"--max-seconds {self.max_seconds:g} is not above 0")


class Survey:
    """The clips of a folder by split, and what was found in it."""

    def __init__(self, source: Path, **options: Any):
        self.source = source
        self.options = FolderOptions(**options)
        self.notes = Notes()
        self.names, outside = walk(source, self.options.follow_links)
        for name in outside:
            self.notes.add("links lead out of the folder or nowhere, left out (--follow-links reads them)", repr(name))
        self.sounds = FileIndex(source, [name for name in self.names if split_suffix(name)[1]])
        suffixes = tuple(f".{suffix}" for suffix in PICTURES)
        self.pictures = FileIndex(source, [name for name in self.names if name.lower().endswith(suffixes)])
        if not self.sounds.exact:
            tars = any(name.endswith(".tar") for name in self.names)
            advice = "shards of tars are read with python -m data.index" if tars else "name the folder that holds them"
            raise UserError(f"{source}: no sounds in this folder; {advice}")
        self.beside: dict[str, list[str]] = {}  # a file without its suffix => sidecars and pictures of that name
        for name in self.names:
            if name.lower().endswith((".json", ".txt", *suffixes)):
                self.beside.setdefault(os.path.splitext(name)[0], []).append(name)
        self.tables: list[str] = []
        self.entries = self.read()
        self.caption_source = self.caption()
        self.clips = self.split()

    def read(self) -> dict[str, Annotation]:
        """Sound => what its rows and the files beside it say; the rows' sounds, or all where there are no rows."""
        entries: dict[str, Annotation] = {}
        for path in self.options.metadata or self.candidates():
            self.read_table(path, entries)
        if not self.tables:
            self.add_unlisted(entries)
        elif not entries:
            raise UserError(
                f"{self.source}: no row of {shown(self.tables)} names one of its sounds{self.notes.first()}"
            )
        elif self.options.captions in ("labels", "filename", "none"):
            self.add_unlisted(entries)
        else:
            for name in self.sounds.exact.values():
                if name not in entries:
                    self.notes.add("sounds have no row in a table, left out", repr(name))
        for name, entry in entries.items():
            self.add_beside(name, entry)
        return dict(sorted(entries.items()))

    def candidates(self) -> Iterator[Path]:
        """Files that may be tables; a file beside a sound belongs to that sound."""
        stems = {split_suffix(name)[0] for name in self.sounds.exact.values()}
        for name in self.names:
            if name.lower().endswith((*TABLES, *LINES, ".json")) and os.path.splitext(name)[0] not in stems:
                yield self.source / name

    def read_table(self, path: Path, entries: dict[str, Annotation]) -> None:
        """Adds the rows of a table. UserError where it is named, or by its name must be one, and cannot be read."""
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        name = os.path.relpath(os.path.realpath(path), os.path.realpath(self.source))
        name = path.name if name.startswith("../") else name
        is_named = self.options.metadata is not None
        is_likely = is_named or path.name.lower().startswith("metadata.") or split_in(name) is not None
        try:
            rows = read_annotations(path, self.options.text)
        except UserError as error:
            if is_likely:
                raise
            self.notes.add("files cannot be read as tables", str(error))
            return
        if rows is None:
            if is_named:
                raise UserError(f"{path}: no column of file names; call it file_name")
            if not path.name.lower().endswith((".txt", ".json")):
                self.notes.add("tables have no column of file names, not read", repr(name))
            return
        before, self.notes = self.notes, Notes()
        num_used = sum([self.add_row(row, name, entries) for row in rows])
        if num_used or is_likely:
            self.tables.append(name)
            before.merge(self.notes)
        else:
            before.add("tables name none of the sounds, not read", repr(name))
        self.notes = before

    def add_row(self, row: Annotation, table: str, entries: dict[str, Annotation]) -> bool:
        """Adds a row of a table; False where its sound is not there."""
        folder = posixpath.dirname(table)
        found, reason = self.sounds.find(row.file, folder)
        if found is None:
            self.notes.add(f"rows name a sound {reason}, left out", f"{row.where}: {row.file!r}")
            return False
        pictures = [self.pictures.find(name, folder) for name in row.pictures]
        for name, (picture, reason) in zip(row.pictures, pictures):
            if picture is None:
                self.notes.add(f"rows name a picture {reason}", f"{row.where}: {name!r}")
        row.pictures = [picture for picture, _ in pictures if picture is not None]
        split = SPLIT_NAMES.get((row.split or "").lower())
        if row.split and split is None:
            self.notes.add("rows name a split that is none of train, val and test", f"{row.where}: {row.split!r}")
        row.split = split or split_in(table) or split_of_folders(table) or split_of_folders(found)
        known = entries.setdefault(found, row)
        if known is not row:
            if known.split != row.split:
                self.notes.add("sounds are in rows of several splits; they stay out of train", repr(found))
                known.split = max((known.split, row.split), key=lambda split: SPLITS.index(split or "train"))
            known.add(row)
        return True

    def add_unlisted(self, entries: dict[str, Annotation]) -> None:
        """Every sound without a row gets an entry, one for all its formats."""
        groups: dict[str, list[str]] = {}
        for name in self.sounds.exact.values():
            groups.setdefault(split_suffix(name)[0], []).append(name)
        for names in groups.values():
            if entries.keys().isdisjoint(names):
                names.sort(key=lambda name: split_suffix(name)[1] not in PREFERRED)
                entries[names[0]] = Annotation(names[0], split=split_of_folders(names[0]))
            if len(names) > 1:
                self.notes.add("sounds are there in several formats, of which one is read", repr(names[0]))

    def add_beside(self, name: str, entry: Annotation) -> None:
        """Adds what the files of a sound's name say, where its rows say nothing, and its pictures."""
        stem = split_suffix(name)[0]
        files = [*self.beside.get(stem, ()), *(f for n in range(10) for f in self.beside.get(f"{stem}.{n}", ()))]
        texts = [file for file in files if file.lower() in (f"{stem}.json".lower(), f"{stem}.txt".lower())]
        pictures = [file for file in files if not file.lower().endswith((".json", ".txt"))]
        entry.pictures = list(dict.fromkeys([*entry.pictures, *pictures]))
        for file in texts:
            if not (entry.captions or entry.transcript):
                try:
                    entry.add(sidecar(self.source / file, self.options.text))
                except UserError as error:
                    self.notes.add("files beside sounds cannot be read", str(error))

    def caption(self) -> str:
        """Chooses where captions come from, leaves out sounds that get none there, and says what was chosen."""
        entries, chosen = self.entries, self.options.captions
        folders = {name: label_of_folders(name) for name in entries}
        if chosen is None:
            is_described = any(entry.captions or entry.transcript for entry in entries.values())
            is_labelled = any(entry.labels for entry in entries.values()) or len(set(folders.values()) - {""}) > 1
            chosen = "metadata" if is_described else "labels" if is_labelled else "none"
        labels: Counter[str] = Counter()
        for name, entry in list(entries.items()):
            if chosen == "labels":
                entry.labels = entry.labels or [folder for folder in (folders[name],) if folder]
                labels.update(entry.labels)
                words = [re.sub(r"\W+", "_", label.lower()).strip("_") for label in entry.labels]
                entry.captions = [caption for word in words if word for caption in captions_for(word)]
            elif chosen == "filename":
                entry.captions = [words for words in (words_of(name),) if words]
            elif chosen == "none":
                entry.captions = []
            if chosen != "none" and not (entry.captions or entry.transcript):
                self.notes.add(f"sounds get no text from {chosen}, left out", repr(name))
                del entries[name]
        if not entries:
            raise UserError(f"{self.source}: no sound gets a caption from {chosen}; choose another word for --captions")
        return {
            "metadata": "texts of " + (shown(self.tables) if self.tables else "the files beside the sounds"),
            "labels": f"captions from {len(labels)} labels ({shown(sorted(labels))})",
            "filename": "captions from the files' names",
            "none": "no captions",
        }[chosen]

    def split(self) -> dict[str, list[Clip]]:
        """Split => its clips. UserError for a test fraction where the folder has test clips of its own."""
        fraction, clips = self.options.test_fraction, {split: [] for split in SPLITS}
        if fraction and any(entry.split == "test" for entry in self.entries.values()):
            raise UserError(f"{self.source} gives test clips itself; take --test-fraction out")
        for name, entry in self.entries.items():
            clip = self.clip(name, entry)
            drawn = fraction and entry.split != "val" and draw(clip.extra["source_id"]) < fraction
            clips["test" if drawn else entry.split or "train"].append(clip)
        return clips

    def clip(self, name: str, entry: Annotation) -> Clip:
        stem = split_suffix(name)[0]
        site = entry.source_id or site_of(posixpath.basename(stem))
        return Clip(
            key=unique_key(stem),
            captions=entry.captions if len(entry.captions) > 1 else None,
            text=entry.captions[0] if len(entry.captions) == 1 else None,
            path=str(self.source / name),
            transcript=entry.transcript,
            labels=entry.labels or None,
            source=self.source.resolve().name,
            licence=entry.licence,
            duration=self.options.max_seconds,
            pictures=[str(self.source / picture) for picture in entry.pictures],
            extra={"source_id": source_id(*site) if site else f"file:{printable(stem)}"},
        )

    def __str__(self) -> str:
        every = [clip for clips in self.clips.values() for clip in clips]
        counts = {
            "sounds": len(every),
            "captions": sum(len(entry.captions) for entry in self.entries.values()),
            "transcripts": sum(clip.transcript is not None for clip in every),
            "pictures": sum(len(clip.pictures) for clip in every),
        }
        listed = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count or name == "sounds")
        splits = ", ".join(f"{split} {len(clips):,}" for split, clips in self.clips.items() if clips)
        line = f"{self.source}: {self.caption_source}; {listed}; {splits}\n"
        if not counts["captions"] and not counts["transcripts"]:
            line += "  without texts only stages that read none learn from these; --captions filename makes captions\n"
        return f"{line}{self.notes}".rstrip("\n")


def survey(source: Path, **options: Any) -> Survey:
    """Looks through a folder and prints what it found; the options are the fields of `FolderOptions`."""
    found = Survey(source, **options)
    print(found)
    return found


def read_clips(found: Survey, split: str) -> Iterator[Clip]:
    yield from found.clips[split]


def held_out(found: Survey) -> set[str]:
    """The recordings of val and test clips that train clips share."""
    return ids_of(found.clips["train"]) & ids_of([*found.clips["val"], *found.clips["test"]])


OPTIONS = {
    "--metadata": {
        "type": Path, "nargs": "+", "metavar": "FILE", "help": "the tables to read (default: those in SOURCE)"
    },
    "--captions": {
        "choices": CAPTIONS,
        "help": "metadata: tables and files beside the sounds; labels: of rows or folders (default: what there is)",
    },
    "--text": {
        "choices": ("caption", "transcript"),
        "default": "caption",
        "help": "what a column `text`, and a .txt file beside a sound, holds",
    },
    "--test-fraction": {
        "type": float, "default": 0.0, "metavar": "F", "help": "of the clips that become test clips (default 0)"
    },
    "--follow-links": {"action": "store_true", "help": "read what links outside SOURCE lead to"},
    "--max-seconds": MAX_SECONDS_OPTION,
}  # fmt: skip
CORPUS = Corpus(__doc__, SPLITS, read_clips, OPTIONS, held_out=held_out, exclude="optional", survey=survey)
main = CORPUS.main

if __name__ == "__main__":
    sys.exit(main())
