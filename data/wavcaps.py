"""WavCaps: 403,050 recordings whose descriptions ChatGPT turned into captions (Mei et al., 2023).

    python -m data.wavcaps WavCaps shards/wavcaps \\
        --exclude WavCaps/json_files/blacklist/blacklist_exclude_test_ac.json musiccaps-public.csv

From huggingface.co/datasets/cvssp/WavCaps, academic use only. SOURCE is that repository with its archives unpacked;
the recordings may lie anywhere below the folders of Audio or Zip_files, or in SOURCE/<part>:

    json_files/AudioSet_SL/as_final.json        108,317   Audio/AudioSet_SL/**/Y<id>.flac
    json_files/BBC_Sound_Effects/bbc_final.json  31,201   Audio/BBC_Sound_Effects/**/<id>.flac
    json_files/FreeSound/fsd_final.json         262,300   Audio/FreeSound/**/<id>.flac
    json_files/SoundBible/sb_final.json           1,232   Audio/SoundBible/**/<id>.flac
    json_files/blacklist/*.json                 clips of evaluation sets, for --exclude

A part whose JSON is not there is passed over. 7,568 h in all, 68 s on average, the longest over 12 h: of a recording
the first --max-seconds are taken. The layout is sb_final.json's, the others' by the repository's own reader and
aac-datasets: {"data": [{"id", "caption", "duration", ...}]}, AudioSet's ids being "Y<id>.wav".

Caption: "caption". All is for training; the blacklists are AudioCaps' and Clotho's, MusicCaps' must be named beside.
"""

import sys
from collections.abc import Iterator
from pathlib import Path, PurePath

from audioldm2_pl.errors import UserError
from audioldm2_pl.tables import read_json

from .corpus import MAX_SECONDS, MAX_SECONDS_OPTION, Corpus
from .shards import Clip, key_of
from .sources import AUDIO_SUFFIXES, audio_files, fields, source_id

PARTS = {
    "AudioSet_SL": "as_final.json",
    "BBC_Sound_Effects": "bbc_final.json",
    "FreeSound": "fsd_final.json",
    "SoundBible": "sb_final.json",
}
SITE_OF_PART = {"AudioSet_SL": "youtube", "FreeSound": "freesound"}


def read_clips(source: Path, split: str, max_seconds: float = MAX_SECONDS) -> Iterator[Clip]:
    """The clips of all parts that are there; "train" is the only split."""
    tables = {part: source / "json_files" / part / name for part, name in PARTS.items()}
    tables = {part: path for part, path in tables.items() if path.is_file()}
    if not tables:
        raise UserError(f"{source}/json_files holds none of WavCaps' four JSON files")
    for part, table in tables.items():
        files = audio_files(_folder(source, part))
        content = read_json(table)
        if not isinstance(content, dict) or not isinstance(content.get("data"), list):
            raise UserError(f"{table} has no list 'data'; is it WavCaps' own file?")
        for item in content["data"]:
            identity, caption = fields(item, ("id", "caption"), table)
            name = PurePath(str(int(identity) if isinstance(identity, float) and identity.is_integer() else identity))
            stem = name.stem if name.suffix.lower() in AUDIO_SUFFIXES else str(name)
            path, *others = map(Path, files.get(stem, [f"{source}/Audio/{part}/{stem}.flac"]))
            yield Clip(
                key=key_of(part, stem),
                text="" if caption is None else caption,
                path=path,
                others=others,
                duration=max_seconds,
                source=f"WavCaps {part}",
                licence="academic use (WavCaps)",
                extra={"source_id": source_id(SITE_OF_PART.get(part, part.lower()), stem)},
            )


def _folder(source: Path, part: str) -> Path:
    folders = [source / "Audio" / part, source / "Zip_files" / part, source / part]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


CORPUS = Corpus(__doc__, ("train",), read_clips, {"--max-seconds": MAX_SECONDS_OPTION}, exclude="required")
clips, main = CORPUS.clips, CORPUS.main

if __name__ == "__main__":
    sys.exit(main())
