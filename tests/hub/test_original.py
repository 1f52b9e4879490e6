"""Import of the authors' checkpoints: what the original networks compute, the imported ones compute as well."""

import argparse
import importlib.util
import json
import os
import sys
from types import ModuleType, SimpleNamespace
from unittest import mock

import diffusers
import pytest
import torch
import torch.nn.functional as F
import transformers
from original_networks import Generator, MaskedAutoencoderViT, PhonemeEncoder, UNetModel, VAEWithVocoder, randomise
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from audioldm2_pl.conditioners.condition import Condition
from audioldm2_pl.conditioners.tokenizers import build_roberta_tokenizer, build_t5_tokenizer
from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.original.audiomae import audiomae_config
from audioldm2_pl.hub.original.folder import import_checkpoint
from audioldm2_pl.hub.original.unet import build_unet
from audioldm2_pl.hub.original.vae import vae_config
from audioldm2_pl.hub.original.vocoder import vocoder_config
from audioldm2_pl.hub.parts import load_part
from audioldm2_pl.models.audiomae import AudioMAEConfig, pool_loa
from audioldm2_pl.models.gpt2 import LOAGenerator
from audioldm2_pl.models.unet import audioldm1, base, large, speech
from audioldm2_pl.models.vae import VAEConfig, latent_of, log_mel_of
from audioldm2_pl.models.vocoder import VocoderConfig, vocode
from audioldm2_pl.pipeline import AudioLDM2

torch.set_num_threads(1)
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}
LOA, T5, CLAP, PHONEMES = 128, 48, 24, 16  # widths
KERNELS, RATES = [16, 16, 8, 4, 4], [5, 4, 2, 2, 2]  # of the published 16 kHz vocoder
SCALE = 0.4110932946205139


def below(prefix: str, network: nn.Module) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{name}": tensor.clone() for name, tensor in network.state_dict().items()}


def laion_htsat() -> ModuleType:
    """laion_clap's HTS-AT, without what its package imports: a tokenizer off a hub, and librosa for filters."""
    spec = importlib.util.find_spec("laion_clap")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("needs laion_clap, of the extra `eval`")
    folder = spec.submodule_search_locations[0]
    stubs = {name: ModuleType(name) for name in ("laion_clap", "laion_clap.clap_module", "torchlibrosa")}
    stubs["laion_clap"].__path__ = [folder]
    stubs["laion_clap.clap_module"].__path__ = [os.path.join(folder, "clap_module")]
    front_end = {"Spectrogram": Filters, "LogmelFilterBank": Filters, "SpecAugmentation": Augmentation}
    for name in ("torchlibrosa.stft", "torchlibrosa.augmentation"):
        stubs[name] = ModuleType(name)
        vars(stubs[name]).update(front_end)
    with mock.patch.dict(sys.modules, stubs):
        return importlib.import_module("laion_clap.clap_module.htsat")


class Filters(nn.Module):
    """A front end's fixed filters, by one of their names."""

    def __init__(self, **options):
        super().__init__()
        self.melW = nn.Parameter(torch.zeros(3, 3), requires_grad=False)


class Augmentation(nn.Module):
    def __init__(self, **options):
        super().__init__()


