"""What a later stage would refuse is refused before the first batch of the first."""

import shutil

import pytest

from audioldm2_pl.config import load_experiment
from audioldm2_pl.errors import UserError
from audioldm2_pl.training.run import train
from data.shards import write_shards
from data.synthetic import clips


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["stages=[audiomae,ldm]"], r"ldm: needs vae/"),
        (["stages=[audiomae,gpt2]"], r"gpt2: needs text_encoder/"),
        (["stages=[audiomae,decoder]"], r"decoder: needs vae/"),
        (["stages=[clap,audiomae,vae,joint]"], r"joint: needs unet/"),
        (["stages=[vae,audiomae]", "training.audiomae.optimizer.learning_rates={unet: 1.0}"], "no network 'unet'"),
        (["stages=[audiomae,vae]", "training.vae.optimizer.learning_rates={vae.encodr: 1.0}"], "vae has no 'encodr'"),
        (["data.test=nowhere", "trainer.validate_every_batches=2"], "nowhere: no shards here"),
    ],
)
def test_a_recipe_that_a_later_stage_refuses(overrides, said, smoke, tmp_path):
    experiment = smoke(*overrides, runs=tmp_path)
    with pytest.raises(UserError, match=said) as error:
        train(experiment)
    assert "\n" not in str(error.value)
    assert not (experiment.run_folder / "logs").exists() and not list(experiment.model_folder.glob("*/"))


def test_clips_longer_than_those_that_are_cached(smoke, shards, tmp_path):
    train_folder = tmp_path / "long"
    shutil.copytree(shards / "train", train_folder)
    experiment = smoke(
        f"data.train=[{train_folder}]", "stages=[clap,audiomae,vae,ldm]", "training.ldm.cache_features=true",
        "audio.clip_seconds=1.28", "audiomae.num_frames=128", "vae.sample_size=128", "unet.sample_size=16",
        "audiomae.pooling=4", "training.ldm.poolings=[4]", runs=tmp_path,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"training.ldm.cache_features=false"):
        train(experiment)
    assert not (experiment.run_folder / "logs").exists()


def test_features_of_other_shards(smoke, shards, tmp_path):
    write_shards(clips("train", 3), tmp_path / "other", num_workers=1)
    experiment = smoke("stages=[clap,audiomae,vae,ldm]", f"data.encoded=[{tmp_path}/other]", runs=tmp_path)
    with pytest.raises(UserError, match="holds no encoded features"):
        train(experiment)
    assert not (experiment.run_folder / "logs").exists()


SIZES = {
    "training.ldm.poolings=[3]": "does not divide the 16 rows",
    "audiomae.pooling=5": "does not divide the 16 rows",
    "training.ldm.poolings=[32]": "does not divide the 16 rows",
    "audiomae.num_bins=48 audio.num_fbank_bins=48 audiomae.pooling=2": "does not divide the 16 rows and 3 columns",
    "audiomae.embed_dim=30 gpt2.hidden_size=30": r"audiomae\.embed_dim=30 has to be a multiple of 4",
    "audiomae.decoder_dim=18": r"audiomae\.decoder_dim=18 has to be a multiple of 4",
    "audiomae.num_heads=5": r"audiomae\.num_heads=5 does not divide",
    "audiomae.num_bins=120 audio.num_fbank_bins=120": r"audiomae\.patch_size=16 does not divide num_bins=120",
    "audiomae.mask_ratio=0": r"audiomae\.mask_ratio=0.* hides none of 128 patches",
    "audiomae.mask_ratio=0.003": "hides none of 128 patches",
    "training.audiomae.crop_seconds=1.0": "AudioMAE reads whole clips",
    "audio.hop_length=161": r"audio\.hop_length=161 .* odd or even",
    "audio.hop_length=1024": r"audio\.hop_length=1024 has to be below window_length",
    "audio.sample_rate=8000": r"mel_max_hz=8000\.0, and that at most half of sample_rate=8000",
    "audio.num_mel_bins=60 vocoder.num_mel_bins=60": "num_mel_bins=60 does not divide by the VAE's downsampling of 8",
    "audio.num_mel_bins=80": r"vocoder\.num_mel_bins is 64, but audio\.num_mel_bins is 80",
    "vocoder.sample_rate=48000": r"vocoder\.sample_rate is 48000",
    "training.vae.crop_seconds=0.41": "does not divide",
    "training.vae.crop_seconds=0.001": "too short|does not divide",
    "training.vae.discriminator.num_layers=5": r"discriminator\.num_layers=5 halve 64 frames or mel bins",
    "vae.norm_num_groups=3": r"vae\.norm_num_groups=3 does not divide",
    "training.vocoder.crop_seconds=0.01": r"training\.vocoder\.crop_seconds=0\.01 is too short for audio\.num_fft=1024",
    "training.vocoder.loss_weights.stft=1 training.vocoder.stft_sizes=[65536]": "too long for crops",
    "training.vocoder.crop_seconds=0.04 training.vocoder.period_discriminator.periods=[999]": "periods: longer than",
    "training.vocoder.scale_discriminator.groups=[1,1]": "scale_discriminator: channels, .* of one length",
    "vocoder.upsample_initial_channel=8": r"upsample_initial_channel=8 is halved by each .* give 16 or more",
    "vocoder.resblock_kernel_sizes=[4]": "4 is even",
    "vocoder.resblock_kernel_sizes=[3,5]": "one list for each",
    "vocoder.upsample_kernel_sizes=[16,16,8]": "one entry for each",
    "conditioners.clap.audio_heads=[2]": "audio_heads has to have 2 entries",
    "conditioners.clap.audio_heads=[2,3]": "audio_heads: 3 heads do not divide a width of 16",
    "conditioners.clap.text_heads=3": "text_heads: 3 heads",
    "conditioners.clap.spec_size=100": r"clap\.spec_size=100 is not a multiple",
    "conditioners.clap.hop_length=1": "raise spec_size or hop_length",
    "conditioners.clap.patch_size=64": r"num_mel_bins=64 is not a multiple of 128",
    "conditioners.clap.window_length=65536 conditioners.clap.clip_seconds=1": "window_length=65536 is longer than 1 s",
    "unet.out_channels=4": r"unet\.out_channels is 4, but unet\.in_channels is 8",
    "gpt2.num_positions=8": "conditions and LOA take up to",
    "gpt2.pretrained=openai-community/gpt2": r"hidden_size is 32, but the width of openai-community/gpt2 is 768",
    "diffusion.num_timesteps=3": r"sampling\.num_steps=3 has to be below diffusion\.num_timesteps=3",
    "training.decoder.crop_seconds=0.08": "roughness takes 16 frames",
    "stages=[vae,decoder] training.decoder.sampled_from=[1] sampling.sampler=unipc": "sampled_from: no sampling step",
}


@pytest.mark.parametrize("overrides", SIZES)
def test_sizes_that_a_stage_cannot_be_built_with_are_refused_when_the_file_is_read(overrides):
    with pytest.raises(UserError, match=SIZES[overrides]) as error:
        load_experiment("experiments/smoke.yaml", overrides.split())
    assert "\n" not in str(error.value)


def test_packages_that_are_missing(smoke, tmp_path, monkeypatch):
    experiment = smoke("trainer.loggers=[wandb]", runs=tmp_path)
    monkeypatch.setattr("audioldm2_pl.training.checks.find_spec", lambda name: None)
    with pytest.raises(UserError, match="wandb is not installed"):
        train(experiment)
