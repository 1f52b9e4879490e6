"""Folders of audio and captions => a listening test: test.json (the key, for the operator) and pages for raters."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from random import Random

from audioldm2_pl.audio import read_audio
from audioldm2_pl.errors import UserError

from ..folders import clip_files, read_names
from .batches import CHECK, LOW_PASS, REAL, RESERVED, Batch, Item, ListeningTest, plan_batches, save_test
from .page import render_batch_page
from .questions import QUESTIONS
from .stimuli import ANCHOR_HZ, bad_example, beeps, flac, high_energy, low_pass


@dataclass
class BuildOptions:
    questions: tuple[str, ...] = ("OVL", "REL")
    clips_per_batch: int = 5
    num_clips: int | None = None  # drawn by seed; None: all
    seed: int = 0
    completion_url: str = ""


def build_test(
    output: Path, reference: Path, systems: dict[str, Path], captions: Path | None, options: BuildOptions
) -> ListeningTest:
    """reference: real recordings; systems: name -> folder with the same file names, whatever their audio suffix;
    captions: CSV with columns filename and caption, where a clip's first one counts. Writes output/test.json and
    output/pages/."""
    if (output / "answers.sqlite").exists():
        raise UserError(f"{output}: holds the answers to a test already; choose another folder for a new one")
    check_options(systems, options)
    sounds = {system: clip_files(folder) for system, folder in {REAL: reference, **systems}.items()}
    texts = choose_clips(sounds, captions, options)
    strength = {clip: anchor_strength(sounds[REAL][clip]) for clip in texts}
    batches = plan_batches(list(texts), list(systems), options.clips_per_batch, strength, options.seed)
    pages = output / "pages"
    pages.mkdir(parents=True, exist_ok=True)
    for page in pages.glob("batch-*.html"):
        page.unlink()
    digests = {}
    for batch in batches:
        html = batch_page(batch, sounds, texts, options)
        (pages / f"{batch.name}.html").write_text(html, encoding="utf-8")
        digests[batch.name] = hashlib.sha256(html.encode()).hexdigest()
    test = ListeningTest(options.questions, tuple(systems), options.seed, batches, digests, options.completion_url)
    save_test(test, output)
    return test


def check_options(systems: dict[str, Path], options: BuildOptions) -> None:
    if not systems:
        raise UserError("a listening test needs at least one system: --system NAME=FOLDER")
    taken = [name for name in systems if name in RESERVED or not name]
    if taken:
        raise UserError(f"--system {taken[0]}=…: this name is taken; choose another one than {', '.join(RESERVED)}")
    unknown = [code for code in options.questions if code not in QUESTIONS]
    if unknown or not options.questions:
        raise UserError(f"--questions {' '.join(unknown)}: choose from {', '.join(QUESTIONS)}")
    if len(set(options.questions)) < len(options.questions):
        raise UserError(f"--questions {' '.join(options.questions)}: the same question twice")
    if options.clips_per_batch < 1:
        raise UserError(f"--clips-per-batch {options.clips_per_batch}: has to be at least 1")
    if options.num_clips is not None and options.num_clips < 1:
        raise UserError(f"--clips {options.num_clips}: has to be at least 1")


def choose_clips(sounds: dict[str, dict[str, Path]], captions: Path | None, options: BuildOptions) -> dict[str, str]:
    """=> clip -> text. Every clip has to be there from every system: a missing one is an error."""
    if captions is not None:
        texts = {clip: found[0] for clip, found in read_names(captions, "caption").items()}
    elif any(QUESTIONS[code].shows_text for code in options.questions):
        raise UserError("REL asks how a clip matches its text: give --captions FILE, a CSV with filename and caption")
    else:
        texts = dict.fromkeys(sounds[REAL], "")
    for system, found in sounds.items():
        missing = [clip for clip in texts if clip not in found]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(texts)} clips are missing for {system}, the first is {missing[0]}; "
                "every system has to have every clip"
            )
    if options.num_clips is None:
        return texts
    if options.num_clips > len(texts):
        raise UserError(f"--clips {options.num_clips}: there are only {len(texts)} clips")
    return {clip: texts[clip] for clip in Random(options.seed).sample(sorted(texts), options.num_clips)}


def anchor_strength(path: Path) -> float:
    sound, sample_rate = read_audio(path)
    if sample_rate <= 2 * ANCHOR_HZ:
        raise UserError(
            f"{path}: at {sample_rate} Hz it has nothing above {ANCHOR_HZ:.0f} Hz for the low-pass anchor to take; "
            "use recordings of a higher sample rate"
        )
    return high_energy(sound, sample_rate)


def batch_page(batch: Batch, sounds: dict[str, dict[str, Path]], texts: dict[str, str], options: BuildOptions) -> str:
    shows_text = any(QUESTIONS[code].shows_text for code in options.questions)
    items = []
    for item in batch.items:
        check = item.system == CHECK
        items.append(
            {
                "name": item.name,
                "text": "" if check or not shows_text else texts[item.clip],
                "questions": (CHECK,) if check else options.questions,
                "flac": item_sound(item, sounds),
            }
        )
    examples = example_sounds(batch, sounds[REAL], texts, shows_text)
    return render_batch_page(batch.name, items, examples, options.questions, options.completion_url)


def item_sound(item: Item, sounds: dict[str, dict[str, Path]]) -> bytes:
    if item.system == CHECK:
        assert item.expected is not None
        return flac(*beeps(item.expected))
    if item.system == LOW_PASS:
        sound, sample_rate = read_audio(sounds[REAL][item.clip])
        return flac(low_pass(sound, sample_rate), sample_rate)
    return flac(*read_audio(sounds[item.system][item.clip]))


def example_sounds(batch: Batch, real: dict[str, Path], texts: dict[str, str], shows_text: bool) -> list[dict]:
    """A good clip, a bad one and, where the text counts, one with a text of another clip; out of a clip of another
    batch if there is one, so that a rater does not meet it again."""
    inside = {item.clip for item in batch.items}
    others = [clip for clip in sorted(texts) if clip not in inside]
    clip = (others or sorted(texts))[0]
    sound, sample_rate = read_audio(real[clip])
    text = texts[clip] if shows_text else ""
    good = {"title": "A real recording: excellent quality", "text": text, "flac": flac(sound, sample_rate)}
    bad = {
        "title": "Muffled and noisy: bad quality",
        "text": text,
        "flac": flac(bad_example(sound, sample_rate), sample_rate),
    }
    if shows_text:
        good["title"] += ", and it matches the text perfectly"
        bad["title"] += ", though it still matches the text"
    wrong = next((texts[other] for other in sorted(texts) if texts[other] != texts[clip]), None)
    if not shows_text or wrong is None:
        return [good, bad]
    return [good, bad, {"title": "Excellent quality, but no match with the text", "text": wrong, "flac": good["flac"]}]
