"""What is asked for (Generation), how a recording is edited (Editing) and how latents are sampled (Sampling): the one
schema of the command line, Python, training and experiments.

A field's metadata holds its help, its unit, its range (`bounds`) and other names that it goes by (`aliases`). This
module imports no torch, so that `audioldm2 --help` starts at once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from numbers import Integral
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal

from audioldm2_pl.errors import UserError
from audioldm2_pl.fields import bounded, check_fields, nearest

Sampler = Literal["ddim", "ddpm", "dpm-solver++", "unipc", "euler", "heun", "pndm", "lcm"]
Unconditional = Literal["zero", "gpt2"]
Mode = Literal["exact", "official"]
RestyleMethod = Literal["sdedit", "inversion"]
LCM_STEPS = 50  # of the grid that "lcm" samples a part of; a model folder's student may have another
ABILITIES = ("between", "above", "extend", "restyle", "vary")  # of which an edit is one
MEDIA = ("image", "video", "audio")  # fields of Generation that name a file


@dataclass
class Sampling:
    """How latents are sampled. A model folder holds it as generation_config.json; the defaults are the authors'."""

    sampler: Sampler | None = bounded(
        "ddim", help="diffusion sampler, lcm for a student; null is the scheduler of the model folder"
    )
    num_steps: int = bounded(200, ge=1, le=100_000, aliases=("steps",), unit="steps", help="sampling steps")
    guidance_scale: float = bounded(3.5, ge=0, le=100, help="classifier-free guidance; 1 is no guidance")
    eta: float = bounded(1.0, ge=0, le=1, help="noise added back by DDIM: 1 in the authors' code, 0 in diffusers")
    unconditional: Unconditional = bounded(
        "zero", help="guidance is against zero LOA (the authors), or GPT-2's LOA for the negative prompt (diffusers)"
    )
    window_seconds: float | None = bounded(
        None, gt=0, le=600, unit="seconds", help="longest sound that is sampled at once; left out, the model's clip"
    )
    candidates: int = bounded(
        1, ge=1, le=1_000, unit="clips", help="clips per prompt, of which CLAP picks the nearest; the authors sample 3"
    )


@dataclass
class Generation:
    """What one clip is to be."""

    prompt: str = bounded(MISSING, help="what to generate")
    negative_prompt: str = bounded("", help="what guidance moves away from")
    transcript: str | None = bounded(
        None,
        aliases=("transcripts",),
        help="what a speech model speaks, of any length; the prompt describes the voice",
    )
    image: str | None = bounded(None, unit="file", help="a picture (PNG, JPEG, WebP) of what is to be heard")
    video: str | None = bounded(None, unit="file", help="a video of what is to be heard, of which 16 frames are seen")
    audio: str | None = bounded(
        None, aliases=("voice",), unit="file", help="a recording that it is to sound like; of speech, the voice"
    )
    prompt_at: list[tuple[float, str]] | None = bounded(
        None, ge=0, le=86_400, unit="seconds", help="from SECONDS on it is TEXT; may be given several times"
    )
    seconds: float | None = bounded(
        None, gt=0, le=86_400, unit="seconds", help="length of the clip; left out, the model's own"
    )
    seed: int = bounded(0, ge=0, lt=2**63, help="random seed of the first clip; the next ones count up")

    def __post_init__(self) -> None:
        for name in MEDIA:
            if isinstance(path := getattr(self, name), PathLike):
                setattr(self, name, fspath(path))

    def at(self, seconds: float) -> "Generation":
        """The request with the prompt that holds at a time."""
        passed = [(start, text) for start, text in self.prompt_at or () if start <= seconds]
        return replace(self, prompt=max(passed, key=lambda entry: entry[0])[1], prompt_at=None) if passed else self


