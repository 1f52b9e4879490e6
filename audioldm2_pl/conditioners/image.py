"""Pictures, videos and sound in one space: trained on the sound of a clip, asked with a picture (paper §III-C, Fig. 4).

The published encoder is PE-AV (Vyas et al. 2025, arXiv:2512.19687; Apache-2.0), transformers' `PeAudioVideoModel`; the
paper took ImageBind, whose weights are not for commercial use. `pretrained: null` builds a small pair of ResNets, which
the stage `image` trains.

Letters: B batch, F frames of a video, H × W pixels, S side of what the network sees, T samples, D embedding size.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from safetensors.torch import save_file
from timm.layers.norm import GroupNorm
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as pictures

from audioldm2_pl.audio import AudioConfig, Fbank, resample
from audioldm2_pl.conditioners.condition import Condition
from audioldm2_pl.conditioners.pretrained import config_of, load_pretrained
from audioldm2_pl.errors import UserError
from audioldm2_pl.fields import bounded, check_fields
from audioldm2_pl.media import to_array
from audioldm2_pl.weights import read_weights

PE_AV_WIDTH = 1024  # of the published checkpoints
NUM_GROUPS = 8  # of the group norms
SUBFOLDER = "image_encoder"
Picture = Any  # uint8 (H, W, 3), a tensor (3, H, W) of bytes or in [0, 1], or a Pillow image


@dataclass
class ImageConfig:
    """A published PE-AV, or with `pretrained: null` a small pair of ResNets of the sizes below."""

    pretrained: str | None = "facebook/pe-av-large"  # hub id or folder; null builds a small pair
    hears: Literal["waveform", "image"] = "waveform"  # what training encodes; generation encodes what the request gives
    empty_probability: float = bounded(0.0, ge=0, le=1)  # of nothing in a clip's place in training
    projection_dim: int = bounded(128, ge=1, le=65_536)  # size of the embedding that pictures and sound share
    image_size: int = bounded(64, ge=32, le=1_024)  # pixels a side: shorter side resized, centre cropped
    sample_rate: int = bounded(16_000, ge=8_000, le=48_000)  # Hz, of the sound that the network sees
    num_mel_bins: int = bounded(64, ge=32, le=4_096)  # of its filter bank
    channels: list[int] = bounded(lambda: [32, 64, 128, 256], ge=16, le=65_536, min_length=4)  # of both ResNets
    depths: list[int] = bounded(lambda: [1, 1, 1, 1], ge=1, le=1_000, min_length=4)  # blocks of each of the four stages

    @property
    def width(self) -> int:
        if self.pretrained is None:
            return self.projection_dim
        return config_of(self.pretrained).get("text_config", {}).get("hidden_size", PE_AV_WIDTH)

    @property
    def num_tokens(self) -> int:
        """Vectors of a condition."""
        return 1

    def build(self) -> "ImageEncoder":
        return ImageEncoder.build(self)

    def __post_init__(self) -> None:
        check_fields(self, "conditioners.image.")
        if len(self.channels) != 4 or len(self.depths) != 4:
            raise UserError("conditioners.image: channels and depths have four entries, one for each stage of a ResNet")
        if undivided := [channels for channels in self.channels if channels % NUM_GROUPS]:
            raise UserError(f"conditioners.image.channels: {undivided[0]} is not a multiple of {NUM_GROUPS}")


class SmallPair(nn.Module):
    """A ResNet for pictures and one for sound's filter bank, which ImageBind's sound branch reads too.

    Group norms, not batch norms: a clip's embedding does not depend on what else is in the batch, nor on the ranks.
    """

    def __init__(self, config: ImageConfig):
        super().__init__()
        self.config = config
        self.image_model, self.audio_model = (self.build_resnet(in_channels) for in_channels in (3, 1))
        rate, hop_length = config.sample_rate, config.sample_rate // 100
        self.fbank = Fbank(
            AudioConfig(
                rate, hop_length / rate, hop_length=hop_length, num_fbank_bins=config.num_mel_bins, mel_max_hz=rate / 2
            )
        )

    def build_resnet(self, in_channels: int) -> nn.Module:
        block: Any = BasicBlock  # timm's hint is of an instance
        return ResNet(
            block, tuple(self.config.depths), num_classes=self.config.projection_dim, in_chans=in_channels,
            channels=tuple(self.config.channels), norm_layer=partial(GroupNorm, num_groups=NUM_GROUPS),
        )  # fmt: skip

    @property
    def width(self) -> int:
        return self.config.projection_dim

    def pixels(self, frames: np.ndarray) -> Tensor:
        """uint8 (F, H, W, 3) => (F, 3, S, S) in [-1, 1]: shorter side resized, centre cropped."""
        side = self.config.image_size
        resized = pictures.resize(channels_first(frames), [side], InterpolationMode.BICUBIC, antialias=True)
        return pictures.center_crop(resized, [side, side]).float() / 127.5 - 1

    def embed_frames(self, videos: Sequence[np.ndarray]) -> Tensor:
        """Videos, uint8 (F, H, W, 3) each, all of as many frames => (B, D): the mean of the frames' unit vectors."""
        device = next(self.parameters()).device
        frames = torch.cat([self.pixels(video) for video in videos]).to(device)  # (B · F, 3, S, S)
        return F.normalize(self.image_model(frames), dim=1).unflatten(0, (len(videos), -1)).mean(1)

    def embed_sound(self, waveform: Tensor, sample_rate: int) -> Tensor:
        """Waveforms (B, T) => (B, D)."""
        return self.audio_model(self.fbank(resample(waveform, sample_rate, self.config.sample_rate)))

    def save_pretrained(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"model_type": "image_audio_pair", **dataclasses.asdict(self.config)}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "SmallPair":
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        pair = cls(ImageConfig(**{key: value for key, value in config.items() if key != "model_type"}))
        pair.load_state_dict(read_weights(Path(folder)))
        return pair


