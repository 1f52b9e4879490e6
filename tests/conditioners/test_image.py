"""The image encoder: one space for pictures, videos and sound; PE-AV as transformers runs it; rows of requests."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from audioldm2_pl.conditioners.image import PEAV, ImageConfig, ImageEncoder, PeAudioVideoModel, SmallPair
from audioldm2_pl.conditioners.tokenizers import build_roberta_tokenizer
from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.folder import ModelFolder

RATE = 16_000
SIZES = {"projection_dim": 16, "image_size": 32, "num_mel_bins": 32, "channels": [16, 16, 16, 16]}


def picture(seed: int, height: int = 40, width: int = 56) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def tone(hz: float, num_samples: int = 8_000) -> torch.Tensor:
    return 0.3 * torch.sin(2 * torch.pi * hz * torch.arange(num_samples) / RATE)


@pytest.fixture(scope="module")
def pair() -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder.build(ImageConfig(pretrained=None, **SIZES))


@pytest.fixture(scope="module")
def pe_av_folder(tmp_path_factory):
    """A PE-AV with random weights in the files of a published one."""
    torch.manual_seed(0)
    encoder = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8,
    }  # fmt: skip
    dac = {"model_type": "dac", "encoder_hidden_size": 4, "downsampling_ratios": [2, 5], "codebook_dim": 8}
    vision = {
        "model_type": "timm_wrapper", "architecture": "vit_pe_core_tiny_patch16_384", "num_classes": 12,
        "global_pool": "map", "model_args": {"depth": 1, "embed_dim": 24, "num_heads": 2, "img_size": 32},
    }  # fmt: skip
    config = transformers.PeAudioVideoConfig(
        text_config={
            "model_type": "modernbert", "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": 50, "pad_token_id": 0,
        },
        audio_video_config={
            **encoder,
            "audio_config": {"model_type": "pe_audio_encoder", **encoder, "dac_config": dac},
            "video_config": {"model_type": "pe_video_encoder", **encoder, "vision_config": vision},
        },
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("pe_av")
    transformers.PeAudioVideoModel(config).save_pretrained(folder)
    transformers.PeAudioFeatureExtractor(sampling_rate=RATE, hop_length=10).save_pretrained(folder)
    transformers.PeVideoVideoProcessor(
        size={"height": 32, "width": 32},
        do_resize=True,
        do_rescale=True,
        do_normalize=True,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        do_sample_frames=False,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pe_av(pe_av_folder) -> ImageEncoder:
    return ImageEncoder.build(ImageConfig(pretrained=str(pe_av_folder)))


@pytest.fixture(params=["pair", "pe_av"])
def encoder(request) -> ImageEncoder:
    return request.getfixturevalue(request.param)


@torch.no_grad()
def test_one_unit_vector_for_each_picture_video_and_sound(encoder):
    pictures, videos = [picture(0), picture(1, 33, 90)], [np.stack([picture(i), picture(i + 5)]) for i in range(2)]
    sounds = torch.stack([tone(300), tone(900)])
    for condition in (
        encoder.encode_images(pictures), encoder.encode_videos(videos), encoder.encode_audio(sounds, RATE),
    ):  # fmt: skip
        assert condition.embedding.shape == (2, 1, encoder.width) and condition.mask.all()
        torch.testing.assert_close(condition.embedding.norm(dim=-1), torch.ones(2, 1))
        assert not torch.allclose(*condition.embedding)


@torch.no_grad()
def test_a_clip_has_one_embedding_alone_and_in_a_batch(encoder):
    pictures, sounds = [picture(0), picture(1)], torch.stack([tone(300), tone(900)])
    for i in range(2):
        torch.testing.assert_close(
            encoder.encode_images(pictures).embedding[i], encoder.encode_images(pictures[i : i + 1]).embedding[0]
        )
        torch.testing.assert_close(
            encoder.encode_audio(sounds, RATE).embedding[i], encoder.encode_audio(sounds[i : i + 1], RATE).embedding[0]
        )


@torch.no_grad()
def test_a_picture_may_be_an_array_a_tensor_or_pillows(encoder):
    array = picture(0)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    first, *others = encoder.encode_images([array, tensor, tensor / 255, Image.fromarray(array)]).embedding
    for other in others:
        torch.testing.assert_close(other, first, atol=0, rtol=0)
    batch = encoder.encode({"image": tensor[None].repeat(2, 1, 1, 1)}).embedding
    torch.testing.assert_close(batch, first.expand(2, -1, -1))


@torch.no_grad()
def test_a_still_video_is_its_picture(pair):
    still = np.stack([picture(0)] * 3)
    torch.testing.assert_close(pair.encode_videos([still]).embedding, pair.encode_images([picture(0)]).embedding)


@torch.no_grad()
def test_pe_av_gives_what_transformers_own_forward_gives(pe_av, pe_av_folder):
    video, sound = np.stack([picture(i, 32, 32) for i in range(3)]), tone(440, 1_003)
    extractor = transformers.PeAudioFeatureExtractor.from_pretrained(pe_av_folder)
    processor = transformers.PeVideoVideoProcessor.from_pretrained(pe_av_folder)
    audio = extractor([sound.numpy()], sampling_rate=RATE, return_tensors="pt")
    pixels = processor(videos=[torch.from_numpy(video).permute(0, 3, 1, 2)], return_tensors="pt")
    assert audio["input_values"].shape == (1, 1, 1_010)
    model = PeAudioVideoModel.from_pretrained(pe_av_folder)
    expected = model(input_values=audio["input_values"], pixel_values_videos=pixels["pixel_values_videos"])
    for found, vector in (
        (pe_av.encode_audio(sound[None], RATE), expected.audio_embeds),
        (pe_av.encode_videos([video]), expected.video_embeds),
    ):
        torch.testing.assert_close(
            found.embedding[:, 0], torch.nn.functional.normalize(vector, dim=1), atol=1e-5, rtol=1e-4
        )


def test_the_files_of_a_published_processor_are_read_too(pe_av_folder, tmp_path):
    """transformers 5 saves a processor's parts nested in processor_config.json."""
    parts = [kind.from_pretrained(pe_av_folder) for kind in (transformers.PeAudioFeatureExtractor,
                                                             transformers.PeVideoVideoProcessor)]  # fmt: skip
    PeAudioVideoModel.from_pretrained(pe_av_folder).save_pretrained(tmp_path)
    transformers.PeAudioVideoProcessor(*parts, build_roberta_tokenizer(8)).save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").is_file()
    model = PEAV.from_pretrained(tmp_path)
    assert model.feature_extractor.hop_length == 10 and model.video_processor.size["height"] == 32


