"""A small classifier of sound events, trained on clips that no generator ever saw.

It reads log-mels relative to their loudest bin, so a system's level plays no part, and it is trained
under the distortions that VAEs and vocoders bring (noise, colouring, blur, low resolution): it is to
tell which event a clip holds, not how clean the clip is.

Shapes: B clips, T samples, F frames, M mel bins, K classes, D embedding size.
"""

import json
import math
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from audioldm2_pl.audio import AudioConfig, LogMel
from audioldm2_pl.errors import UserError

from .clips import Event, digest_of_index, read_clips

FILES = ("classifier.json", "classifier.safetensors")
LOG_FLOOR = math.log(1e-5)  # of LogMel


@dataclass
class SoundClassifierConfig:
    audio: AudioConfig
    classes: list[str] = field(default_factory=list)  # in the order of the logits; training fills them in
    channels: list[int] = field(default_factory=lambda: [16, 32, 64, 96])  # of the convolutions
    embedding_size: int = 128  # D
    dynamic_range: float = 8.0  # nepers below the loudest bin that are read (8 = 69 dB)
    batches: int = 250
    batch_size: int = 64
    learning_rate: float = 3e-3
    label_smoothing: float = 0.05
    seed: int = 0


class SoundClassifier(nn.Module):
    """waveform (B, T) of any length from half a second => class logits (B, K), embedding (B, D)."""

    def __init__(self, config: SoundClassifierConfig):
        super().__init__()
        self.config = config
        self.log_mel = LogMel(config.audio)
        layers: list[nn.Module] = []
        num_channels = 1
        for num_out in config.channels:
            layers += [
                nn.Conv2d(num_channels, num_out, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(num_out),
                nn.ReLU(),
            ]
            num_channels = num_out
        self.features = nn.Sequential(*layers)
        num_rows = math.ceil(config.audio.num_mel_bins / 2 ** len(config.channels))
        self.embed = nn.Conv1d(num_channels * num_rows, config.embedding_size, 3, padding=1)
        self.classify = nn.Sequential(nn.Dropout(0.2), nn.Linear(2 * config.embedding_size, len(config.classes)))

    def pooled(self, log_mel: Tensor) -> Tensor:
        """log_mel (B, 1, F, M) => mean and maximum over time (B, 2 D)"""
        loudest = log_mel.amax(dim=(2, 3), keepdim=True)
        relative = (log_mel - loudest).clamp(min=-self.config.dynamic_range)
        x = self.features(1 + relative * (2 / self.config.dynamic_range))  # (B, C, F/16, M/16)
        x = F.relu(self.embed(x.transpose(2, 3).flatten(1, 2)))  # (B, D, F/16)
        return torch.cat([x.mean(dim=2), x.amax(dim=2)], dim=1)

    def forward(self, log_mel: Tensor) -> Tensor:
        return self.classify(self.pooled(log_mel))  # (B, K)

    def logits(self, waveform: Tensor) -> Tensor:
        """Waveform (B, T) => (B, K)"""
        return self(self.log_mel(waveform))

    def embedding(self, waveform: Tensor) -> Tensor:
        return self.pooled(self.log_mel(waveform))[:, : self.config.embedding_size]  # (B, D)

    def save(self, folder: Path, **facts: Any) -> None:
        """Writes classifier.safetensors and classifier.json (the config and `facts`) into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / "classifier.safetensors")
        description = {"config": asdict(self.config), **facts}
        (folder / "classifier.json").write_text(json.dumps(description, indent=2) + "\n")

    @classmethod
    def from_folder(cls, folder: Path) -> "SoundClassifier":
        config = json.loads((folder / "classifier.json").read_text())["config"]
        classifier = cls(SoundClassifierConfig(**{**config, "audio": AudioConfig(**config["audio"])}))
        classifier.load_state_dict(load_file(folder / "classifier.safetensors"))
        return classifier.eval()


@dataclass
class EventSegment:
    """A stretch of one clip in which one event sounds: what a training window is cut from."""

    clip: int  # row of the log-mels
    begin: int  # first frame of the stretch
    end: int  # first frame behind it
    event_begin: int  # frames from `begin` to the event
    event_end: int  # frames from `begin` to the event's end
    name: str  # the event's class


@dataclass
class ClassifierData:
    log_mel: Tensor  # (N, F, M)
    segments: list[EventSegment]
    classes: list[str]


def load_classifier_data(split: Path, audio: AudioConfig) -> ClassifierData:
    log_mel, rows, segments = LogMel(audio), [], []
    names: set[str] = set()
    for number, clip in enumerate(read_clips(split, audio)):
        if not clip.events:
            raise UserError(f"{split}: clip {clip.key} names no events; the classifier is trained on them")
        rows.append(log_mel(torch.from_numpy(clip.waveform)[None])[0, 0])  # (F, M)
        segments += segments_of(number, clip.events, audio)
        names.update(clip.names)
    return ClassifierData(torch.stack(rows), segments, sorted(names))


def segments_of(number: int, events: list[Event], audio: AudioConfig) -> list[EventSegment]:
    """Cuts clip `number` in the middle between one event's end and the next one's start."""

    def frame(seconds: float) -> int:
        return min(max(round(seconds * audio.frames_per_second), 0), audio.num_frames)

    ends = [event.start + event.duration for event in events]
    cuts = [(end + later.start) / 2 for end, later in zip(ends, events[1:])]
    borders = [0, *map(frame, cuts), audio.num_frames]
    return [
        EventSegment(number, begin, end, frame(event.start) - begin, frame(stop) - begin, event.name)
        for event, stop, begin, end in zip(events, ends, borders, borders[1:])
        if end > begin
    ]


def cut_window(data: ClassifierData, segment: EventSegment, num_frames: int, draw: torch.Generator) -> Tensor:
    """=> (num_frames, M): the segment, silence around it where it is shorter; where it is longer, a
    part of it that holds the event or, of a longer event, some stretch of it."""
    frames = data.log_mel[segment.clip, segment.begin : segment.end]
    spare = num_frames - len(frames)
    if spare >= 0:
        before = int(torch.randint(spare + 1, (), generator=draw))
        return F.pad(frames, (0, 0, before, spare - before), value=LOG_FLOOR)
    low, high = sorted((segment.event_begin, segment.event_end - num_frames))
    low, high = min(max(low, 0), -spare), min(max(high, 0), -spare)
    start = int(torch.randint(low, high + 1, (), generator=draw))
    return frames[start : start + num_frames]


def distort(log_mel: Tensor, draw: torch.Generator) -> Tensor:
    """log_mel (B, 1, F, M) => the same under random level, colour, noise, blur, low resolution,
    jitter, coarse steps and masks: what separates a codec's or generator's clip from a recording."""
    num_clips, _, num_frames, num_bins = log_mel.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(num_clips, *shape, generator=draw)

    def apply_to(share: float, changed: Tensor, same: Tensor) -> Tensor:
        return torch.where(uniform(0, 1, 1, 1, 1) < share, changed, same)

    def normal() -> Tensor:
        return torch.randn(log_mel.shape, generator=draw)

    slope = torch.linspace(-1, 1, num_bins)
    bumps = F.interpolate(uniform(-0.7, 0.7, 1, 8), num_bins, mode="linear")[:, :, None]
    x = log_mel + uniform(-2, 1, 1, 1, 1) + apply_to(0.6, uniform(-1, 1, 1, 1, 1) * slope + bumps, 0 * bumps)
    loudest = x.amax(dim=(2, 3), keepdim=True)
    noise = loudest - uniform(1.5, 9, 1, 1, 1) + uniform(-1, 1, 1, 1, 1) * slope + 0.5 * normal()
    x = apply_to(0.7, torch.logaddexp(2 * x, 2 * noise) / 2, x)  # powers add
    x = apply_to(0.4, F.avg_pool2d(x, (5, 3), 1, (2, 1), count_include_pad=False), x)
    coarse = F.interpolate(F.avg_pool2d(x, 2, ceil_mode=True), (num_frames, num_bins), mode="bilinear")
    x = apply_to(0.3, coarse, x)
    x = apply_to(0.4, x + uniform(0.1, 0.6, 1, 1, 1) * normal(), x)
    x = apply_to(0.2, (2 * x).round() / 2, x)
    bins, frames = torch.arange(num_bins), torch.arange(num_frames)[:, None]
    for position, length, longest in ((bins, num_bins, 8), (frames, num_frames, num_frames // 10)):
        first = uniform(0, length, 1, 1, 1)
        masked = (position >= first) & (position < first + uniform(0, longest, 1, 1, 1))
        x = apply_to(0.5, x.masked_fill(masked, LOG_FLOOR), x)
    return x.clamp(min=LOG_FLOOR)


def train_classifier(data: ClassifierData, config: SoundClassifierConfig) -> SoundClassifier:
    """A classifier of `data`: windows of half the clip's length and of the whole in turn, since two-event
    clips are classified half by half. The same seed gives the same classifier; on the CPU, whatever the device
    of the system under test."""
    draw = torch.Generator().manual_seed(config.seed)
    num_frames = data.log_mel.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        classifier = SoundClassifier(replace(config, classes=data.classes)).train()
        optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=config.batches)
        for batch in range(config.batches):
            width = num_frames if batch % 3 == 0 else num_frames // 2
            chosen = torch.randint(len(data.segments), (config.batch_size,), generator=draw)
            segments = [data.segments[i] for i in chosen.tolist()]
            windows = torch.stack([cut_window(data, s, width, draw) for s in segments])[:, None]
            logits = classifier(distort(windows, draw))  # (B, K)
            labels = torch.tensor([data.classes.index(s.name) for s in segments])
            loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return classifier.eval()


def load_or_train_classifier(split: Path, folder: Path, config: SoundClassifierConfig) -> tuple[SoundClassifier, float]:
    """The classifier of `folder` where it was trained with this config on this split, else a new one, which
    is written there. => classifier, seconds that an earlier report spent on it"""
    settings = asdict(config)
    settings.pop("classes")
    made_from = json.loads(json.dumps({**settings, "split": digest_of_index(split)}))
    description = folder / "classifier.json"
    if description.is_file() and (folder / "classifier.safetensors").is_file():
        facts = json.loads(description.read_text())
        if facts["made_from"] == made_from:
            return SoundClassifier.from_folder(folder), facts["seconds"]
    begin = time.perf_counter()
    classifier = train_classifier(load_classifier_data(split, config.audio), config)
    seconds = time.perf_counter() - begin
    classifier.save(folder, made_from=made_from, seconds=seconds)
    return classifier, 0.0