@dataclass
class Editing:
    """How a recording is edited: one of the first five, or `between` and `above` together."""

    between: list[tuple[float, float]] | None = bounded(
        None, ge=0, le=86_400, unit="seconds", help="regenerate from START to STOP; may be given several times"
    )
    above: float | None = bounded(
        None, gt=0, le=192_000, unit="hz", help="regenerate the frequencies above (super-resolution)"
    )
    extend: float | None = bounded(None, gt=0, le=86_400, unit="seconds", help="continue the sound for so long")
    restyle: float | None = bounded(
        None, gt=0, le=1, unit="strength", help="change the sound to what the text says; 1 leaves nothing of it"
    )
    vary: float | None = bounded(
        None, gt=0, le=1, unit="strength", help="another take of the sound, by its own LOA instead of a text's"
    )
    restyle_method: RestyleMethod = bounded(
        "sdedit", help="noise alone, or DDPM inversion, which keeps more of the source at the same strength"
    )
    source_prompt: str = bounded("", help="what the source is, for inversion")
    source_guidance: float = bounded(3.0, ge=0, le=100, help="guidance scale of inversion")
    source_transcript: str = bounded("", help="what a source says that a speech model continues")
    mode: Mode = bounded(
        "exact", help="the authors' own code noises a source one step too far, and ends without the source"
    )
    paste_back: bool = bounded(True, help="put the source's own samples back where nothing was to change")

    def check(self) -> None:
        """UserError for a value out of its range, no ability or two that exclude each other."""
        check_fields(self)
        chosen = [name for name in ABILITIES if getattr(self, name) is not None]
        if not chosen or (len(chosen) > 1 and chosen != ["between", "above"]):
            flags = ", ".join(f"--{name}" for name in ABILITIES)
            raise UserError(f"{' and '.join(chosen) or 'no edit'}: choose one of {flags}, or --between and --above")
        for start, stop in self.between or ():
            if start >= stop:
                raise UserError(f"--between {start:g} {stop:g}: the first has to be before the second")
        if self.restyle_method == "inversion" and (self.restyle is None or self.mode == "official"):
            raise UserError("--restyle-method inversion: goes with --restyle, and not with --mode official")

    @property
    def strength(self) -> float | None:
        """Share of the noise that the source gets; None: the edited part is sampled from noise alone."""
        return self.restyle if self.vary is None else self.vary


def by_name(values: Mapping[str, Any], *schemas: type) -> list[dict[str, Any]]:
    """Values under the fields' names or aliases => those of each dataclass. Raises UserError for an unknown name."""
    names = [{n: f.name for f in fields(s) for n in (f.name, *f.metadata["aliases"])} for s in schemas]
    known = {name: name for names_of_one in names for name in names_of_one.values()}
    for name in values:
        if not any(name in names_of_one for names_of_one in names):
            raise UserError(f"{name}: no such setting; {nearest(name, list(known))}")
    return [{own[name]: value for name, value in values.items() if name in own} for own in names]


def requests_of(
    requests: str | Generation | Sequence[str | Generation], values: Mapping[str, Any], empty_prompts: bool = False
) -> list[Generation]:
    """Prompts or Generations, with the fields of `values` set on all => one checked Generation a clip.

    A value is one for all clips, or a list with one for each; one `seed` counts up from clip to clip, and so does the
    seed 0 of plain prompts. Raises UserError for a value out of its range, and for an empty prompt unless
    `empty_prompts`.
    """
    given = [requests] if isinstance(requests, str | Generation) else list(requests)
    if not given:
        raise UserError('no prompt; give one or more, for example "a bell rings"')
    columns = {name: column(name, value, len(given)) for name, value in values.items()}
    clips = []
    for i, request in enumerate(given):
        clip = request if isinstance(request, Generation) else Generation(request, seed=i)
        clips.append(replace(clip, **{name: values[i] for name, values in columns.items()}))
        check_request(clips[-1], i + 1, empty_prompts)
    return clips


def column(name: str, value: Any, num_clips: int) -> list[Any]:
    """A field's value for each clip."""
    if name == "prompt_at" or isinstance(value, str) or not isinstance(value, Iterable):
        counts_up = name == "seed" and isinstance(value, Integral)
        return [int(value) + i if counts_up else value for i in range(num_clips)]
    values = [int(v) if isinstance(v, Integral) else v for v in value]
    if len(values) != num_clips:
        raise UserError(f"{name}: {len(values)} for {num_clips} prompts; give one for all, or one for each")
    return values


