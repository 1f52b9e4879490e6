import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
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
from audioldm2_pl.editing import Edit
from audioldm2_pl.errors import UserError
from audioldm2_pl.generation import Generation, Sampling
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.models.diffusion import SAMPLERS
from audioldm2_pl.models.unet import TUNet
from audioldm2_pl.models.vae import build_vae
from audioldm2_pl.models.vocoder import audio_of, build_vocoder, vocode
from audioldm2_pl.pipeline import AudioLDM2
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
    together = latents.generate(PROMPTS, num_steps=3, seed=7)
    alone = torch.cat([latents.generate(prompt, num_steps=3, seed=7 + i) for i, prompt in enumerate(PROMPTS)])
    assert together.shape == (4, 40_960)
    assert torch.allclose(together, alone, atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_same_seed_same_sound_other_seed_another(latents):
    first, again, other = (latents.generate(["a bell"], num_steps=2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)


@pytest.mark.parametrize("seconds", [0.5, 1.234, 4.0])
def test_length_is_exact(model, seconds):
    assert model.generate(["rain"], seconds=seconds, num_steps=1).shape == (1, round(seconds * 16_000))


def test_candidates_keep_the_one_nearest_to_the_prompt(model):
    best = model.generate(["a bell"], num_steps=1, seed=3, candidates=3)
    from audioldm2_pl.seeds import seed_of

    tries = model.generate(["a bell"] * 3, num_steps=1, seed=[3, seed_of(3, 1), seed_of(3, 2)])
    assert torch.allclose(best[0], tries[model.similarity(tries, "a bell").argmax()], atol=1e-5)


def test_candidates_of_many_prompts_run_together(model, monkeypatch):
    """GPT-2 reads each prompt once, and the T-UNet up to 16 samples at a time, whatever the prompts."""
    prompts, batches = PROMPTS + ["a gong"] * 2, []
    seen = count_calls(monkeypatch, model.loa_generator, "generate", lambda conditions, *_, **__: len(conditions[0]))
    count_calls(monkeypatch, model.unet, "forward", lambda latent, *_: len(latent), batches)
    best = model.generate(prompts, num_steps=1, seed=3, candidates=3, guidance_scale=1.0)
    assert best.shape == (6, 40_960) and (sum(seen), batches) == (6, [15, 3])
    alone = [model.generate(prompt, num_steps=1, seed=3 + i, candidates=3) for i, prompt in enumerate(prompts[:2])]
    assert torch.allclose(model.generate(prompts[:2], num_steps=1, seed=3, candidates=3), torch.cat(alone), atol=1e-4)
    batches.clear()
    model.generate("a bell", num_steps=1, candidates=20, guidance_scale=1.0)
    assert batches == [16, 4]


def count_calls(monkeypatch, owner, name, what, calls=None) -> list:
    """Notes `what` of a method's arguments at each call, and calls it."""
    calls, method = [] if calls is None else calls, getattr(owner, name)

    def counted(*arguments, **named):
        calls.append(what(*arguments, **named))
        return method(*arguments, **named)

    monkeypatch.setattr(owner, name, counted)
    return calls


def test_progress_counts_the_steps_of_all_batches(model):
    steps = []
    model.generate(["a bell"] * 20, num_steps=2, progress=lambda *step: steps.append(step))
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    steps.clear()
    model.generate("a bell", num_steps=1, candidates=20, progress=lambda *step: steps.append(step))
    assert steps == [(1, 2), (2, 2)]


def test_requests_of_their_own(latents):
    requests = [Generation("a bell", negative_prompt="rain", seed=5), Generation("rain", seed=2)]
    together = latents.generate(requests, num_steps=2)
    alone = [latents.generate(r.prompt, negative_prompt=r.negative_prompt, seed=r.seed, num_steps=2) for r in requests]
    assert torch.allclose(together, torch.cat(alone), atol=1e-4)
    assert torch.equal(latents.generate(requests, num_steps=2, seed=[5, 2]), together)
    assert torch.equal(latents.generate(requests, steps=2), together)  # an alias


def test_bfloat16_is_close(smoke_run):
    whole, half = (AudioLDM2.from_pretrained(smoke_run.model_folder, dtype=d) for d in (torch.float32, torch.bfloat16))
    networks = (half.unet, half.vae, half.vocoder, half.conditioners["t5"], half.loa_generator)
    assert {p.dtype for network in networks for p in network.parameters()} == {torch.bfloat16}
    expected, found = (m.generate(PROMPTS[:2], num_steps=3, seed=1) for m in (whole, half))
    assert found.dtype == torch.float32 and (found - expected).abs().mean() < 0.1 * expected.abs().mean()
    latents = [m.generate_latent([Generation("a bell")], Sampling(num_steps=3, eta=0.0)) for m in (whole, half)]
    assert latents[1].dtype == torch.float32
    assert (latents[0] - latents[1]).std() < 0.05 * latents[0].std()
    assert half.generate("a bell", num_steps=1, candidates=2, unconditional="gpt2").isfinite().all()
    waveform = torch.randn(1, 40_960) * 0.1
    assert half.reconstruct(waveform).shape == (1, 40_960)
    assert half.generate("a", num_steps=1, loa=half.loa_of(waveform)).isfinite().all()


def test_griffin_lim_takes_the_vocoders_place(smoke_run, model):
    by_algorithm = AudioLDM2.from_pretrained(smoke_run.model_folder, vocoder="griffin-lim")
    log_mel = model.log_mel(torch.randn(1, 40_960) * 0.1)
    torch.testing.assert_close(by_algorithm.vocode(log_mel), griffin_lim(log_mel, model.audio))
    assert not torch.allclose(model.vocode(log_mel), by_algorithm.vocode(log_mel), atol=1e-3)
    assert by_algorithm.vocode(log_mel + 5.0).abs().max() > 1.0
    assert by_algorithm.reconstruct(torch.randn(1, 40_960) * 5).abs().max() <= 1.0
    with pytest.raises(UserError, match="choose one of folder, griffin-lim"):
        AudioLDM2.from_pretrained(smoke_run.model_folder, vocoder="wavenet")


def test_a_vocoder_of_another_front_end_is_refused(smoke, smoke_run, tmp_path):
    front_end = ("audio.num_fft=512", "audio.window_length=512")
    experiment = smoke(f"from.vocoder={smoke_run.model_folder}", *front_end, runs=tmp_path)
    with pytest.raises(UserError, match=r"audio\.num_fft is 512, but the vocoder .* was trained with 1024"):
        train(experiment, "vae")


def test_given_loa_takes_gpt2s_place(latents):
    waveform = torch.randn(2, 40_960) * 0.1
    loa = latents.loa_of(waveform)
    assert loa.shape == (2, 8, 32)
    with_loa = latents.generate(["a", "b"], num_steps=2, loa=loa)
    assert not torch.allclose(with_loa, latents.generate(["a", "b"], num_steps=2), atol=1e-3)


def guided(model: AudioLDM2, prompt: str, guidance_scale: float, unconditional: str = "zero") -> torch.Tensor:
    sampling = Sampling("ddim", 2, guidance_scale, unconditional=unconditional)
    return model.generate_latent([Generation(prompt)], sampling)


def test_guidance_of_one_is_no_guidance(model):
    assert torch.allclose(guided(model, "a bell", 1.0), guided(model, "a bell", 1.0 + 1e-6), atol=1e-4)


def test_guidance_against_gpt2s_loa_for_no_text(model):
    """An empty prompt is its own opposite: guidance then changes nothing."""
    against_gpt2, plain, against_zero = guided(model, "", 5.0, "gpt2"), guided(model, "", 1.0), guided(model, "", 5.0)
    assert torch.allclose(against_gpt2, plain, atol=1e-4) and not torch.allclose(against_zero, plain, atol=1e-2)


@pytest.mark.parametrize("unconditional", ["zero", "gpt2"])
def test_a_negative_prompt_of_its_own_for_each_prompt(latents, unconditional):
    settings = {"num_steps": 2, "unconditional": unconditional, "guidance_scale": 6.0}
    texts, negatives = ["a bell", "rain"], ["a drum loop", "a siren that wails"]
    together = latents.generate(texts, negative_prompt=negatives, seed=3, **settings)
    alone = [latents.generate(texts[i], negative_prompt=negatives[i], seed=3 + i, **settings) for i in (0, 1)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-4)
    swapped = latents.generate(texts, negative_prompt=negatives[::-1], seed=3, **settings)
    assert not torch.allclose(together, swapped, atol=1e-3)
    best = latents.generate(texts, negative_prompt=negatives, seed=3, candidates=2, **settings)
    assert best.shape == together.shape


def test_two_threads_make_what_one_makes(latents):
    requests = [("a bell", "ddim"), ("rain", "heun"), ("a low drum loop", "dpm-solver++"), ("a siren", "euler")] * 2

    def generate(number: int) -> torch.Tensor:
        text, sampler = requests[number]
        return latents.generate(text, sampler=sampler, num_steps=4 + number, eta=1.0, seed=number)

    alone = [generate(number) for number in range(len(requests))]
    with ThreadPoolExecutor(4) as pool:
        assert all(map(torch.equal, pool.map(generate, range(len(requests))), alone))


def test_a_model_is_sampled_as_it_was_measured(smoke_run, latents, tmp_path):
    assert latents.sampling == smoke_run.sampling == Sampling("ddim", 3, 3.0, eta=0.0)
    measured = latents.generate("a bell", sampling=Sampling(num_steps=3, guidance_scale=3.0, eta=0.0))
    assert torch.equal(latents.generate("a bell"), measured)
    assert not torch.allclose(latents.generate("a bell", guidance_scale=1.0), measured, atol=1e-3)
    other = shutil.copytree(smoke_run.model_folder, tmp_path / "other")
    ModelFolder(other).note_sampling(Sampling("euler", num_steps=2))
    assert AudioLDM2.from_pretrained(other).sampling == Sampling("euler", 2)
    (other / "generation_config.json").write_text('{"sampler": "heun", "steps": 7}')  # as earlier versions wrote it
    assert AudioLDM2.from_pretrained(other).sampling == Sampling("heun", 7)
    (other / "generation_config.json").unlink()
    assert AudioLDM2.from_pretrained(other).sampling == Sampling(None)


@pytest.mark.parametrize("content", ["", "[1]", '{"steps": "many"}', '{"eta": 5.0}', '{"step": 3}', "[" * 9999])
def test_a_sampling_that_is_none_is_told(smoke_run, tmp_path, content):
    folder = ModelFolder(shutil.copytree(smoke_run.model_folder, tmp_path / "copy"))
    (folder.path / "generation_config.json").write_text(content)
    with pytest.raises(UserError, match=r"generation_config\.json: is no sampling") as error:
        folder.sampling()
    assert "\n" not in str(error.value)


def test_a_sound_that_is_not_finite_is_refused(model):
    with pytest.raises(UserError, match=r"latent is not finite: guidance_scale=1e\+300, num_steps=2"):
        model.generate_latent([Generation("a bell")], Sampling(num_steps=2, guidance_scale=1e300))


def test_what_no_encoder_reads_is_told(model):
    with pytest.warns(UserWarning) as told:
        model.generate(["a bell " * 40, "ein Glöckchen"], num_steps=1)
    lines = [str(warning.message) for warning in told]
    assert any("CLAP reads 128 of 282 tokens" in line for line in lines)
    assert any("'ein Glöckchen': T5 does not know 'ö'" in line for line in lines)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate("a bell rings", num_steps=1)


def test_negative_prompt_moves_the_sound_away(latents):
    plain, negative = (latents.generate("a bell", num_steps=2, negative_prompt=text) for text in ("", "rain"))
    assert not torch.allclose(plain, negative, atol=1e-3)
    itself = {"num_steps": 2, "negative_prompt": "a bell", "unconditional": "gpt2"}
    own, off = (latents.generate("a bell", guidance_scale=scale, **itself) for scale in (1.0, 6.0))
    torch.testing.assert_close(own, off, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_generates(smoke_run, name):
    model = AudioLDM2.from_pretrained(smoke_run.model_folder)
    assert torch.isfinite(model.generate(["rain"], sampler=name, num_steps=4)).all()


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
        ({"requests": ["a", "  "]}, "prompt 2 is empty"),
        ({"requests": []}, "no prompt"),
        ({"requests": "a", "seconds": -1}, "seconds="),
        ({"requests": "a", "num_steps": 0}, "num_steps=0 has to be from 1"),
        ({"requests": "a", "num_steps": 1000}, "num_steps=1000 has to be below 1000"),
        ({"requests": "a", "num_steps": 1.5}, "num_steps=1.5 is not a whole number"),
        ({"requests": "a", "eta": 5.0}, "eta=5.0 has to be from 0 to 1"),
        ({"requests": "a", "guidance_scale": float("nan")}, "guidance_scale=nan is not finite"),
        ({"requests": "a", "candidates": 0}, "candidates=0"),
        ({"requests": "a", "seconds": float("nan")}, "seconds="),
        ({"requests": "a", "num_step": 3}, "num_step: no such setting; did you mean 'num_steps'"),
        ({"requests": "a", "sampler": "dimm"}, "sampler='dimm': did you mean 'ddim'"),
        ({"requests": [Generation("a", seconds=1), "b"]}, "clips of one call have one length"),
        ({"requests": "a", "transcript": "Hello."}, "no speech model"),
        ({"requests": "a", "seed": -1}, "seed=-1 has to be"),
        ({"requests": "a", "seed": [2**63]}, "seed=9223372036854775808 has to be"),
        ({"requests": "a \udc80 bell"}, "prompt 1 is no text"),
        ({"requests": ["a", "b"], "negative_prompt": ["c"]}, "negative_prompt: 1 for 2 prompts"),
        ({"requests": ["a", "b"], "seed": [1]}, "seed: 1 for 2 prompts"),
        ({"requests": "a", "num_steps": 1, "unconditional": "none"}, "choose one of zero, gpt2"),
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
    bell, rain = (model.encode_conditions([text])["clap"].embedding for text in ("a bell", "rain"))
    assert not torch.equal(bell, rain)
    assert not torch.equal(*(model.generate_latent([Generation(text)], Sampling(num_steps=2)) for text in ("a", "b")))
    for request, message in (({"candidates": 2}, "CLAP for text alone"), ({"loa": torch.zeros(1, 8, 32)}, "no LOA"),
                             ({"edit": Edit(loa_prefix=torch.zeros(1, 2, 32))}, "no LOA")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            model.generate("a bell", num_steps=1, **request)


def test_audioldm1_trains_here_and_opens_in_diffusers(smoke, smoke_run, tmp_path):
    given = [f"from.{part}={smoke_run.model_folder}" for part in ("clap", "vae", "vocoder")]
    film = ("unet.film=clap", "unet.conditions=[]", "conditioners.clap.hears=waveform", "stages=[ldm]",
            "trainer.sample_every_batches=4")  # fmt: skip
    experiment = smoke(*film, *given, runs=tmp_path)
    train(experiment, "ldm")
    assert (experiment.run_folder / "samples" / "ldm" / "0_0000004.wav").is_file()
    model = AudioLDM2.from_pretrained(experiment.model_folder)
    assert model.generate("a bell", num_steps=2, candidates=2).shape == (1, 40_960)
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