class PeAudioVideoModel(transformers.PeAudioVideoModel):
    """transformers' own, but for the buffers of timm's rotary embedding: 5.23 ties those of timm 1.0.31 as parameters,
    which stops it from loading."""

    _tied_weights_keys: ClassVar = {
        target.replace(r"\.rope\.pos_embed", r"\.rope\."): source.replace(r"\.rope\.pos_embed", r"\.rope\.")
        for target, source in transformers.PeAudioVideoModel._tied_weights_keys.items()
    }


class PEAV(nn.Module):
    """The halves of transformers' `PeAudioVideoModel` that embed a video alone and sound alone.

    A picture is a video of one frame. The model's own `get_video_embeds` calls a method that is not there
    (transformers 5.23).
    """

    def __init__(self, model: Any, feature_extractor: Any, video_processor: Any):
        super().__init__()
        self.model: transformers.PeAudioVideoModel = model
        self.feature_extractor = feature_extractor
        self.video_processor = video_processor

    @property
    def width(self) -> int:
        return self.model.config.projection_dim

    def embed_frames(self, videos: Sequence[np.ndarray]) -> Tensor:
        """Videos, uint8 (F, H, W, 3) each, all of as many frames => (B, D)."""
        frames = [channels_first(video) for video in videos]
        inputs = self.video_processor(videos=frames, do_sample_frames=False, return_tensors="pt")
        half: Any = self.model.video_model
        encoded = half.video_encoder(pixel_values_videos=inputs["pixel_values_videos"].to(self.model.device))
        return half.video_head(encoded.pooler_output)

    def embed_sound(self, waveform: Tensor, sample_rate: int) -> Tensor:
        """Waveforms (B, T) => (B, D); padded to whole hops by reflection, as by `PeAudioFeatureExtractor`."""
        waveform = resample(waveform, sample_rate, self.feature_extractor.sampling_rate)
        padded = F.pad(waveform[:, None], (0, -waveform.shape[1] % self.feature_extractor.hop_length), "reflect")
        return self.model.audio_model.get_audio_embeds(padded)

    def save_pretrained(self, folder: str | Path) -> None:
        for part in (self.model, self.feature_extractor, self.video_processor):
            part.save_pretrained(str(folder))

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "PEAV":
        """A hub id or a folder. Raises UserError where it holds no PE-AV."""
        with redirect_stdout(StringIO()):  # transformers 5.23 prints an error about a docstring of its own
            model = load_pretrained(PeAudioVideoModel, str(source), dtype=torch.float32)
        model.config.projection_dim = model.config.text_config.hidden_size  # `width_key`
        extractor = load_pretrained(transformers.PeAudioFeatureExtractor, str(source))
        return cls(model, extractor, load_pretrained(transformers.PeVideoVideoProcessor, str(source)))


