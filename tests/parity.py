"""How far full-size networks here and the libraries' own are apart: `make parity` prints the table.

Both sides get the same random weights. Latents are short, for the networks do not know how long a clip is; single
prompts and equal lengths, for stock diffusers lets a prompt's neighbours move its LOA.
"""

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from torch import nn

from audioldm2_pl.audio import AudioConfig, Fbank, LogMel
from audioldm2_pl.conditioners.clap import CLAP, CLAPConfig
from audioldm2_pl.conditioners.condition import Condition
from audioldm2_pl.conditioners.phonemes import PhonemeConfig, PhonemeEncoder, prepare_espeak
from audioldm2_pl.conditioners.t5 import T5, T5EncoderConfig
from audioldm2_pl.conditioners.tokenizers import build_roberta_tokenizer
from audioldm2_pl.conditioning import guided_inputs
from audioldm2_pl.generation import Sampling
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.hub.original.clap import text_only
from audioldm2_pl.hub.parts import load_part
from audioldm2_pl.models import unet as presets
from audioldm2_pl.models.diffusion import DiffusionConfig, build_scheduler
from audioldm2_pl.models.gpt2 import LOAGPT2Config, build_gpt2
from audioldm2_pl.models.projection import ConditionProjection
from audioldm2_pl.models.unet import WIDTHS, TUNet, TUNetConfig
from audioldm2_pl.models.unet_hub import to_hub_config
from audioldm2_pl.models.vae import VAEConfig, build_vae
from audioldm2_pl.models.vocoder import VocoderConfig, build_vocoder
from audioldm2_pl.pipeline import AudioLDM2

SEED = 0
UNETS = {"base": presets.base, "large": presets.large, "speech": presets.speech, "AudioLDM 1": presets.audioldm1}
Row = tuple[str, float, float]  # what, max |Δ|, bound


def draw_weights(network: nn.Module) -> nn.Module:
    """Random weights at which no layer is silent: those that start at zero have something to do."""
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
            elif "norm" not in name:
                parameter.normal_(std=0.1, generator=generator)
    return network.eval()


@torch.no_grad()
def unet_rows() -> list[Row]:
    rows = []
    for name, preset in UNETS.items():
        config = preset()
        ours = draw_weights(TUNet(config))
        hub = to_hub_config(config, WIDTHS)
        with torch.device("meta"):
            theirs = getattr(diffusers, hub["_class_name"]).from_config(hub).eval()
        theirs.load_state_dict(ours.state_dict(), assign=True)
        for masked in (True, False):
            rows.append(
                (f"T-UNet {name}, {'with' if masked else 'without'} masks", unet_gap(ours, theirs, masked), 1e-4)
            )
    return rows


def unet_gap(ours: TUNet, theirs: Any, masked: bool) -> float:
    generator = torch.Generator().manual_seed(SEED)
    config = ours.config
    widths = [WIDTHS[name] for name in config.conditions]
    latent = torch.randn(2, config.in_channels, 32, 16, generator=generator)
    film = torch.randn(2, WIDTHS[config.film], generator=generator) if config.film else None
    masks = [torch.ones(2, 8), torch.tensor([[1.0] * 6, [1.0] * 4 + [0.0] * 2])]
    embeddings = [torch.randn(*mask.shape, width, generator=generator) for mask, width in zip(masks, widths)]
    timestep = torch.tensor([3, 981])
    given: dict[str, Any] = {"encoder_hidden_states": None, "class_labels": film}
    for embedding, mask, suffix in zip(embeddings, masks, ("", "_1")):
        given["encoder_hidden_states" + suffix] = embedding
        if masked:
            given["encoder_attention_mask" + suffix] = mask
    conditions = [Condition(e, m if masked else None) for e, m in zip(embeddings, masks)]  # type: ignore[arg-type]
    expected = theirs(latent, timestep, **given).sample
    return float((ours(latent, timestep, conditions, film) - expected).abs().max())


def weights_gap(a: nn.Module, b: nn.Module) -> float:
    """Largest difference of two networks' weights; infinite where one has names that the other has not."""
    first, second = a.state_dict(), b.state_dict()
    if set(first) != set(second):
        return float("inf")
    return max(float((first[name].float() - second[name].float()).abs().max()) for name in first if first[name].numel())