def check_request(request: Generation, number: int, empty_prompts: bool = False) -> None:
    """UserError where a request's fields are out of their ranges or no text; `number` counts the prompts from 1."""
    later = [text for _, text in request.prompt_at or ()]
    for text in (request.prompt, request.negative_prompt, request.transcript or "", *later):
        if not isinstance(text, str) or any("\ud800" <= c <= "\udfff" for c in text):
            raise UserError(f"prompt {number} is no text: {text!r}")
    files = {name: path for name in MEDIA if (path := getattr(request, name)) is not None}
    needs_prompt = not (empty_prompts or files or (request.transcript or "").strip())
    if needs_prompt and not all(text.strip() for text in (request.prompt, *later)):
        raise UserError(f"prompt {number} is empty; write what you want to hear")
    check_fields(request)
    if len(files) > 1:
        raise UserError(f"prompt {number} has {' and '.join(files)}; give one of them")
    for name, path in files.items():
        if not Path(path).is_file():
            raise UserError(f"{name} {path}: no such file")


def check_transcripts(requests: Sequence[Generation], reads: bool, needs: bool) -> None:
    """UserError where a model that only speaks is given no transcript, or one that does not speak is given one."""
    for request in requests:
        if needs and not (request.transcript or "").strip():
            raise UserError("this is a speech model; give each prompt a transcript (--transcript), the text to speak")
        if not reads and request.transcript is not None:
            raise UserError("this is no speech model; leave the transcript out, or open a speech model")


def check_media(requests: Sequence[Generation], conditioners: Iterable[Any]) -> None:
    """UserError where no conditioner of a model reads the file that a request names, or where it names none and they
    read nothing else."""
    conditioners = list(conditioners)
    read = [name for name in MEDIA if any(name in getattr(c, "media", ()) for c in conditioners)]
    needs_file = "image" in read and not any(c.reads in ("text", "transcript") for c in conditioners)
    for request in requests:
        given = [name for name in MEDIA if getattr(request, name) is not None]
        if unread := [name for name in given if name not in read]:
            known = f"it reads {', '.join(read)}" if read else "open one that was trained with conditioners.image"
            raise UserError(f"this model reads no {unread[0]}; {known}")
        if needs_file and not given:
            raise UserError("this model makes sound of pictures; give it an image, a video or audio (--image FILE)")


def num_lcm_steps(scheduler: Mapping[str, Any]) -> int:
    """Steps of the grid that "lcm" samples a part of, over the noise schedule of a scheduler's config."""
    return min(scheduler.get("original_inference_steps", LCM_STEPS), scheduler["num_train_timesteps"])


def check_sampling(sampling: Sampling, scheduler: Mapping[str, Any]) -> None:
    """UserError for a value out of its range, or more steps than a scheduler of this config has."""
    check_fields(sampling)
    num_timesteps = scheduler["num_train_timesteps"]
    if sampling.num_steps >= num_timesteps:  # diffusers' "leading" steps begin at 1
        raise UserError(f"num_steps={sampling.num_steps} has to be below {num_timesteps}, the timesteps of training")
    is_lcm = sampling.sampler == "lcm" or (sampling.sampler is None and "original_inference_steps" in scheduler)
    if is_lcm and sampling.num_steps > num_lcm_steps(scheduler):
        raise UserError(f"num_steps={sampling.num_steps}: lcm samples in {num_lcm_steps(scheduler)} steps or fewer")


def texts_of(requests: Sequence[Generation]) -> dict[str, list[str]]:
    """All texts of requests under the keys that conditioners read: "text" and "transcript"."""
    return {
        "text": [t for r in requests for t in (r.prompt, r.negative_prompt, *(t for _, t in r.prompt_at or ()))],
        "transcript": [request.transcript or "" for request in requests],
    }