class ImageEncoder(nn.Module):
    """Pictures, videos and sound => Condition (B, 1, D), one L2-normalised vector a clip."""

    name = "image"
    media = ("image", "video", "audio")
    hub_classes: ClassVar = {SUBFOLDER: ("transformers", "PeAudioVideoModel")}
    width_key = "projection_dim"  # of a small pair's config.json
    has_own_stage = True

    def __init__(self, model: SmallPair | PEAV):
        super().__init__()
        self.reads: Literal["image", "waveform"] = "image"  # in training; generation gives what it has
        self.empty_probability = 0.0  # of nothing in a clip's place in training
        self.model = model.eval()

    @classmethod
    def build(cls, config: ImageConfig) -> "ImageEncoder":
        """The published encoder that the config names, or a small pair with random weights."""
        return cls(SmallPair(config) if config.pretrained is None else PEAV.from_pretrained(config.pretrained))

    @classmethod
    def open(cls, load: Callable[[str], Any]) -> "ImageEncoder":
        """Out of a model folder; `load(sub-folder)` gives a part."""
        return cls(load(SUBFOLDER))

    @property
    def width(self) -> int:
        return self.model.width

    @property
    def text_model(self) -> nn.Module:
        """The half that embeds text: none."""
        return nn.ModuleList()

    @property
    def stored(self) -> tuple[str, ...]:
        return ("image",) if self.reads == "waveform" else ()

    def encode(self, inputs: Mapping[str, Any]) -> Condition:
        """One vector a clip, (B, 1, D): of its sound in training, of the picture, video or sound of a request.

        A clip without any has `empty`.
        """
        if "image" in inputs.get("features", {}):
            return Condition.of(inputs["features"]["image"])
        if "waveform" in inputs and (self.reads == "waveform" or "image" not in inputs):
            return self.encode_audio(inputs["waveform"], inputs["sample_rate"])
        num_clips = len(inputs["image"] if "image" in inputs else inputs["text"])
        condition = self.empty().expand(num_clips).replaced(inputs.get("image"), self.encode_images)
        condition = condition.replaced(inputs.get("video"), self.encode_videos)
        return condition.replaced(
            inputs.get("audio"), lambda sounds: self.encode_audio(torch.stack(sounds), inputs["sample_rate"])
        )

    def empty(self) -> Condition:
        """Of nothing, (1, 1, D): zeros, as image embeddings are dropped in unCLIP and IP-Adapter, and masked."""
        embedding = torch.zeros(1, 1, self.width, device=self.device)
        return Condition(embedding, torch.zeros(1, 1, dtype=torch.bool, device=self.device))

    def encode_images(self, images: Sequence[Picture]) -> Condition:
        """Pictures => (B, 1, D)."""
        return self.encode_videos([as_array(image)[None] for image in images])

    def encode_videos(self, videos: Sequence[np.ndarray]) -> Condition:
        """Videos, uint8 (F, H, W, 3) each, all of as many frames => (B, 1, D)."""
        return Condition.of(F.normalize(self.model.embed_frames(videos), dim=1))

    def encode_audio(self, waveform: Tensor, sample_rate: int) -> Condition:
        """Waveforms (B, T) at a rate in Hz => (B, 1, D)."""
        return Condition.of(F.normalize(self.model.embed_sound(waveform.to(self.device), sample_rate), dim=1))

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def unread(self, text: str) -> list[str]:
        return []

    def parts(self) -> dict[str, Any]:
        return {SUBFOLDER: self.model}


def load_image_encoder(folder: Path) -> SmallPair | PEAV:
    """What `ImageEncoder.parts` saved."""
    small = config_of(str(folder)).get("model_type") != "pe_audio_video"
    return SmallPair.from_pretrained(folder) if small else PEAV.from_pretrained(folder)


def channels_first(frames: np.ndarray) -> Tensor:
    """(F, H, W, 3) => (F, 3, H, W)."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


def as_array(image: Picture) -> np.ndarray:
    """uint8 (H, W, 3) of a picture."""
    if isinstance(image, Image.Image):
        return to_array(image)
    if isinstance(image, Tensor):
        levels = image if image.dtype == torch.uint8 else (image * 255).round().clamp(0, 255).to(torch.uint8)
        return levels.permute(1, 2, 0).cpu().numpy()
    return image
