"""Music out of scores: excerpts of free scores, played by a SoundFont, with exact captions. No download.

    python -m data.scores shards/scores --captions 4
    python -m data.scores shards/mine --scores my_midi_files --licence "CC BY 4.0"

The scores are those files of music21's corpus that state a free licence (`data/score_works.py`), or
MIDI, MusicXML, ABC and Humdrum files of your own. A clip draws its excerpt, transposition, tempo and instruments
(19 General MIDI programs): half of the clips are of one instrument, half of a leading and an accompanying
one. Captions tell instruments, tempo, metre, key and register.

The splits share no work, whose name alone decides its split: all movements and versions of a work stay together.
In a folder a work is a file, or a title of a tunebook; files that differ by a number of movement, or by a
number after a dot, are one work (sonata_movement1.mid, bwv101.7.mxl).

Apart from the caption a clip's JSON holds "labels" (instruments, the leading one first), "programs",
"tempo_bpm" (of the metre's beat: a dotted quarter in 6/8) and "tempo" (slow, moderate, fast), "musical_key" and
"metre" (null where they change or are unclear: a key stands where the notes fit the signature), "register", "work" and
where in it the excerpt is. Licences: the score's, and the SoundFont's; the default one, TimGM6mb.sf2, is GPL-2.0.

Needs the extra audioldm2-pl[scores].
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from audioldm2_pl.errors import UserError, run_tool

from .corpus import add_made_options, write_split
from .engines import ENGINES, count_cores
from .score_captions import REGISTERS, TEMPO_BANDS, caption
from .score_excerpts import Excerpt, Playing, choose_excerpt, notes_of
from .score_notes import at, sounding_key, transposed
from .score_rendering import INSTRUMENTS, SoundFont, find_soundfont, levelled, render
from .score_works import SPLITS, Work, find_works, works_of
from .shards import Clip

DUET_RATIO = 0.5  # of the clips
CLIPS_PER_SHARD = 1000
MIN_SECONDS = 1.0  # of a clip
MIN_SAMPLE_RATE = 8_000  # Hz


@dataclass(frozen=True)
class ScoreRecipe:
    """How the clips of a split are made. UserError where they are too short, or the sample rate is too low."""

    split: str
    soundfont: SoundFont
    seconds: float = 5.12
    seed: int = 0
    sample_rate: int = 16_000  # Hz
    num_captions: int = 1  # wordings of a clip; of several a training batch draws one

    def __post_init__(self) -> None:
        if self.seconds < MIN_SECONDS or self.sample_rate < MIN_SAMPLE_RATE:
            raise UserError(
                f"clips of {self.seconds} s at {self.sample_rate} Hz: "
                f"make them {MIN_SECONDS:g} s or longer, at {MIN_SAMPLE_RATE} Hz or more"
            )

    def make(self, work: Work, index: int) -> Clip:
        """Clip i depends on the recipe, its work and i alone. Instruments take turns, so that all lead equally often.

        Raises UserError where the work has no excerpt of that length with enough notes.
        """
        rng = np.random.default_rng((self.seed, SPLITS.index(self.split), index))
        names = list(INSTRUMENTS)
        is_duet = int((index + 1) * DUET_RATIO) > int(index * DUET_RATIO)
        lead = names[index // 2 % len(names)]
        tempo = str(rng.choice(list(TEMPO_BANDS)))
        tempo_bpm = round(float(rng.uniform(*TEMPO_BANDS[tempo])))
        piece = work.scores[int(rng.integers(len(work.scores)))]
        excerpt = choose_excerpt(piece, tempo_bpm, self.seconds, rng)
        playing = [Playing(lead, (0,))]
        if is_duet and len(excerpt.parts) > 1:
            others = [name for name in names if name != lead and INSTRUMENTS[name].is_polyphonic]
            playing.append(Playing(str(rng.choice(others)), tuple(range(1, len(excerpt.parts)))))
        elif INSTRUMENTS[lead].is_polyphonic:
            playing = [Playing(lead, tuple(range(len(excerpt.parts))))]
        semitones = int(rng.integers(-5, 7))
        notes = notes_of(excerpt, playing, semitones, rng)
        waveform = render(notes, [INSTRUMENTS[p.name].program for p in playing], self.seconds, self.soundfont)
        num_samples = round(self.seconds * self.sample_rate)
        pitch = float(np.mean([note.pitch for note in notes if note.channel == 0]))
        truth = {
            "labels": [p.name for p in playing],
            "tempo_bpm": tempo_bpm,
            "tempo": tempo,
            "register": next(name for name, (low, high) in REGISTERS.items() if low <= pitch < high),
            **self.signs(excerpt, playing, semitones),
        }
        wordings = [caption(truth, rng) for _ in range(self.num_captions)]
        return Clip(
            key=f"{self.split}-{index:06d}",
            text=wordings[0] if self.num_captions == 1 else None,
            captions=wordings if self.num_captions > 1 else None,
            waveform=levelled(waveform, self.sample_rate, num_samples),
            labels=truth.pop("labels"),
            source=work.source,
            licence=f"score: {work.licence}; SoundFont: {self.soundfont.licence}",
            extra={
                **truth,
                "programs": [INSTRUMENTS[p.name].program for p in playing],
                "work": work.name,
                "title": piece.title,
                "source_id": f"score:{work.name}",
                "start_quarters": excerpt.begin,
                "transposition": semitones,
            },
        )

    @staticmethod
    def signs(excerpt: Excerpt, playing: Sequence[Playing], semitones: int) -> dict[str, str | None]:
        """Metre and key, where they are clear."""
        heard = np.concatenate([excerpt.parts[part] for p in playing for part in p.parts])
        key = sounding_key(heard, at(excerpt.score.keys, excerpt.begin, excerpt.end) or ())
        return {
            "metre": at(excerpt.score.metres, excerpt.begin, excerpt.end),
            "musical_key": transposed(key, semitones) if key else None,
        }


def recipes(works: Sequence[Work], num_clips: int, recipe: ScoreRecipe) -> Iterator[Clip]:
    """The clips of a split, still to be made, of its works in turns that follow from the seed: longer ones come more
    often."""
    weights = np.sqrt([sum(len(score.bars) for score in work.scores) for work in works])
    rng = np.random.default_rng((recipe.seed, SPLITS.index(recipe.split)))
    drawn = rng.choice(len(works), num_clips, p=weights / weights.sum())
    for index, number in enumerate(drawn.tolist()):
        yield Clip(key=f"{recipe.split}-{index:06d}", make=partial(recipe.make, works[number], index))


def check_splits(works: Mapping[str, Sequence[Work]], num_clips: Mapping[str, int]) -> None:
    """UserError where a split has clips to be made of no works."""
    for split, number in num_clips.items():
        if number and not works[split]:
            flag = "--clips" if split == "train" else f"--{split}-clips"
            raise UserError(f"the split {split} has no works, whose names decide; give more works, or {flag} 0")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_made_options(parser, 5.12, CLIPS_PER_SHARD)
    parser.add_argument("--scores", type=Path, metavar="FOLDER", help="of scores, in place of music21's free ones")
    parser.add_argument("--licence", metavar="TEXT", help="of the scores in FOLDER")
    parser.add_argument("--soundfont", type=Path, metavar="FILE", help=".sf2 (default: pretty_midi's TimGM6mb.sf2)")
    arguments = parser.parse_args(argv)

    def write_splits() -> None:
        soundfont = find_soundfont(arguments.soundfont)
        files = find_works(arguments.scores, arguments.licence)
        num_cores = arguments.num_workers or count_cores(arguments.engine)
        works = works_of(files, lambda task, inputs: ENGINES[arguments.engine](task, inputs, num_cores))
        numbers: dict[str, int] = dict(zip(SPLITS, (arguments.clips, arguments.test_clips, arguments.judge_clips)))
        check_splits(works, numbers)
        for split, num_clips in numbers.items():
            if num_clips == 0:
                continue
            num_captions = arguments.captions if split == "train" else 1
            settings = (arguments.seconds, arguments.seed, arguments.sample_rate, num_captions)
            found = recipes(works[split], num_clips, ScoreRecipe(split, soundfont, *settings))
            write_split(found, arguments.output / split, arguments, num_clips)

    return run_tool(write_splits)


if __name__ == "__main__":
    sys.exit(main())
