from pathlib import Path

import diffusers
import numpy as np
import pytest
import soundfile
import torch
from parity import audioldm1_folder, audioldm1_gap

from audioldm2_pl.audio import LogMel, griffin_lim
from audioldm2_pl.cli import main
from audioldm2_pl.config import load_experiment
from audioldm2_pl.errors import UserError
from audioldm2_pl.models.diffusion import SAMPLERS
from audioldm2_pl.models.unet import TUNet
from audioldm2_pl.models.vae import build_vae
from audioldm2_pl.models.vocoder import build_vocoder, vocode
from audioldm2_pl.pipeline import AudioLDM2, audio_of
from audioldm2_pl.training.run import train

PROMPTS = [
    "a bell",
    "a low drum loop, then a loud rising chirp",
    "rain",
    "the sound of a fast ticking clock followed by a siren",
]


@pytest.fixture(scope="module")
def model(smoke_run) -> AudioLDM2:
    model = AudioLDM2.from_pretrained(smoke_run.model_folder)
    # what starts at zero in a T-UNet is still small after four batches; a random one tells its inputs apart
    torch.manual_seed(0)
    for parameter in model.unet.parameters():
        if parameter.abs().max() < 0.02:
            parameter.normal_(std=0.2)
    return model


@pytest.fixture
def latents(model, monkeypatch) -> AudioLDM2:
    """The model with its latents in sound's place: four batches of training leave the vocoder deaf to them."""
    monkeypatch.setattr(model, "decode_mel", lambda latent: latent)
    monkeypatch.setattr(model, "vocode", lambda latent: latent.transpose(1, 2).flatten(1).repeat_interleave(20, 1))
    return model