@torch.no_grad()
def test_saved_in_a_model_folder_and_opened(encoder, tmp_path):
    folder = ModelFolder(tmp_path)
    for part, content in encoder.parts().items():
        folder.save(part, content)
    opened = folder.conditioner("image")
    assert type(opened.model) is type(encoder.model) and opened.width == encoder.width
    assert folder.conditioner_config("image")["projection_dim"] == encoder.width
    for call in ("encode_images", "encode_audio"):
        inputs = ([picture(0)],) if call == "encode_images" else (tone(440)[None], RATE)
        torch.testing.assert_close(
            getattr(opened, call)(*inputs).embedding, getattr(encoder, call)(*inputs).embedding, atol=0, rtol=0
        )


@torch.no_grad()
def test_rows_of_requests(pair):
    """A picture, a video, a sound, and nothing: each row is what its request gives, and nothing is masked."""
    video, sound = np.stack([picture(1), picture(2)]), tone(440)
    inputs = {
        "text": [""] * 4, "image": [picture(0), None, None, None], "video": [None, video, None, None],
        "audio": [None, None, sound, None], "sample_rate": RATE,
    }  # fmt: skip
    condition = pair.encode(inputs)
    expected = [pair.encode_images([picture(0)]), pair.encode_videos([video]), pair.encode_audio(sound[None], RATE)]
    for row, other in enumerate(expected):
        torch.testing.assert_close(condition.embedding[row], other.embedding[0])
    assert condition.mask[:, 0].tolist() == [True, True, True, False]
    assert not condition.embedding[3].any()
    assert torch.equal(pair.encode({"text": ["", ""]}).mask, torch.zeros(2, 1, dtype=torch.bool))


@torch.no_grad()
def test_training_hears_the_sound_and_its_stored_features(pair):
    sound = torch.stack([tone(300), tone(900)])
    pair.reads = "waveform"
    try:
        heard = pair.encode({"waveform": sound, "sample_rate": RATE, "image": [picture(0), picture(1)]})
        assert torch.equal(heard.embedding, pair.encode_audio(sound, RATE).embedding) and pair.stored == ("image",)
        features = {"image": torch.ones(2, pair.width)}
        assert torch.equal(pair.encode({"features": features}).embedding[:, 0], features["image"])
    finally:
        pair.reads = "image"
    assert pair.stored == ()


def test_widths_are_known_before_anything_is_loaded(pe_av_folder):
    assert ImageConfig().width == 1024
    assert ImageConfig(pretrained=str(pe_av_folder)).width == 24
    assert ImageConfig(pretrained=None, projection_dim=7).width == 7


@pytest.mark.parametrize("sizes", [{"channels": [16, 16, 16]}, {"channels": [16, 16, 16, 20]}, {"depths": [1] * 5}])
def test_sizes_that_do_not_run_are_refused(sizes):
    with pytest.raises(UserError, match=r"conditioners\.image"):
        ImageConfig(pretrained=None, **sizes)


def test_a_missing_checkpoint_is_one_plain_line(tmp_path):
    with pytest.raises(UserError, match="cannot load") as raised:
        ImageEncoder.build(ImageConfig(pretrained=str(tmp_path / "nowhere")))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
def test_pairs_of_other_rates_run(rate):
    pair = SmallPair(ImageConfig(pretrained=None, sample_rate=rate, **SIZES))
    assert pair.embed_sound(tone(440)[None], RATE).shape == (1, 16)