def folder_rows() -> list[Row]:
    """Every part at its published size, out of the library, into a folder, back, and opened by its library's class."""
    torch.manual_seed(SEED)
    clap = transformers.ClapModel(transformers.ClapConfig())
    t5 = transformers.T5EncoderModel(
        transformers.T5Config(d_model=1024, d_ff=2816, num_layers=24, num_heads=16, feed_forward_proj="gated-gelu")
    )
    builders: dict[str, Callable[[], nn.Module]] = {
        "vae": lambda: build_vae(VAEConfig()),
        "vocoder": lambda: build_vocoder(VocoderConfig()),
        "language_model": lambda: build_gpt2(LOAGPT2Config(), 8),
        "projection_model": lambda: ConditionProjection({"clap": 512, "t5": 1024}, 768),
        "text_encoder": lambda: clap,
        "text_encoder_2": lambda: t5,
        "unet": lambda: draw_weights(TUNet(TUNetConfig())),
    }
    rows = []
    for part, build in builders.items():
        network = build()
        with TemporaryDirectory() as folder:
            ModelFolder(folder).save(part, network)
            rows.append((f"{part}: saved and opened", weights_gap(network, load_part(Path(folder), part)), 0.0))
            if part == "unet":
                stock = diffusers.AudioLDM2UNet2DConditionModel.from_pretrained(Path(folder) / part)
                rows.append(("unet: opened by diffusers", weights_gap(network, stock), 0.0))
                stock.save_pretrained(Path(folder) / part)
                again = load_part(Path(folder), part)
                rows.append(("unet: saved by diffusers, opened here", weights_gap(network, again), 0.0))
    return rows


def small_folder(folder: Path, speech: bool) -> Path:
    """A small random model with all that generation needs."""
    torch.manual_seed(SEED)
    model = ModelFolder(folder)
    gpt2 = LOAGPT2Config(hidden_size=32, num_layers=2, num_heads=2, num_positions=256, dropout=0.0)
    clap = CLAP.build(CLAPConfig(pretrained=None, projection_dim=32, text_width=32, text_layers=1, text_heads=2))
    tokenizer = build_roberta_tokenizer(clap.max_text_tokens)
    if speech:
        prepare_espeak()  # for stock diffusers, which phonemizes too
        words: Any = PhonemeEncoder.build(PhonemeConfig(hidden_size=16, num_layers=2, ffn_dim=32, max_length=40))
    else:
        words = T5.build(T5EncoderConfig(pretrained=None, words=["bell"], d_model=48, num_heads=2))
    unet = TUNetConfig(
        sample_size=64, block_out_channels=[16, 32], attention_levels=[0, 1], num_heads=[2, 4], norm_num_groups=8,
        conditions=["loa"] if speech else ["loa", "t5"],
    )  # fmt: skip
    parts: dict[str, Any] = {
        "text_encoder": clap.model, "tokenizer": tokenizer, "feature_extractor": clap.feature_extractor,
        "text_encoder_2": words.model, "tokenizer_2": words.tokenizer,
        "language_model": draw_weights(build_gpt2(gpt2, 8)),
        "projection_model": ConditionProjection({"clap": 32, words.name: words.width}, 32, 40),
        "unet": draw_weights(TUNet(unet, {"loa": 32, "t5": 48})), "scheduler": build_scheduler(DiffusionConfig()),
        "vae": build_vae(VAEConfig(block_out_channels=[8, 16, 16], norm_num_groups=4, sample_size=256)),
        "vocoder": build_vocoder(VocoderConfig(upsample_initial_channel=32)),
    }  # fmt: skip
    for part, content in parts.items():
        model.save(part, content)
    return folder


def audioldm1_folder(folder: Path) -> Path:
    """A small random AudioLDM 1, with CLAP for text alone as the published folders have it."""
    torch.manual_seed(SEED)
    model = ModelFolder(folder)
    clap = CLAP.build(CLAPConfig(pretrained=None, projection_dim=32, text_width=32, text_layers=1, text_heads=2))
    unet = TUNetConfig(
        sample_size=64, block_out_channels=[16, 32], attention_levels=[0, 1], num_heads=[2, 4], norm_num_groups=8,
        conditions=[], film="clap",
    )  # fmt: skip
    parts: dict[str, Any] = {
        "text_encoder": text_only(clap.model), "tokenizer": build_roberta_tokenizer(clap.max_text_tokens),
        "unet": draw_weights(TUNet(unet, {"clap": 32})), "scheduler": build_scheduler(DiffusionConfig()),
        "vae": build_vae(VAEConfig(block_out_channels=[8, 16, 16], norm_num_groups=4, sample_size=256)),
        "vocoder": build_vocoder(VocoderConfig(upsample_initial_channel=32)),
    }  # fmt: skip
    for part, content in parts.items():
        model.save(part, content)
    return folder


@torch.no_grad()
def audioldm1_gap(folder: Path, scale: float) -> float:
    """Log-mel from the prompt, beside stock AudioLDMPipeline: same noise, DDIM η 0, 10 steps."""
    ours = AudioLDM2.from_pretrained(folder)
    stock: Any = diffusers.AudioLDMPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    stock.set_progress_bar_config(disable=True)
    expected: list[torch.Tensor] = []
    stock.mel_spectrogram_to_waveform = lambda mel: expected.append(mel) or torch.zeros(1, 40_960)
    noise = torch.randn(8, 64, 16, generator=torch.Generator().manual_seed(SEED))
    stock("a bell", 2.56, 10, scale, eta=0.0, latents=noise[None].clone())
    sampling = Sampling(None, 10, scale, eta=0.0)
    inputs = guided_inputs(ours, ours.encode_conditions(["a bell"]), [""], sampling)
    latent = ours.sample_latent(inputs, 64, [SEED], sampling)
    return float((ours.decode_mel(latent) - expected[0]).abs().max())