def test_four_prompts_equal_four_single_calls(latents):
    together = latents.generate(PROMPTS, steps=3, seed=7)
    alone = torch.cat([latents.generate(prompt, steps=3, seed=7 + i) for i, prompt in enumerate(PROMPTS)])
    assert together.shape == (4, 40_960)
    assert torch.allclose(together, alone, atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_same_seed_same_sound_other_seed_another(latents):
    first, again, other = (latents.generate(["a bell"], steps=2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)


@pytest.mark.parametrize("seconds", [0.5, 1.234, 4.0])
def test_length_is_exact(model, seconds):
    assert model.generate(["rain"], seconds=seconds, steps=1).shape == (1, round(seconds * 16_000))


def test_candidates_keep_the_one_nearest_to_the_prompt(model):
    best = model.generate(["a bell"], steps=1, seed=3, candidates=3)
    from audioldm2_pl.seeds import seed_of

    tries = model.generate(["a bell"] * 3, steps=1, seed=[3, seed_of(3, 1), seed_of(3, 2)])
    assert torch.allclose(best[0], tries[model.similarity(tries, "a bell").argmax()], atol=1e-5)


def test_griffin_lim_takes_the_vocoders_place(smoke_run, model):
    by_algorithm = AudioLDM2.from_pretrained(smoke_run.model_folder, vocoder="griffin-lim")
    log_mel = model.log_mel(torch.randn(1, 40_960) * 0.1)
    torch.testing.assert_close(by_algorithm.vocode(log_mel), griffin_lim(log_mel, model.audio))
    assert not torch.allclose(model.vocode(log_mel), by_algorithm.vocode(log_mel), atol=1e-3)
    assert by_algorithm.vocode(log_mel + 5.0).abs().max() == 1.0  # scaled, not clipped
    with pytest.raises(UserError, match="choose one of folder, griffin-lim"):
        AudioLDM2.from_pretrained(smoke_run.model_folder, vocoder="wavenet")


def test_a_vocoder_of_another_front_end_is_refused(smoke, smoke_run, tmp_path):
    experiment = smoke(f"from.vocoder={smoke_run.model_folder}", "audio.num_fft=512", runs=tmp_path)
    with pytest.raises(UserError, match=r"audio\.num_fft is 512, but the vocoder .* was trained with 1024"):
        train(experiment, "vae")


def test_given_loa_takes_gpt2s_place(latents):
    waveform = torch.randn(2, 40_960) * 0.1
    loa = latents.loa_of(waveform)
    assert loa.shape == (2, 8, 32)
    with_loa = latents.generate(["a", "b"], steps=2, loa=loa)
    assert not torch.allclose(with_loa, latents.generate(["a", "b"], steps=2), atol=1e-3)


def test_guidance_of_one_is_no_guidance(model):
    conditions = model.encode_text(["a bell"])
    loa = model.generate_loa(conditions)
    plain = model.sample_latent(loa, conditions[1], 32, [0], 2, guidance_scale=1.0)
    guided = model.sample_latent(loa, conditions[1], 32, [0], 2, guidance_scale=1.0 + 1e-6)
    assert torch.allclose(plain, guided, atol=1e-4)


def test_guidance_against_gpt2s_loa_for_no_text(latents):
    """A prompt as GPT-2 hears it without words is its own opposite: guidance then changes nothing."""
    conditions = latents.encode_text([""])
    loa = latents.generate_loa(conditions)
    guided = latents.sample_latent(loa, conditions[1], 32, [0], 2, guidance_scale=5.0, unconditional="gpt2")
    plain = latents.sample_latent(loa, conditions[1], 32, [0], 2, guidance_scale=1.0)
    zero = latents.sample_latent(loa, conditions[1], 32, [0], 2, guidance_scale=5.0)
    assert torch.allclose(guided, plain, atol=1e-4) and not torch.allclose(zero, plain, atol=1e-2)


def test_negative_prompt_moves_the_sound_away(latents):
    plain, negative = (latents.generate("a bell", steps=2, negative_prompt=text) for text in ("", "rain"))
    assert not torch.allclose(plain, negative, atol=1e-3)
    own, off = (latents.generate("a bell", steps=2, negative_prompt="a bell", unconditional="gpt2", guidance_scale=s)
                for s in (1.0, 6.0))  # fmt: skip
    torch.testing.assert_close(own, off, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_generates(smoke_run, name):
    model = AudioLDM2.from_pretrained(smoke_run.model_folder)
    model.set_sampler(name)
    assert torch.isfinite(model.generate(["rain"], steps=4)).all()


def test_reconstruction_keeps_the_length(model):
    waveform = torch.from_numpy(np.sin(np.arange(30_001) / 10)).float()[None]
    assert model.reconstruct(waveform).shape == (1, 30_001)


def test_front_end_is_that_of_training(model, smoke_run):
    waveform = torch.randn(1, 40_960)
    assert torch.allclose(model.log_mel(waveform), LogMel(smoke_run.audio)(waveform))
    assert model.audio.num_samples == smoke_run.audio.num_samples


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": ["a", "  "]}, "prompt 2 is empty"),
        ({"texts": []}, "no prompt"),
        ({"texts": "a", "seconds": -1}, "between 0 and 600"),
        ({"texts": "a", "steps": 0}, "steps 1 to 1000"),
        ({"texts": ["a", "b"], "seed": [1]}, "1 seeds for 2 prompts"),
        ({"texts": "a", "steps": 1, "unconditional": "none"}, "choose one of zero, gpt2"),
    ],
)
def test_bad_requests_are_plain_errors(model, arguments, message):
    with pytest.raises(UserError, match=message):
        model.generate(**arguments)


@pytest.fixture(scope="module")
def audioldm1(tmp_path_factory):
    return audioldm1_folder(tmp_path_factory.mktemp("audioldm1"))


@pytest.mark.parametrize("scale", [2.5, 1.0])
def test_audioldm1_equals_stock(audioldm1, scale):
    """From the prompt to the log-mel, beside diffusers' AudioLDMPipeline on the folder that was written here."""
    assert audioldm1_gap(audioldm1, scale) < 1e-3


def test_audioldm1_generates_from_the_command_line(audioldm1, tmp_path):
    options = ["--steps", "2", "--output", str(tmp_path), "--device", "cpu"]
    assert main(["generate", str(audioldm1), "a bell", *options]) == 0
    (path,) = tmp_path.glob("*.wav")
    assert soundfile.info(path).frames == 40_960
    model = AudioLDM2.from_pretrained(audioldm1)
    bell, rain = (model.encode_text([text])[0].embedding[:, 0] for text in ("a bell", "rain"))
    assert not torch.equal(*(model.sample_latent(None, None, 16, [0], 2, film=film) for film in (bell, rain)))
    for request, message in (({"candidates": 2}, "CLAP for text alone"), ({"loa": torch.zeros(1, 8, 32)}, "no LOA")):
        with pytest.raises(UserError, match=message):
            model.generate("a bell", steps=1, **request)


def test_audioldm1_trains_here_and_opens_in_diffusers(smoke, smoke_run, tmp_path):
    given = [f"from.{part}={smoke_run.model_folder}" for part in ("clap", "vae", "vocoder")]
    film = ("unet.film_dim=32", "unet.cross_attention_dim=[null]", "trainer.sample_every_batches=4")
    experiment = smoke(*film, *given, runs=tmp_path)
    train(experiment, "ldm")
    assert (experiment.run_folder / "samples" / "ldm" / "0_0000004.wav").is_file()
    model = AudioLDM2.from_pretrained(experiment.model_folder)
    assert model.generate("a bell", steps=2, candidates=2).shape == (1, 40_960)
    stock = diffusers.AudioLDMPipeline.from_pretrained(experiment.model_folder, low_cpu_mem_usage=False)
    tokens = stock.tokenizer("a bell", return_tensors="pt")
    embedding = torch.nn.functional.normalize(stock.text_encoder(**tokens).text_embeds, dim=-1)
    torch.testing.assert_close(embedding, model.clap.encode_text(["a bell"]).embedding[:, 0])
    audio = stock("a bell", 2.56, 2, generator=torch.Generator().manual_seed(0)).audios
    assert audio.shape == (1, 40_960) and np.isfinite(audio).all()


def test_lengths_at_48_khz():
    experiment = load_experiment(Path(__file__).parent.parent / "experiments" / "audioldm1_48k.yaml")
    with torch.device("meta"):
        vae, vocoder, unet = build_vae(experiment.vae), build_vocoder(experiment.vocoder), TUNet(experiment.unet)
    audio = audio_of(vae, vocoder, unet)
    assert audio.num_samples == 491_520 and audio.num_frames == 1024
    front_end = ("sample_rate", "num_fft", "window_length", "hop_length", "num_mel_bins", "mel_min_hz", "mel_max_hz")
    assert all(getattr(audio, name) == getattr(experiment.audio, name) for name in front_end)
    log_mel = LogMel(experiment.audio)(torch.randn(1, 48_000) * 0.1)
    assert log_mel.shape == (1, 1, 100, 256)
    log_mel = torch.empty(1, 1, 1024, 256, device="meta")
    latent = vae.encode(log_mel).latent_dist.parameters.chunk(2, 1)[0]
    assert latent.shape == (1, 16, 128, 32) == unet(latent, 0, film=torch.empty(1, 512, device="meta")).shape
    assert vae.decode(latent).sample.shape == log_mel.shape
    assert vocode(vocoder, log_mel).shape == (1, 491_520)