class LaionCLAP(nn.Module):
    """LAION's CLAP at a small size: its own HTS-AT, transformers' RoBERTa, and the two projections."""

    def __init__(self):
        super().__init__()
        audio = SimpleNamespace(
            mel_bins=32, window_size=64, hop_size=32, sample_rate=48_000, fmin=50, fmax=14_000, class_num=5
        )
        self.audio_branch = laion_htsat().HTSAT_Swin_Transformer(
            spec_size=64, patch_size=4, embed_dim=16, depths=[2, 1], num_heads=[2, 4], window_size=4,
            num_classes=5, config=audio,
        )  # fmt: skip
        roberta = transformers.RobertaConfig(
            vocab_size=261, hidden_size=128, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=66, type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-12,
        )  # fmt: skip
        self.audio_branch.bn0.running_mean.uniform_(-50, -20)
        self.audio_branch.bn0.running_var.uniform_(50, 100)
        self.text_branch = transformers.RobertaModel(roberta)
        self.text_transform = nn.ModuleDict({"sequential": nn.Sequential(nn.Linear(CLAP, CLAP))})
        self.audio_projection = nn.Sequential(nn.Linear(32, CLAP), nn.ReLU(), nn.Linear(CLAP, CLAP))
        self.text_projection = nn.Sequential(nn.Linear(128, CLAP), nn.ReLU(), nn.Linear(CLAP, CLAP))
        self.logit_scale_a, self.logit_scale_t = nn.Parameter(torch.ones([])), nn.Parameter(torch.ones([]))

    def embed_audio(self, log_mel: torch.Tensor) -> torch.Tensor:
        branch = self.audio_branch
        x = branch.bn0(log_mel.transpose(1, 3)).transpose(1, 3)
        embedding = branch.forward_features(branch.reshape_wav2img(x))["embedding"]
        return F.normalize(self.audio_projection(embedding), dim=-1)

    def embed_text(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        pooled = self.text_branch(input_ids=tokens, attention_mask=mask).pooler_output
        return F.normalize(self.text_projection(pooled), dim=-1)


def sequence_model(second: int) -> nn.Module:
    """Sequence2AudioMAE without its conditioners."""
    model = nn.Module()
    model.start_of_sequence_tokens, model.end_of_sequence_tokens = nn.Embedding(32, LOA), nn.Embedding(32, LOA)
    model.input_sequence_embed_linear = nn.ModuleList([nn.Linear(CLAP, LOA), nn.Linear(second, LOA)])
    model.model = transformers.GPT2Model(
        transformers.GPT2Config(
            n_embd=LOA, n_layer=2, n_head=2, n_positions=128, vocab_size=7, bos_token_id=0, eos_token_id=0
        )
    )
    return model


def generate_loa(model: nn.Module, sequences: list[torch.Tensor], num_vectors: int) -> torch.Tensor:
    """The authors' uncached loop, for one prompt without padding."""
    parts = []
    for i, (linear, sequence) in enumerate(zip(model.input_sequence_embed_linear, sequences)):
        marks = [model.start_of_sequence_tokens.weight[i], model.end_of_sequence_tokens.weight[i]]
        parts += [marks[0].view(1, 1, -1), linear(sequence), marks[1].view(1, 1, -1)]
    x = torch.cat(parts, dim=1)
    for _ in range(num_vectors):
        x = torch.cat([x, model.model(inputs_embeds=x).last_hidden_state[:, -1:]], dim=1)
    return x[:, -num_vectors:]


def small_unet(context_dim: list[int | None], seed: int = 0, **options) -> UNetModel:
    """A T-UNet of two levels, for tests of what stands around it."""
    options = {"mult": (1, 2), "attention_resolutions": (2,), "num_res_blocks": 1, **options}
    return randomise(UNetModel(context_dim, **options), seed)  # type: ignore[return-value]


def schedule() -> dict[str, torch.Tensor]:
    betas = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2
    names = ["alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "posterior_variance"]
    return {"betas": betas.float(), "logvar": torch.zeros(1000), **{name: torch.zeros(1000) for name in names}}


def common(unet: nn.Module, vae: nn.Module) -> dict[str, torch.Tensor]:
    """What every LatentDiffusion checkpoint holds: T-UNet, its averages, VAE with vocoder, schedule."""
    unets = below("model.diffusion_model", unet)
    averages = {"model_ema." + k.removeprefix("model.").replace(".", ""): 0.5 * v for k, v in unets.items()}
    state = {**unets, **averages, "model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    return {**state, **below("first_stage_model", vae), "scale_factor": torch.tensor(SCALE), **schedule()}


@pytest.fixture(scope="module")
def networks() -> SimpleNamespace:
    """The original networks, at small sizes and random."""
    t5 = transformers.T5Config(
        vocab_size=len(build_t5_tokenizer()), d_model=T5, d_kv=16, d_ff=64, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return SimpleNamespace(
        unet=randomise(UNetModel([LOA, T5], num_res_blocks=1), 1),
        vae=randomise(VAEWithVocoder(Generator(32, 32, RATES, KERNELS, [3, 7])), 2),
        gpt2=randomise(sequence_model(T5), 3),
        t5=randomise(transformers.T5EncoderModel(t5), 4),
        clap=randomise(LaionCLAP(), 5, std=0.3),
        audiomae=randomise(MaskedAutoencoderViT(64, LOA, 4, 64, 1), 6),
        phonemes=randomise(PhonemeEncoder(183, PHONEMES, 2, 20), 7),
        small_unet=small_unet([LOA, T5]),
    )


@pytest.fixture(scope="module")
def state(networks) -> dict[str, torch.Tensor]:
    """An AudioLDM 2 checkpoint, conditioners nested and doubled as in the authors' class."""
    gpt2 = "cond_stage_models.0"
    return {
        **common(networks.unet, networks.vae),
        **below("clap.model", networks.clap),
        "clap.mel_transform.mel_scale.fb": torch.zeros(3, 3),
        **below(gpt2, networks.gpt2),
        f"{gpt2}.model.h.0.attn.bias": torch.ones(1, 1, 4, 4),
        **below(f"{gpt2}.cond_stage_models.0.model", networks.clap),
        **below(f"{gpt2}.cond_stage_models.1.model", networks.t5),
        **below(f"{gpt2}.cond_stage_models.2.audiomae.model", networks.audiomae),
        **below("cond_stage_models.1.model", networks.t5),
    }


@pytest.fixture(scope="module")
def donor(tmp_path_factory):
    """A folder with tokenizers of AudioLDM 2."""
    folder = tmp_path_factory.mktemp("donor")
    build_roberta_tokenizer(64).save_pretrained(folder / "tokenizer")
    build_t5_tokenizer().save_pretrained(folder / "tokenizer_2")
    return folder


@pytest.fixture(scope="module")
def imported(state, donor, tmp_path_factory):
    """(model folder, report) of the checkpoint as Lightning saves it."""
    folder = tmp_path_factory.mktemp("imported")
    torch.save({"state_dict": state, "epoch": 3}, folder / "audioldm2.ckpt")
    report = import_checkpoint(folder / "audioldm2.ckpt", folder / "model", tokenizers=donor)
    return folder / "model", report


# ---- what the networks compute


@torch.no_grad()
def check_unet(original: UNetModel, folder, film: bool = False) -> None:
    torch.manual_seed(0)
    latent, timestep = torch.randn(2, 4, 16, 8), torch.tensor([3, 700])
    loa, text = torch.randn(2, 5, LOA), torch.randn(2, 6, T5)
    masks = [torch.ones(2, 5), torch.tensor([[1.0] * 6, [1.0] * 4 + [0.0] * 2])]
    unet = load_part(folder, "unet").eval()
    number = len(unet.config.conditions)
    vector = torch.randn(2, CLAP) if film else None
    expected = original(latent, timestep, [loa, text][:number], masks[:number], vector)
    conditions = [Condition(x, mask.bool()) for x, mask in zip((loa, text), masks)][:number]
    result = unet(latent, timestep, conditions, vector)
    assert expected.std() > 0.01
    torch.testing.assert_close(result, expected, **TOLERANCE)


def test_unet_computes_the_same(networks, imported):
    check_unet(networks.unet, imported[0])
    unet = load_part(imported[0], "unet")
    config = unet.config
    assert config.block_out_channels == [32, 64, 96] and config.num_heads == [1, 2, 3]
    assert config.attention_levels == [1, 2] and unet.condition_widths == {"loa": LOA, "t5": T5}
    assert config.layers_per_block == 1 and config.sample_size == 1024 // 2


@pytest.mark.parametrize(
    "kind",
    [
        {"context_dim": [LOA, T5, None], "depth": 2, "mult": (1, 2)},  # large
        {"context_dim": [LOA], "mult": (1, 3), "attention_resolutions": (1, 2)},  # speech
        {"context_dim": [None], "extra_sa_layer": False, "film": CLAP, "mult": (1, 2)},  # AudioLDM 1
        {"context_dim": [None], "film": CLAP, "mult": (1, 1, 2, 2), "num_res_blocks": 1},  # 48 kHz
    ],
    ids=["large", "speech", "audioldm1", "48k"],
)
def test_other_unets_compute_the_same(kind, tmp_path):
    unet = randomise(UNetModel(**kind))
    torch.save(unet.state_dict(), tmp_path / "unet.pth")
    report = import_checkpoint(tmp_path / "unet.pth", tmp_path / "model")
    assert set(report.written) == {"unet", "scheduler"} and not report.unmatched
    check_unet(unet, tmp_path / "model", film="film" in kind)


@torch.no_grad()
def test_vae_computes_the_same(networks, imported):
    torch.manual_seed(0)
    vae, original = load_part(imported[0], "vae").eval(), networks.vae
    log_mel = torch.randn(2, 1, 24, 16)
    mean = original.quant_conv(original.encoder(log_mel)).chunk(2, dim=1)[0]
    torch.testing.assert_close(latent_of(vae, log_mel, sample=False), SCALE * mean, **TOLERANCE)
    latent = torch.randn(2, 4, 12, 8)
    expected = original.decoder(original.post_quant_conv(latent))
    assert mean.std() > 0.01 and expected.std() > 0.01
    torch.testing.assert_close(log_mel_of(vae, SCALE * latent), expected, **TOLERANCE)
    assert vae.config.scaling_factor == pytest.approx(SCALE)


@torch.no_grad()
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "weight norm"])
def test_vocoder_computes_the_same(norm, networks, imported, tmp_path):
    original, folder = networks.vae.vocoder, imported[0]
    if norm:  # a generator as training leaves it
        original = randomise(Generator(32, 32, RATES, KERNELS, [3, 7, 11]))
        with torch.enable_grad():
            for layer in [m for m in original.modules() if isinstance(m, nn.Conv1d | nn.ConvTranspose1d)]:
                weight_norm(layer)
                layer.parametrizations.weight.original0.data *= 1.5
        torch.save({"generator": original.state_dict()}, tmp_path / "g_00100000")
        folder = tmp_path / "model"
        assert not import_checkpoint(tmp_path / "g_00100000", folder).unmatched
    log_mel = torch.randn(1, 1, 9, 32, generator=torch.Generator().manual_seed(0))
    expected = original(log_mel[:, 0].transpose(1, 2))[:, 0, : 9 * 160]
    vocoder = load_part(folder, "vocoder").eval()
    assert vocoder.config.sampling_rate == 16_000 and expected.std() > 1e-4
    torch.testing.assert_close(vocode(vocoder, log_mel), expected, **TOLERANCE)


def test_an_unknown_vocoder_needs_its_rates(tmp_path):
    generator = Generator(16, 16, [4, 4], [8, 8], [3])
    torch.save(generator.state_dict(), tmp_path / "g.pth")
    with pytest.raises(UserError, match=r"kernels are \[8, 8\].*--vocoder-rates"):
        import_checkpoint(tmp_path / "g.pth", tmp_path / "model")
    import_checkpoint(tmp_path / "g.pth", tmp_path / "model", vocoder_rates=[4, 4])
    assert list(load_part(tmp_path / "model", "vocoder").config.upsample_rates) == [4, 4]


@torch.no_grad()
def test_gpt2_says_the_same_loa(networks, imported):
    clap, text = torch.randn(1, 1, CLAP), torch.randn(1, 5, T5)
    expected = generate_loa(networks.gpt2, [clap, text], 8)
    generator = LOAGenerator(load_part(imported[0], "language_model"), load_part(imported[0], "projection_model"))
    conditions = [Condition(x, torch.ones(x.shape[:2], dtype=torch.bool)) for x in (clap, text)]
    assert expected.std() > 0.01
    torch.testing.assert_close(generator.eval().generate(conditions), expected, **TOLERANCE)


@torch.no_grad()
def test_t5_computes_the_same(networks, imported):
    tokens = torch.tensor([[4, 9, 12, 1], [7, 1, 0, 0]])
    mask = (tokens != 0).long()
    expected = networks.t5(input_ids=tokens, attention_mask=mask).last_hidden_state
    result = load_part(imported[0], "text_encoder_2").eval()(input_ids=tokens, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(result, expected, **TOLERANCE)


@torch.no_grad()
def test_clap_computes_the_same(networks, imported):
    clap = load_part(imported[0], "text_encoder").eval()
    tilt = torch.linspace(-30, 30, 32)
    log_mel = torch.stack([tilt, -tilt]).view(2, 1, 1, 32) + torch.linspace(-60, 0, 100).view(1, 1, 100, 1)  # dB
    audio = F.normalize(clap.get_audio_features(input_features=log_mel).pooler_output, dim=-1)
    torch.testing.assert_close(audio, networks.clap.embed_audio(log_mel), atol=1e-5, rtol=1e-5)
    assert (audio[0] - audio[1]).abs().max() > 1e-3
    tokens = torch.tensor([[0, 9, 12, 2], [0, 7, 2, 1]])
    mask = (tokens != 1).long()
    text = F.normalize(clap.get_text_features(input_ids=tokens, attention_mask=mask).pooler_output, dim=-1)
    torch.testing.assert_close(text, networks.clap.embed_text(tokens, mask), **TOLERANCE)
    extractor = load_part(imported[0], "feature_extractor")
    assert extractor.sampling_rate == 48_000 and extractor.nb_max_samples == 480_000


@torch.no_grad()
@pytest.mark.parametrize("bare", [False, True], ids=["inside", "bare"])
def test_audiomae_computes_the_same(bare, networks, imported, tmp_path):
    folder = imported[0]
    if bare:  # AudioMAE's own file keeps its command line beside the weights
        folder = tmp_path / "model"
        content = {"model": networks.audiomae.state_dict(), "epoch": 32, "args": argparse.Namespace(mask_ratio=0.8)}
        torch.save(content, tmp_path / "pretrained.pth")
        report = import_checkpoint(tmp_path / "pretrained.pth", folder)
        assert report.kind == "AudioMAE" and not report.unmatched and not report.missing
        assert report.ignored == {"stands beside the weights": ["epoch", "args"]}
    fbank = torch.randn(2, 1, 64, 128, generator=torch.Generator().manual_seed(0))
    expected = networks.audiomae.forward_encoder_no_mask(fbank, contextual_depth=0)  # the last 3 of 4 blocks
    audiomae = load_part(folder, "audiomae").eval()
    features = audiomae.features(fbank)
    torch.testing.assert_close(features.flatten(1, 2), expected[:, 1:], **TOLERANCE)
    assert audiomae.config.pooling == 8 and pool_loa(features, 4).shape == (2, 2, LOA)
    decoder = [name for name in audiomae.state_dict() if name.startswith("decoder_")]
    assert all(torch.equal(audiomae.state_dict()[k], networks.audiomae.state_dict()[k]) for k in decoder)


def test_audiomae_without_a_plain_decoder(networks, tmp_path):
    weights = {k: v for k, v in networks.audiomae.state_dict().items() if not k.startswith(("decoder", "mask_token"))}
    swin = {"decoder_blocks.0.attn.logit_scale": torch.ones(2), "decoder_pred.weight": torch.ones(256, 64)}
    torch.save(weights | swin, tmp_path / "a.pth")
    report = import_checkpoint(tmp_path / "a.pth", tmp_path / "model")
    assert any("no decoder of plain blocks" in note for note in report.notes) and not report.unmatched
    assert list(report.ignored.values()) == [list(swin)]
    loaded = load_part(tmp_path / "model", "audiomae").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())


# ---- the published sizes


@pytest.mark.parametrize(
    ("options", "preset"),
    [
        ({"context_dim": [768, 1024]}, base()),
        ({"context_dim": [768, 1024, None], "depth": 2}, large()),
        ({"context_dim": [768]}, speech()),
        ({"context_dim": [None], "extra_sa_layer": False, "film": 512}, audioldm1()),
    ],
    ids=["base", "large", "speech", "audioldm1"],
)
def test_published_unets_are_recognised(options, preset):
    with torch.device("meta"):
        weights = UNetModel(
            channels=8, width=128, mult=(1, 2, 3, 5), attention_resolutions=(2, 4, 8), **options
        ).state_dict()
        network, moves = build_unet(weights, "official")
        moved = {name: tensor.shape for _, name, tensor in moves}
    assert network.config == preset and len(moved) == len(weights)
    assert moved == {name: tensor.shape for name, tensor in network.state_dict().items()}


def test_other_published_networks_are_recognised():
    kernels = VocoderConfig().upsample_kernel_sizes
    with torch.device("meta"):
        first_stage = VAEWithVocoder(Generator(64, 1024, [4] * 5, kernels, [3, 7, 11]), 128, (1, 2, 4), 8)
        vocoder_48k = Generator(256, 1536, [2] * 5, [12, 10, 8, 4, 4], [3, 7, 11, 15])
        mae = MaskedAutoencoderViT(1024, 768, 12, 512, 8)
    assert vae_config(first_stage.state_dict(), VAEConfig().scaling_factor) == VAEConfig()
    assert vocoder_config(first_stage.vocoder.state_dict(), None) == VocoderConfig()
    config = vocoder_config(vocoder_48k.state_dict(), None)
    assert (config.sample_rate, config.upsample_rates, config.num_mel_bins) == (48_000, [6, 5, 4, 2, 2], 256)
    assert audiomae_config(mae.state_dict(), 8) == AudioMAEConfig()


# ---- whole folders


def test_report_accounts_for_every_tensor(state, imported):
    _, report = imported
    assert report.kind == "AudioLDM 2" and not report.unmatched and not report.missing
    names = [name for group in report.ignored.values() for name in group]
    assert len(names) == len(set(names)) and set(names) - {"epoch"} <= set(state)
    reasons = " ".join(report.ignored)
    assert "clap.model.audio_branch.logmel_extractor.melW" in names
    for reason in ("noise schedule", "EMA", "losses", "second copy of clap", "second copy of t5", "masks of attention"):
        assert reason in reasons
    assert "OTHER values" not in reasons
    assert "not matched: 0 tensors" in str(report) and "heads by level [1, 2, 3], official" in str(report)


def test_unmatched_tensors_are_named(networks, tmp_path):
    extra = {"new_layer.weight": torch.ones(2), "input_blocks.1.9.x": torch.ones(2), "label_emb.weight": torch.ones(2)}
    torch.save(networks.small_unet.state_dict() | extra, tmp_path / "a.pth")
    report = import_checkpoint(tmp_path / "a.pth", tmp_path / "model")
    assert report.unmatched == list(extra)
    assert "not matched: 3 tensors\n  new_layer.weight" in str(report)


def test_a_differing_second_copy_is_said(networks, tmp_path):
    first, second = below("cond_stage_models.1.model", networks.t5), below("a.b.c.model", networks.t5)
    second["a.b.c.model.shared.weight"] += 1
    torch.save(first | second, tmp_path / "a.pth")
    report = import_checkpoint(tmp_path / "a.pth", tmp_path / "model")
    assert list(report.ignored) == ["second t5, with OTHER values, under a.b.c.model."]


def test_stock_diffusers_and_our_pipeline_make_sound(imported):
    stock = diffusers.AudioLDM2Pipeline.from_pretrained(imported[0], low_cpu_mem_usage=False)
    stock.set_progress_bar_config(disable=True)
    audio = stock("a bell", num_inference_steps=1, audio_length_in_s=0.16, max_new_tokens=8).audios
    assert audio.shape == (1, 2560) and torch.isfinite(torch.from_numpy(audio)).all()
    assert stock.unet.config.attention_head_dim == [1, 2, 3]
    assert AudioLDM2.from_pretrained(imported[0]).generate("a bell", seconds=0.16, num_steps=1).shape == (1, 2560)


def test_ema_weights_by_choice(networks, tmp_path):
    state = common(networks.small_unet, networks.vae)
    torch.save(state, tmp_path / "a.pth")
    last = import_checkpoint(tmp_path / "a.pth", tmp_path / "last")
    averaged = import_checkpoint(tmp_path / "a.pth", tmp_path / "averaged", ema=True)
    unets = [load_part(tmp_path / name, "unet").state_dict() for name in ("last", "averaged")]
    assert all(torch.equal(0.5 * unets[0][name], unets[1][name]) for name in unets[0])
    num_unet = len(networks.small_unet.state_dict())
    assert len(last.ignored["EMA weights of the T-UNet, which --ema takes"]) == num_unet + 2
    assert averaged.ignored["EMA's counters"] == ["model_ema.decay", "model_ema.num_updates"]
    assert f"unet/: EMA weights, {num_unet} tensors" in averaged.notes
    assert last.missing == [part for part in diffusers_parts() if part not in ("vae", "vocoder", "unet", "scheduler")]
    assert "still missing: feature_extractor/, language_model/" in str(last)


def diffusers_parts() -> list[str]:
    from audioldm2_pl.hub.parts import HUB_CLASSES

    return list(HUB_CLASSES)


def test_ema_that_is_not_there(networks, tmp_path):
    torch.save(below("model.diffusion_model", networks.small_unet), tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"has no EMA weights.*without --ema"):
        import_checkpoint(tmp_path / "a.pth", tmp_path / "model", ema=True)
    state = common(networks.small_unet, networks.vae)
    del state["model_ema.diffusion_modelout2weight"]
    torch.save(state, tmp_path / "b.pth")
    with pytest.raises(UserError, match=r"no EMA weights of model\.diffusion_model\.out\.2\.weight"):
        import_checkpoint(tmp_path / "b.pth", tmp_path / "model", ema=True)
    assert not (tmp_path / "model").exists()


def test_heads_of_the_hub(networks, tmp_path):
    torch.save(networks.small_unet.state_dict(), tmp_path / "a.pth")
    import_checkpoint(tmp_path / "a.pth", tmp_path / "model", heads="hub")
    assert json.loads((tmp_path / "model/unet/config.json").read_text())["attention_head_dim"] == [8, 8]
    with pytest.raises(UserError, match="--heads 7: official or hub"):
        import_checkpoint(tmp_path / "a.pth", tmp_path / "other", heads="7")  # type: ignore[arg-type]


@torch.no_grad()
def test_speech(networks, tmp_path):
    phonemes, gpt2 = networks.phonemes, randomise(sequence_model(PHONEMES), 8)
    prefix = "cond_stage_models.0"
    state = {
        **common(small_unet([LOA]), networks.vae),
        **below("clap.model", networks.clap),
        **below(prefix, gpt2),
        **below(f"{prefix}.cond_stage_models.1", phonemes),
        **below(f"{prefix}.cond_stage_models.2.audiomae.model", networks.audiomae),
    }
    torch.save(state, tmp_path / "speech.pth")
    report = import_checkpoint(tmp_path / "speech.pth", tmp_path / "model")
    folder = tmp_path / "model"
    assert report.kind == "AudioLDM 2 for speech" and not report.unmatched
    assert report.missing == ["tokenizer"]
    assert load_part(folder, "tokenizer_2").model_max_length == 20
    assert json.loads((folder / "model_index.json").read_text())["text_encoder_2"] == ["transformers", "VitsModel"]
    vits = load_part(folder, "text_encoder_2").eval()
    projection = load_part(folder, "projection_model").eval()
    gpt = load_part(folder, "language_model").eval()
    assert gpt.config.max_new_tokens == 512 and load_part(folder, "audiomae").config.pooling == 1

    tokens = torch.tensor([[5, 9, 182, *[0] * 17]])
    embedding, mask = phonemes(tokens)
    hidden = vits.text_encoder(
        input_ids=tokens, padding_mask=mask.unsqueeze(-1), attention_mask=mask.long()
    ).last_hidden_state
    learned = projection.learnable_positional_embedding.transpose(1, 2)
    torch.testing.assert_close((hidden + learned)[mask.bool()], embedding[mask.bool()], **TOLERANCE)
    clap = torch.randn(1, 1, CLAP)
    generator = LOAGenerator(gpt, projection).eval()
    full = torch.randint(1, 183, (1, 20))  # without padding
    text = vits.text_encoder(input_ids=full, padding_mask=torch.ones(1, 20, 1)).last_hidden_state
    conditions = [Condition(x, torch.ones(x.shape[:2], dtype=torch.bool)) for x in (clap, text)]
    expected = generate_loa(gpt2, [clap, phonemes(full)[0]], 4)
    torch.testing.assert_close(generator.generate(conditions, num_vectors=4), expected, **TOLERANCE)


def test_audioldm1(networks, donor, tmp_path):
    unet = small_unet([None], extra_sa_layer=False, film=CLAP)
    state = {**common(unet, networks.vae), **below("cond_stage_model.model", networks.clap)}
    torch.save(state, tmp_path / "audioldm-s-full.ckpt")
    report = import_checkpoint(tmp_path / "audioldm-s-full.ckpt", tmp_path / "model", tokenizers=donor)
    assert report.kind == "AudioLDM 1" and not report.unmatched and not report.missing
    sound = next(names for reason, names in report.ignored.items() if reason.startswith("CLAP for sound"))
    assert all(name.startswith(("cond_stage_model.model.audio_", "cond_stage_model.model.logit_")) for name in sound)
    stock = diffusers.AudioLDMPipeline.from_pretrained(tmp_path / "model", low_cpu_mem_usage=False)
    assert type(stock.text_encoder).__name__ == "ClapTextModelWithProjection"
    tokens = torch.tensor([[0, 9, 12, 2]])
    with torch.no_grad():
        text = F.normalize(stock.text_encoder(input_ids=tokens).text_embeds, dim=-1)
        torch.testing.assert_close(text, networks.clap.embed_text(tokens, torch.ones(1, 4)), **TOLERANCE)
        latent, vector = torch.randn(1, 4, 16, 8), torch.randn(1, CLAP)
        expected = unet(latent, torch.tensor([5]), y=vector)
        result = stock.unet(latent, 5, None, class_labels=vector).sample
    torch.testing.assert_close(result, expected, **TOLERANCE)


def test_audiomae_joins_a_folder(networks, state, tmp_path):
    speech = {k: v for k, v in state.items() if "cond_stage_models.0.cond_stage_models" not in k}
    torch.save(speech, tmp_path / "a.pth")
    torch.save(networks.audiomae.state_dict(), tmp_path / "b.pth")
    import_checkpoint(tmp_path / "a.pth", tmp_path / "model")
    before = json.loads((tmp_path / "model/model_index.json").read_text())
    import_checkpoint(tmp_path / "b.pth", tmp_path / "model")
    assert (tmp_path / "model/audiomae/model.safetensors").is_file()
    assert json.loads((tmp_path / "model/model_index.json").read_text()) == before
    with pytest.raises(UserError, match="has audiomae/ already"):
        import_checkpoint(tmp_path / "b.pth", tmp_path / "model")


def test_old_and_safe_formats(networks, tmp_path):
    weights = networks.audiomae.state_dict()
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(weights, tmp_path / "new.safetensors")
    for name in ("old.pth", "new.safetensors"):
        import_checkpoint(tmp_path / name, tmp_path / name.split(".")[0])
        loaded = load_part(tmp_path / name.split(".")[0], "audiomae").state_dict()
        assert all(torch.equal(loaded[key], tensor) for key, tensor in weights.items())


# ---- files that are none


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_a_file_that_runs_code_is_refused(new, networks, tmp_path):
    content = {"state_dict": networks.audiomae.state_dict(), "hook": Malicious(tmp_path / "ran")}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
    with pytest.raises(UserError, match=r"a\.pth: not weights alone, opening it would run code posix\.mkdir") as error:
        import_checkpoint(tmp_path / "a.pth", tmp_path / "model")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "model").exists()


def test_wrong_files_are_named(networks, donor, tmp_path):
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    torch.save({"state_dict": {"layer.weight": torch.ones(2)}}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    cut = networks.small_unet.state_dict()
    del cut["middle_block.0.in_layers.0.weight"]
    torch.save(cut, tmp_path / "cut.pth")
    torch.save(networks.small_unet.state_dict() | {"out.0.weight": torch.ones(7)}, tmp_path / "shape.pth")
    torch.save({"cls_token": torch.ones(1, 1, 4)}, tmp_path / "vit.pth")
    betas = {**below("u", networks.small_unet), "betas": torch.linspace(0.0015, 0.0195, 1000)}
    torch.save(betas, tmp_path / "betas.pth")
    for name, message in {
        "none.pth": "no such checkpoint file",
        "text.pth": "(not a checkpoint|not weights alone)",
        "empty.pth": "empty, a download that broke off",
        "broken.safetensors": "not a checkpoint",
        "other.pth": r"holds no network of AudioLDM 2.*layer\.weight",
        "list.pth": "holds no network.*no tensors",
        "cut.pth": r"unet: nothing for mid_block\.resnets\.0\.norm1\.weight; the file is cut short",
        "shape.pth": r"unet: out\.0\.weight is \[7\], not \[32\]",
        "vit.pth": "audiomae: has no patch_embed",
        "betas.pth": "betas are no scaled-linear schedule",
    }.items():
        with pytest.raises(UserError, match=f"{name}: {message}") as error:
            import_checkpoint(tmp_path / name, tmp_path / "model")
        assert "\n" not in str(error.value)
    torch.save(networks.t5.state_dict(), tmp_path / "t5.pth")
    with pytest.raises(UserError, match=r"--tokenizers .*has no tokenizer_2/"):
        import_checkpoint(tmp_path / "t5.pth", tmp_path / "model", tokenizers=tmp_path)
    assert not (tmp_path / "model").exists() and not list(tmp_path.glob(".import-*"))


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("model.diffusion_model.input_blocks.10000000000.0.weight", torch.zeros(1)),
        ("model.diffusion_model.input_blocks.99.0.weight", torch.zeros(1)),
        ("model.diffusion_model.input_blocks.0.0.weight", torch.zeros(())),
        ("first_stage_model.encoder.conv_in.weight", torch.zeros(1).expand(10**9, 10**3)),
        ("cond_stage_models.0.model.wpe.weight", torch.empty(10**9, 10**3, device="meta")),
        ("a." * 600, torch.zeros(1)),
        ("betas", torch.zeros(2, 2)),
    ],
)
def test_odd_tensors_are_one_line_at_once(networks, tmp_path, name, tensor):
    state = below("model.diffusion_model", networks.unet) | {name: tensor}
    torch.save({"state_dict": state}, tmp_path / "odd.ckpt")
    with pytest.raises(UserError, match=r"odd\.ckpt") as error:
        import_checkpoint(tmp_path / "odd.ckpt", tmp_path / "model")
    assert "\n" not in str(error.value) and not (tmp_path / "model").exists()


def test_dicts_that_hold_themselves_come_to_an_end(tmp_path):
    first: dict = {}
    first["model"] = {"state_dict": first}
    torch.save(first, tmp_path / "ring.ckpt")
    with pytest.raises(UserError, match="holds no network"):
        import_checkpoint(tmp_path / "ring.ckpt", tmp_path / "model")
