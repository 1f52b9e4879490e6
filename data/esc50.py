"""ESC-50: 2,000 environmental recordings of 5 s, 50 classes of 40, in 5 folds (Piczak, 2015).

    python -m data.esc50 ESC-50-master shards/esc50 --test-fold 5

From github.com/karolpiczak/ESC-50: `audio/*.wav` and `meta/esc50.csv`. 2.8 h in all; a test fold
takes 400 clips. Licence CC BY-NC 3.0; the ten classes of ESC-10 (400 clips, 0.56 h) are CC BY 3.0.

ESC-10 as first published (`audio/<class>/*.ogg` and `meta.csv`, a licence for each clip), or an
excerpt of it, is read as well. Both layouts get ESC-50's category names as labels, and several
captions a clip, written by hand for each category. Folds keep clips of one recording together; what
shares a recording with the test fold all the same is refused in training.

With --pictures every clip carries the pictures of its class: a folder of PNGs with `pictures.csv` of
file, class (an ESC-10 folder or an ESC-50 category), set (the drawing style) and licence. Pictures of the
set fluent-emoji-flat go to test clips alone, those of the other sets to training clips alone.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from audioldm2_pl.errors import UserError
from audioldm2_pl.tables import read_table

from .corpus import Corpus
from .leakage import ids_of
from .shards import Clip, key_of
from .sources import source_id

SPLITS = ("train", "test")

# ESC-10's folders, and the categories that ESC-50 calls otherwise.
ESC10_CATEGORIES = {
    "dog_bark": "dog",
    "baby_cry": "crying_baby",
    "person_sneeze": "sneezing",
    "fire_crackling": "crackling_fire",
}

TEST_STYLE = "fluent-emoji-flat"  # the set of pictures that training never sees
CLIP_SECONDS = 5.0  # of every clip; two of ESC-10's files are seven long, and are cut

# category: (the sound, what happens); the ten of ESC-10 have more.
PHRASES: dict[str, tuple[str, ...]] = {
    "dog": ("a dog barking", "a dog barks", "dog bark", "barking of a dog"),
    "rooster": ("a rooster crowing", "a rooster crows", "rooster call", "cock-a-doodle-doo"),
    "pig": ("a pig grunting", "a pig grunts"),
    "cow": ("a cow mooing", "a cow moos"),
    "frog": ("a frog croaking", "a frog croaks"),
    "cat": ("a cat meowing", "a cat meows"),
    "hen": ("a hen clucking", "a hen clucks"),
    "insects": ("insects buzzing", "insects buzz"),
    "sheep": ("a sheep bleating", "a sheep bleats"),
    "crow": ("a crow cawing", "a crow caws"),
    "rain": ("rain falling", "rain falls", "steady rain", "rain pours down"),
    "sea_waves": ("sea waves breaking", "waves break on the shore", "sea waves", "the sea washes in"),
    "crackling_fire": ("a fire crackling", "a fire crackles", "a crackling fire", "wood burns"),
    "crickets": ("crickets chirping", "crickets chirp"),
    "chirping_birds": ("birds chirping", "birds chirp"),
    "water_drops": ("water dripping", "water drips"),
    "wind": ("wind blowing", "wind blows"),
    "pouring_water": ("water being poured", "someone pours water"),
    "toilet_flush": ("a toilet flushing", "a toilet is flushed"),
    "thunderstorm": ("thunder rolling in a storm", "thunder rumbles"),
    "crying_baby": ("a baby crying", "a baby cries", "a crying baby", "an infant wails"),
    "sneezing": ("a person sneezing", "a person sneezes", "a sneeze", "someone sneezes"),
    "clapping": ("people clapping", "people clap their hands"),
    "breathing": ("a person breathing", "someone breathes audibly"),
    "coughing": ("a person coughing", "someone coughs"),
    "footsteps": ("footsteps", "someone walks"),
    "laughing": ("a person laughing", "someone laughs"),
    "brushing_teeth": ("teeth being brushed", "someone brushes their teeth"),
    "snoring": ("a person snoring", "someone snores"),
    "drinking_sipping": ("a person sipping a drink", "someone sips a drink"),
    "door_wood_knock": ("knocking on a wooden door", "someone knocks on a wooden door"),
    "mouse_click": ("a computer mouse clicking", "someone clicks a computer mouse"),
    "keyboard_typing": ("typing on a keyboard", "someone types on a keyboard"),
    "door_wood_creaks": ("a wooden door creaking", "a wooden door creaks"),
    "can_opening": ("a can being opened", "someone opens a can"),
    "washing_machine": ("a washing machine running", "a washing machine runs"),
    "vacuum_cleaner": ("a vacuum cleaner running", "a vacuum cleaner runs"),
    "clock_alarm": ("an alarm clock going off", "an alarm clock goes off"),
    "clock_tick": ("a clock ticking", "a clock ticks", "a ticking clock", "the tick-tock of a clock"),
    "glass_breaking": ("glass breaking", "glass breaks"),
    "helicopter": ("a helicopter flying", "a helicopter flies by", "helicopter rotor", "a helicopter"),
    "chainsaw": ("a chainsaw running", "a chainsaw cuts wood", "chainsaw motor", "a chainsaw roars"),
    "siren": ("a siren wailing", "a siren wails"),
    "car_horn": ("a car horn honking", "a car honks its horn"),
    "engine": ("an engine running", "an engine runs"),
    "train": ("a train passing", "a train passes by"),
    "church_bells": ("church bells ringing", "church bells ring"),
    "airplane": ("an airplane flying overhead", "an airplane flies overhead"),
    "fireworks": ("fireworks exploding", "fireworks explode"),
    "hand_saw": ("a hand saw cutting wood", "someone saws wood by hand"),
}


def captions_for(category: str) -> list[str]:
    """Wordings for a category of ESC-50, or for any class name in `snake_case`."""
    name = category.replace("_", " ")
    noun, *others = PHRASES.get(category, (name,))
    return list(dict.fromkeys([*others, noun, f"the sound of {noun}", f"a recording of {noun}"]))


def pictures_for(folder: Path, split: str) -> dict[str, list[tuple[Path, str]]]:
    """Category -> (file, licence) of each of its pictures in a style of the split; UserError without pictures.csv."""
    found: dict[str, list[tuple[Path, str]]] = {}
    for _, row in read_table(folder / "pictures.csv", ("file", "class", "set", "licence")):
        if (row["set"] == TEST_STYLE) == (split == "test"):
            category = ESC10_CATEGORIES.get(row["class"], row["class"])
            found.setdefault(category, []).append((folder / row["file"], row["licence"]))
    return found


def read_clips(source: Path, split: str, test_fold: int | None = None, pictures: Path | None = None) -> Iterator[Clip]:
    """The clips of "train" or "test"; without a test fold all clips are for training.

    Raises UserError where the meta file is missing or in a layout unknown here.
    """
    found = {} if pictures is None else pictures_for(pictures, split)
    esc50, esc10 = source / "meta" / "esc50.csv", source / "meta.csv"
    rows = list(_esc50_rows(esc50) if esc50.is_file() else _esc10_rows(esc10))
    folds = sorted({fold for _, _, fold, _, _ in rows})
    if test_fold is not None and test_fold not in folds:
        raise UserError(f"{source} has no fold {test_fold}; its folds are {folds}")
    for path, category, fold, licence, recording in rows:
        if (fold == test_fold) == (split == "test"):
            files, licences = zip(*found[category]) if category in found else ((), ())
            drawn = {"picture_licences": sorted(set(licences))} if licences else {}
            yield Clip(
                key=key_of(category, Path(path).stem),
                duration=CLIP_SECONDS,
                captions=captions_for(category),
                path=source / path,
                pictures=files,
                labels=[category],
                source="ESC-50" if esc50.is_file() else "ESC-10",
                licence=licence,
                extra={"fold": fold, "source_id": source_id("freesound", recording), **drawn},
            )


def held_out(source: Path, test_fold: int | None = None, pictures: Path | None = None) -> set[str]:
    return ids_of(read_clips(source, "test", test_fold))


def _esc50_rows(meta: Path) -> Iterator[tuple[str, str, int, str, str]]:
    """(path, category, fold, licence, FreeSound's number) of every clip."""
    for row in _read_csv(meta, ("filename", "fold", "category", "esc10")):
        name = row["filename"]
        licence = "CC BY 3.0" if row["esc10"].lower() == "true" else "CC BY-NC 3.0"
        yield f"audio/{name}", row["category"], int(row["fold"]), licence, row.get("src_file", name)


def _esc10_rows(meta: Path) -> Iterator[tuple[str, str, int, str, str]]:
    for row in _read_csv(meta, ("file", "class", "fold", "licence", "freesound_id")):
        name = re.sub(r"\W+", "_", row["class"].strip().lower())
        # Some rows hold an author or an address instead of the licence.
        licence = row["licence"] if row["licence"].startswith("CC") else "CC BY 3.0"
        yield row["file"], ESC10_CATEGORIES.get(name, name), int(row["fold"]), licence, row["freesound_id"]


def _read_csv(meta: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    if not meta.is_file():
        raise UserError(f"{meta.parent} holds neither meta/esc50.csv nor meta.csv; name the unpacked corpus")
    for line, row in read_table(meta, columns):
        if not row["fold"].isdecimal():
            raise UserError(f"{meta}, line {line}: {row['fold']!r} is no fold")
        yield row


OPTIONS = {
    "--test-fold": {
        "type": int,
        "metavar": "N",
        "help": "the fold that becomes the test split (default: all clips are for training)",
    },
    "--pictures": {"type": Path, "metavar": "FOLDER", "help": "of pictures of the classes, with pictures.csv"},
}
CORPUS = Corpus(__doc__, SPLITS, read_clips, OPTIONS, held_out=held_out)
clips, main = CORPUS.clips, CORPUS.main

if __name__ == "__main__":
    sys.exit(main())
