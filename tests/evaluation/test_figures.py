import numpy as np
import pytest
import torch
from test_report import Model, options  # noqa: F401  (a fixture)
from tiny_corpus import AUDIO

from audioldm2_pl.audio import Fbank, LogMel
from audioldm2_pl.conditioners.condition import Condition
from audioldm2_pl.errors import UserError
from audioldm2_pl.models.audiomae import AudioMAE, AudioMAEConfig
from audioldm2_pl.models.diffusion import DiffusionConfig, build_scheduler
from audioldm2_pl.models.gpt2 import LOAGenerator, LOAGPT2Config, build_gpt2
from audioldm2_pl.models.projection import ConditionProjection
from audioldm2_pl.models.unet import TUNet, TUNetConfig
from audioldm2_pl.models.vae import VAEConfig, build_vae, latent_of
from evaluation.report import write_report
from evaluation.report.bench import Bench
from evaluation.report.figures import (
    FIGURES,
    GUIDANCE_SCALES,
    beep,
    labelled_clips,
    neighbour_agreement,
    neighbour_chance,
    tsne_of,
)

NUM_LOA = 8  # 4 × 8 patches, λ = 2


def conditions_of(num_clips: int) -> list[Condition]:
    draw = torch.Generator().manual_seed(3)
    return [
        Condition(torch.randn(num_clips, n, 6, generator=draw), torch.ones(num_clips, n, dtype=torch.bool))
        for n in (1, 4)
    ]


class WholeModel(Model):
    """The networks that figures read are real ones, small and untrained; only generation is made up."""

    device, downsampling, audio = torch.device("cpu"), 2, AUDIO
    unit, smallest_latent, continues_loa = 2 * AUDIO.hop_length, 2, True
    unet = TUNet(TUNetConfig(sample_size=32, block_out_channels=[32, 32], attention_levels=[], num_heads=[1, 1]))
    scheduler = build_scheduler(DiffusionConfig())

    def __init__(self, split):
        super().__init__(split, 0.0)
        torch.manual_seed(0)
        config = AudioMAEConfig(num_frames=64, embed_dim=16, depth=2, num_heads=2, decoder_dim=16, decoder_depth=1,
                                decoder_heads=2, pooling=2)  # fmt: skip
        self.audiomae, self.fbank = AudioMAE(config).eval(), Fbank(AUDIO)
        self.vae = build_vae(VAEConfig(block_out_channels=[8, 8], norm_num_groups=8, sample_size=64)).eval()
        self.log_mel = LogMel(AUDIO)
        small = LOAGPT2Config(hidden_size=16, num_layers=2, num_heads=2, num_positions=64, dropout=0.0)
        self.loa_generator = LOAGenerator(
            build_gpt2(small, NUM_LOA), ConditionProjection({"clap": 6, "t5": 6}, small.hidden_size)
        ).eval()
        self.loas, self.scales = [], []

    def loa_of(self, waveform, speaks=False):
        return self.audiomae.loa(self.fbank(waveform))

    def pooling(self, speaks):
        return self.audiomae.config.pooling

    def encode_latent(self, waveform, sample):
        return latent_of(self.vae, self.log_mel(waveform), sample=sample)

    def render(self, requests, sampling, edit, loa, progress):
        """The clips, and what they kept of LOA and latent."""
        made = self.loa_generator.generate(conditions_of(len(requests)), loa_prefix=edit.loa_prefix)
        assert edit.keep is not None
        return edit.latent, self.generate(requests, sampling=sampling, loa=made, seconds=AUDIO.clip_seconds)

    def generate(self, texts, *, sampling, loa=None, guidance_scale=None, **rest):
        guidance_scale = sampling.guidance_scale if guidance_scale is None else guidance_scale
        if loa is not None:
            self.loas.append(loa)
        self.scales.append(guidance_scale)
        self.noise = 0.02 * guidance_scale
        return super().generate(texts, sampling=sampling, guidance_scale=guidance_scale, **rest)


def test_all_figures_in_one_page(experiment, corpus, options, classifier_config, tmp_path):  # noqa: F811
    model = WholeModel(corpus / "test")
    options.figures, options.figure_clips, options.clips = list(FIGURES), 10, 12
    results = write_report([experiment], options, tmp_path / "page.html", lambda *_: model, classifier_config)
    found = results["figures"]["tiny"]
    assert list(found) == ["guidance", "reconstruction", "tsne", "continuation"]
    assert set(GUIDANCE_SCALES) <= set(model.scales)
    distances = [found["guidance"][f"{scale:g}"]["fd"]["value"] for scale in GUIDANCE_SCALES]
    assert distances[0] < distances[-1]  # the model's noise grows with the scale
    assert list(found["reconstruction"]) == ["λ = 1", "λ = 2", "λ = 4", "VAE + vocoder"]
    assert [loa.shape[1] for loa in model.loas] == [32, 8, 2, NUM_LOA]
    assert found["reconstruction"]["VAE + vocoder"]["fd"]["value"] < 0.01
    assert found["tsne"]["num_clips"] == 20 and 0 <= found["tsne"]["neighbour_agreement"]["VAE"] <= 1
    assert set(found["continuation"]) == {"Context and caption", "Caption alone"}
    page = (tmp_path / "page.html").read_text()
    assert all(f"(Fig. {number})" in page for number in (2, 3, 5, 8)) and "http" not in page

    num_generated = model.num_generated
    write_report([experiment], options, tmp_path / "page.html", lambda *_: model, classifier_config)
    assert model.num_generated == num_generated  # all of it was there


def test_neighbours_of_a_class():
    points = np.array([[0.0, 0], [0.1, 0], [5, 5], [5.1, 5], [0, 0.05]])
    assert neighbour_agreement(points, ["a", "a", "b", "b", "b"]) == pytest.approx(3 / 5)
    assert neighbour_agreement(points, ["a", "a", "b", "b", "a"]) == 1.0
    assert neighbour_chance(["a", "a", "b", "b"]) == pytest.approx(1 / 3)


def test_tsne_keeps_clusters_apart_and_repeats():
    draw = np.random.default_rng(0)
    points = np.concatenate([draw.normal(loc, 0.1, size=(15, 6)) for loc in (0, 5)])
    places = tsne_of(points)
    assert places.shape == (30, 2) and np.array_equal(places, tsne_of(points))
    assert neighbour_agreement(places, ["a"] * 15 + ["b"] * 15) == 1.0


def test_unlabelled_clips_give_no_cloud(experiment, corpus, options, monkeypatch):  # noqa: F811
    monkeypatch.setattr("evaluation.report.figures.read_clips", lambda split, audio: iter(()))
    bench = Bench(experiment, options, lambda *_: WholeModel(corpus / "test"))
    with pytest.raises(UserError, match="--labelled"):
        labelled_clips(bench)


def test_beep_is_short_and_one_kilohertz():
    sound = beep(16_000)
    assert sound.shape == (1, 2400) and sound.abs().max() == pytest.approx(0.2, abs=1e-3)
    assert torch.fft.rfft(sound[0]).abs().argmax() == 150  # 1000 Hz · 0.15 s