def audioldm1_rows() -> list[Row]:
    with TemporaryDirectory() as folder:
        path = audioldm1_folder(Path(folder))
        return [(f"log-mel of AudioLDM 1, guidance {s}", audioldm1_gap(path, s), 1e-3) for s in (2.5, 1.0)]


@torch.no_grad()
def generation_rows() -> list[Row]:
    """From the prompt to the log-mel, beside stock AudioLDM2Pipeline: same noise, DDIM η 0, 10 steps."""
    # of equal length, for stock pads the shorter one and counts the padding in GPT-2's positions
    prompt, negative_prompt = "a bell", "bell a"
    rows = []
    for speech, scale in ((False, 3.5), (False, 1.0), (True, 1.0)):
        with TemporaryDirectory() as folder:
            path = small_folder(Path(folder), speech)
            ours = AudioLDM2.from_pretrained(path)
            stock: Any = diffusers.AudioLDM2Pipeline.from_pretrained(path, low_cpu_mem_usage=False)
            stock.set_progress_bar_config(disable=True)
            noise = torch.randn(8, 64, 16, generator=torch.Generator().manual_seed(SEED))
            said = "hello there." if speech else None
            theirs = stock(
                prompt, transcription=said, negative_prompt=negative_prompt, num_inference_steps=10,
                guidance_scale=scale, eta=0.0,
                audio_length_in_s=2.56, latents=noise[None].clone(), max_new_tokens=8, output_type="latent",
            ).audios  # fmt: skip
            conditions = ours.encode_conditions([prompt], None if said is None else [said])
            conditions["loa"] = Condition.of(ours.generate_loa(conditions))
            sampling = Sampling(None, 10, scale, eta=0.0, unconditional="gpt2")
            inputs = guided_inputs(ours, conditions, [negative_prompt], sampling)
            latent = ours.sample_latent(inputs, 64, [SEED], sampling)
            expected = stock.vae.decode(theirs / stock.vae.config.scaling_factor).sample
            gap = float((ours.decode_mel(latent) - expected).abs().max())
            rows.append((f"log-mel of {'speech' if speech else 'text'}, guidance {scale}", gap, 1e-3))
    return rows


def front_end_rows() -> list[Row]:
    import librosa
    import torchaudio

    waveform = 0.1 * np.random.default_rng(SEED).standard_normal(163_840).astype(np.float32)
    audio = AudioConfig()
    ours = LogMel(audio)(torch.from_numpy(waveform)[None])[0, 0].numpy()
    padded = np.pad(waveform, 432, mode="reflect")
    magnitude = np.abs(librosa.stft(padded, n_fft=1024, hop_length=160, center=False))
    mel = librosa.filters.mel(sr=16_000, n_fft=1024, n_mels=64, fmin=0, fmax=8000) @ magnitude
    mel_gap = float(np.abs(ours - np.log(np.maximum(mel, 1e-5)).T[: len(ours)]).max())
    fbank = Fbank(audio)(torch.from_numpy(waveform)[None])[0, 0]
    kaldi = torchaudio.compliance.kaldi.fbank(
        torch.from_numpy(waveform - waveform.mean())[None], htk_compat=True, sample_frequency=16_000,
        use_energy=False, window_type="hanning", num_mel_bins=128, dither=0.0, frame_shift=10,
    )  # fmt: skip
    kaldi = nn.functional.pad(kaldi, (0, 0, 0, 1024 - len(kaldi)))
    fbank_gap = float((fbank - (kaldi + 4.2677393) / (2 * 4.5689974)).abs().max())
    return [("LogMel beside librosa", mel_gap, 1e-3), ("Fbank beside torchaudio", fbank_gap, 1e-3)]


def main() -> int:
    rows: list[Row] = []
    for measure in (front_end_rows, generation_rows, audioldm1_rows, folder_rows, unet_rows):
        begin = time.perf_counter()
        for what, gap, bound in measure():
            rows.append((what, gap, bound))
            print(f"{what:<44} {gap:9.1e}   {'≤' if gap <= bound else '> '} {bound:g}", flush=True)
        print(f"  ({time.perf_counter() - begin:.0f} s)", flush=True)
    versions = {
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }
    result = {
        "command": "make parity", "seed": SEED, "machine": f"{platform.machine()}, CPU, fp32", **versions,
        "rows": [{"what": what, "max_difference": gap, "bound": bound} for what, gap, bound in rows],
    }  # fmt: skip
    Path("docs/results/parity.json").write_text(json.dumps(result, indent=1) + "\n")
    return int(any(gap > bound for _, gap, bound in rows))


if __name__ == "__main__":
    raise SystemExit(main())
