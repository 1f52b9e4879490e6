"""What the names of files and folders say of a sound: its split, its label, a caption, its recording."""

import hashlib
import os
import posixpath
import re
from collections.abc import Sequence

from .folder_files import split_suffix
from .shards import key_of

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
NO_LABELS = {*SPLIT_NAMES, "audio", "audios", "clips", "data", "flac", "mp3", "recordings", "sounds", "wav", "wavs"}
YOUTUBE_NAME = re.compile(r"Y[\w-]{11}|[\w-]{11}(_[\d.]+){1,2}|(?=.*[a-z])(?=.*[A-Z])[\w-]{11}", re.ASCII)
FREESOUND_NAME = re.compile(r"\d+__\w.*")  # as its downloads are named, 123__author__title
LONGEST_KEY = 150  # characters
MAX_SHOWN = 3  # names in a line


def split_in(name: str) -> str | None:
    """The one split that a file's own name holds as a word, such as "train" in `audiocaps_train_label.json`."""
    words = re.split(r"[\W\d_]+", posixpath.basename(name).lower())
    found = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    return found.pop() if len(found) == 1 else None


def split_of_folders(name: str) -> str | None:
    """The split that one of a file's folders is named by, the outermost."""
    folders = name.lower().split("/")[:-1]
    return next((SPLIT_NAMES[folder] for folder in folders if folder in SPLIT_NAMES), None)


def label_of_folders(name: str) -> str:
    """The innermost folder that is named by what is heard, or ""."""
    folders = [folder for folder in name.split("/")[:-1] if folder.lower() not in NO_LABELS]
    return folders[-1] if folders else ""


def words_of(name: str) -> str:
    """A file's name as a caption: `dog_bark-03.wav` => "dog bark"; "" where no letter is left."""
    stem = split_suffix(posixpath.basename(name))[0]
    if FREESOUND_NAME.fullmatch(stem):
        stem = re.sub(r"^\d+__(?:[^_]+__)?", "", stem)
    words = re.sub(r"^[\d ]+(?= )|(?<= )[\d ]+$", "", re.sub(r"[\s_.-]+", " ", stem)).strip()
    return words if any(map(str.isalpha, words)) else ""


def site_of(stem: str) -> tuple[str, str] | None:
    """("youtube" or "freesound", id) where a file is named as downloads from there are."""
    if FREESOUND_NAME.fullmatch(stem):
        return "freesound", stem.partition("__")[0]
    return ("youtube", stem) if YOUTUBE_NAME.fullmatch(stem) else None


def unique_key(stem: str) -> str:
    """A clip's key out of its file's path without the suffix; names that lose letters there stay apart."""
    key = key_of(*stem.split("/"))
    if stem.isascii() and len(key) <= LONGEST_KEY:
        return key
    return f"{key[-LONGEST_KEY:]}-{hashlib.sha256(os.fsencode(stem)).hexdigest()[:8]}"


def draw(identity: str) -> float:
    """A number from 0 to below 1 that follows from the text alone."""
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:7], "big") / 2**56


def printable(name: str) -> str:
    """A file's name with the bytes escaped that are no UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def shown(names: Sequence[str]) -> str:
    more = [f"… {len(names) - MAX_SHOWN} more"] if len(names) > MAX_SHOWN else []
    return ", ".join([*map(printable, names[:MAX_SHOWN]), *more])
