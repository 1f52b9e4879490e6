"""GigaSpeech: 10,000 h of transcribed audiobooks, podcasts and YouTube, 16 kHz (Chen et al., 2021).

    python -m data.gigaspeech GigaSpeech shards/gigaspeech --subset L

From github.com/SpeechColab/GigaSpeech; non-commercial research and education. SOURCE: `GigaSpeech.json` and the opus
files that it names, `audio/podcast/P0001/POD0000000025.opus`, each of many segments with a beginning, an end and a
transcript. The layout is that of the README's excerpt and of the repository's own readers.

    train   {XS} 10 h, {S} 250 h, {M} 1,000 h, {L} 2,500 h, {XL} 10,000 h, each within the next (--subset)
    dev     {DEV} 12 h, about 6,750 segments
    test    {TEST} 40 h, about 25,600 segments

A file with any segment of dev or test is refused in training, whole. Segments of silence, music and noise
(<SIL>, <MUSIC>, <NOISE>, <OTHER>) are left out. Both are counted and printed.

Transcript: in lower case, as the text has no other, with the punctuation that <COMMA> and the like stand for.
There is no caption: for speech the authors' is empty.
"""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from audioldm2_pl.errors import UserError

from .corpus import Corpus
from .recordings import SHORTEST
from .shards import Clip, key_of
from .sources import fields, number

SPLITS = ("train", "dev", "test")
SUBSETS = ("XS", "S", "M", "L", "XL")
EVALUATION = {"{DEV}", "{TEST}"}
PUNCTUATION = {"<COMMA>": ",", "<PERIOD>": ".", "<QUESTIONMARK>": "?", "<EXCLAMATIONPOINT>": "!"}
NO_SPEECH = {"<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>"}
BLOCK = 1 << 22  # characters read at a time
WHOLE = 0.9  # of a segment; a shorter file does not hold all of its transcript
MAX_ENTRY = 1 << 28  # characters; no recording's entry is as long


def read_clips(source: Path, split: str, subset: str = "XL") -> Iterator[Clip]:
    """The segments of "train" (those of `subset`), "dev" or "test", in the order of GigaSpeech.json."""
    wanted = f"{{{subset if split == 'train' else split.upper()}}}"
    num_refused = num_without_speech = 0
    table = source / "GigaSpeech.json"
    for audio in read_audios(table):
        path, segments = fields(audio, ("path", "segments"), table)
        subsets = [set(fields(segment, ["subsets"], table)[0] or ()) for segment in segments]
        segments = [segment for segment, of in zip(segments, subsets) if wanted in of]
        if split == "train" and any(EVALUATION & of for of in subsets):
            num_refused += len(segments)
            continue
        for segment in segments:
            name, start, end, text = fields(segment, ("sid", "begin_time", "end_time", "text_tn"), table)
            start, end = number(start, table), number(end, table)
            words = str(text or "").split()
            if NO_SPEECH & set(words):
                num_without_speech += 1
                continue
            yield Clip(
                key=key_of(name),
                transcript=transcript(words),
                path=source / path,
                start=start,
                duration=end - start,
                shortest=max(SHORTEST, WHOLE * (end - start)),
                source="GigaSpeech",
                licence="non-commercial research and education",
                extra={"source_id": f"gigaspeech:{Path(path).stem}", "title": audio.get("title", "")},
            )
    if split == "train":
        print(f"refused {num_refused} segments of recordings that are in dev or test")
    print(f"left out {num_without_speech} segments without speech")


def transcript(words: Sequence[str]) -> str:
    """`["SO", "<COMMA>", "YES", "<PERIOD>"]` => "so, yes." """
    spoken = " ".join(PUNCTUATION.get(word, word.lower()) for word in words)
    return re.sub(r" ([,.?!])", r"\1", spoken)


def read_audios(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of "audios" one by one: the file is too long to hold at once."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; name the folder of GigaSpeech")
    decode = json.JSONDecoder().raw_decode
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        text = file.read(BLOCK)
        opening = re.search(r'"audios"\s*:\s*\[', text)
        if opening is None:
            raise UserError(f"{path} has no list 'audios'; is it GigaSpeech.json?")
        position = opening.end()
        while True:
            while position < len(text) and text[position] in ", \t\r\n":
                position += 1
            if text[position : position + 1] == "]":
                return
            try:
                audio, position = decode(text, position)
            except json.JSONDecodeError:
                block = file.read(BLOCK)
                text, position = text[position:] + block, 0
                if not block or len(text) > MAX_ENTRY:
                    raise UserError(f"{path} is cut off or not whole JSON; fetch it again") from None
            else:
                yield audio


OPTIONS = {"--subset": {"choices": SUBSETS, "default": "XL", "help": "of the training split"}}
CORPUS = Corpus(__doc__, SPLITS, read_clips, OPTIONS)
clips, main = CORPUS.clips, CORPUS.main

if __name__ == "__main__":
    sys.exit(main())
