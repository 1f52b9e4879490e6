"""The page: sections of text, tables, charts and sounds, in one HTML file that needs nothing else.

What is no `Markup` is escaped by the template.
"""

import base64
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import torch
from markupsafe import Markup

from audioldm2_pl.audio import AudioConfig, LogMel, fit_length, load_waveform

from .charts import log_mel_png, short_number

MAX_MEDIA_BYTES = 12_000_000  # of audio and pictures of one section, as base64


@dataclass
class Table:
    header: list[Any]
    rows: list[list[Any]]  # a row's first cell is its heading
    css: str = ""
    summary: str = ""  # folds the table in


@dataclass
class Chart:
    title: str
    note: str
    svg: bytes

    @property
    def address(self) -> str:
        return data_address("image/svg+xml", self.svg)


@dataclass
class Player:
    title: str
    name: str  # clip and system
    picture: str  # data: address
    audio: str  # data: address
    note: Any = ""


@dataclass
class Example:
    title: str
    note: str
    sounds: list[Player]


@dataclass
class Part:
    """Its contents in the order of the fields; what is empty leaves no trace."""

    heading: str = ""
    text: Any = ""
    table: Table | None = None
    notes: list[str] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    code: tuple[str, str] | None = None  # summary, folded content


@dataclass
class Section:
    id: str
    title: str
    text: str
    parts: list[Part]
    css: str = ""  # of the parts' container


@dataclass
class Page:
    title: str
    description: str
    summary: str
    reached: bool | None  # whether all targets are; None: there are none
    sections: list[Section]

    def render(self) -> str:
        loader = jinja2.FileSystemLoader(Path(__file__).parent)
        environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
        style = Markup(Path(__file__).with_name("page.css").read_text(encoding="utf-8"))
        return environment.get_template("page.html.jinja").render(page=self, style=style)


def data_address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def sound_player(path: Path, title: str, audio: AudioConfig, note: Any = "") -> Player:
    """A file's log-mel as a picture, and the file itself to listen to."""
    waveform = load_waveform(path, audio.sample_rate)
    waveform = fit_length(waveform, max(len(waveform), audio.num_fft))
    log_mel = LogMel(audio)(torch.from_numpy(waveform)[None])[0, 0].numpy()  # (F, M)
    picture, sound = data_address("image/png", log_mel_png(log_mel)), data_address("audio/flac", path.read_bytes())
    return Player(title, f"{path.stem}, {title}", picture, sound, note)


def fitting(makers: Iterable[Callable[[], Example]]) -> Iterator[Example]:
    """The examples in order until the next one would make the page too large; always one."""
    num_bytes = 0
    for make in makers:
        example = make()
        size = sum(len(sound.picture) + len(sound.audio) for sound in example.sounds)
        if num_bytes and num_bytes + size > MAX_MEDIA_BYTES:
            return
        num_bytes += size
        yield example


def with_interval(score: dict[str, Any], show: Callable[[float], str] = short_number) -> Any:
    """A score's value and bounds as a cell."""
    if score["value"] is None:
        return "–"
    interval = "" if score["low"] is None else f"[{show(score['low'])}, {show(score['high'])}]"
    return Markup("<b>{}</b> <small>{}</small>").format(show(score["value"]), interval)


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def shaded(share: float | None, text: str) -> Markup:
    return Markup('<span class="shade" style="--share:{}">{}</span>').format(f"{share or 0:.2f}", text)


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"
