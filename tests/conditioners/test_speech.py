"""Speech: the table of symbols, phonemes, the encoder, and a small speech model trained, saved and opened."""

import itertools
import json
import shutil
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import soundfile
import torch

from audioldm2_pl.cli import main
from audioldm2_pl.conditioners.phonemes import PAD, STOP, SYMBOLS, PhonemeConfig, PhonemeEncoder, clean, phonemes_of
from audioldm2_pl.config import STAGES
from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.pipeline import AudioLDM2
from audioldm2_pl.shards.datamodule import AudioShards
from audioldm2_pl.training import run
from audioldm2_pl.training.stage import Stage
from data.shards import Clip, write_shards

pytest.importorskip("phonemizer")
pytest.importorskip("espeakng_loader")

SPEECH = (
    "conditioners.phonemes={hidden_size: 16, num_layers: 1, num_heads: 2, ffn_dim: 16, max_length: 40}",
    "conditioners.clap.hears=waveform",
    "gpt2.conditions=[clap,phonemes]",
    "unet.conditions=[loa]",
    "training.ldm.poolings=[4]",
)
TRANSCRIPTS = ["Hello there.", "A bell rings twice.", "Rain, again?", "Mr. Smith says no."]


@pytest.fixture(scope="module")
def speech_run(smoke, tmp_path_factory):
    """The smoke experiment as a speech system, all stages, on clips that have transcripts and no captions."""
    from audioldm2_pl.training.run import train

    folder = tmp_path_factory.mktemp("spoken")
    rng = np.random.default_rng(0)
    clips = (
        Clip(key=f"said-{i}", transcript=text, waveform=0.1 * rng.standard_normal(40_960))
        for i, text in enumerate(TRANSCRIPTS)
    )
    write_shards(clips, folder / "train", num_workers=1)
    samples = ("trainer.sample_every_batches=4", "trainer.sample_clips=2")
    experiment = smoke(*SPEECH, *samples, f"data.train=[{folder}/train]", "data.test=null")
    train(experiment)
    return experiment


@pytest.fixture(scope="module")
def model(speech_run) -> AudioLDM2:
    return AudioLDM2.from_pretrained(speech_run.model_folder)


def test_speech_is_previewed_while_it_trains(speech_run):
    for stage in [name for name in speech_run.stages if STAGES[name].preview is not Stage.preview]:
        names = {path.name for path in (speech_run.run_folder / "samples" / stage).iterdir()}
        assert {"0_reference.wav", "0_0000004.wav", "1_0000004.wav"} <= names


def test_table_of_symbols():
    assert len(SYMBOLS) == 183
    assert (SYMBOLS.index(PAD), SYMBOLS.index(STOP)) == (0, 182)
    assert SYMBOLS[1:17] == ';:,.!?¡¿—…"«»“” ' and SYMBOLS[17] == "A" and SYMBOLS[68] == "z" and SYMBOLS[69] == "ɑ"


def test_cleaning_and_phonemes():
    assert clean("  Mrs. O’Hara—née Dr.\nWho ") == "misess oharanee doctor who"
    assert phonemes_of("Hello, Mr. Smith.") == "həlˈoʊ, mˈɪstɚ smˈɪθ."
    assert set(phonemes_of("The quick brown fox jumps over 13 lazy dogs!")) <= set(SYMBOLS)


def test_other_languages_keep_their_letters(tmp_path):
    assert clean("Schöne  Grüße, Dr. Müller!", "de") == "schöne grüße, dr. müller!"
    assert phonemes_of("Schöne Grüße!", "de") == "ʃˈøːnə ɡɾˈyːsə!"
    encoder = PhonemeEncoder.build(
        PhonemeConfig(language="fr-fr", hidden_size=8, num_layers=1, ffn_dim=8, max_length=16)
    )
    spoken = [SYMBOLS.index(symbol) for symbol in phonemes_of("Où est l'été ?", "fr-fr") if symbol in SYMBOLS]
    assert encoder.tokens([encoder.phonemize("Où est l'été ?")])[0, : len(spoken)].tolist() == spoken
    for part, content in encoder.parts().items():
        content.save_pretrained(tmp_path / part)
    loaded = PhonemeEncoder.open(
        lambda part: type(encoder.parts()[part]).from_pretrained(tmp_path / part)  # type: ignore[attr-defined]
    )
    assert loaded.language == "fr-fr" and not encoder.unread("été")
    with pytest.raises(UserError, match=r"phonemes\.language='fr': did you mean 'fr-"):
        PhonemeConfig(language="fr")


def test_encoder_pads_stops_and_cuts():
    encoder = PhonemeEncoder.build(PhonemeConfig(hidden_size=8, num_layers=1, ffn_dim=8, max_length=16))
    tokens = encoder.tokens([phonemes_of("yes"), phonemes_of("a much longer sentence than sixteen symbols")])
    spoken = phonemes_of("yes")
    assert tokens[0].tolist() == [*map(SYMBOLS.index, spoken), 182, *[0] * (15 - len(spoken))]
    assert tokens.shape == (2, 16) and tokens[1, -1] == 182 and (tokens[1] != 0).all()
    with torch.no_grad():
        condition, alone = encoder(["yes", "no, not at all"]), encoder(["yes"])
    assert condition.embedding.shape == (2, 16, 8) and condition.mask[0].sum() == len(spoken) + 1
    real = condition.mask[0]
    torch.testing.assert_close(condition.embedding[0, real], alone.embedding[0, real])


def test_only_what_gives_vectors_is_trained():
    encoder = PhonemeEncoder.build(PhonemeConfig(hidden_size=8, num_layers=1, ffn_dim=8, max_length=16)).train()
    encoder(["hello"]).embedding.square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_full_size_is_the_published_one():
    with torch.device("meta"):
        encoder = PhonemeEncoder.build(PhonemeConfig())
    shapes = {name: tuple(value.shape) for name, value in encoder.model.text_encoder.state_dict().items()}
    assert shapes["embed_tokens.weight"] == (183, 192)
    assert shapes["encoder.layers.5.feed_forward.conv_1.weight"] == (768, 192, 3)
    assert "encoder.layers.6.layer_norm.weight" not in shapes


def test_gpt2_stage_trains_the_phonemes(speech_run):
    from audioldm2_pl.training.gpt2 import GPT2Finetuning
    from audioldm2_pl.training.joint import JointFinetuning

    folder = ModelFolder(speech_run.model_folder)
    batch = {"text": ["", ""], "transcript": TRANSCRIPTS[:2], "waveform": torch.randn(2, 40_960), "key": ["a", "b"]}
    for kind in (GPT2Finetuning, JointFinetuning):
        stage = kind.build(speech_run, folder).train()
        stage.total(stage.losses(batch)).backward()
        assert stage.phonemes.model.text_encoder.embed_tokens.weight.grad.abs().sum() > 0
        assert stage.loa_generator.projection.learnable_positional_embedding.grad.abs().sum() > 0
        trained = {name for name, parameter in stage.named_parameters() if parameter.requires_grad}
        assert {name for name, parameter in stage.named_parameters() if parameter.grad is not None} >= trained - {
            name for name in trained if name.startswith("unet.")
        }


def test_folder_is_that_of_the_published_speech_models(speech_run):
    index = json.loads((speech_run.model_folder / "model_index.json").read_text())
    assert index["text_encoder_2"] == ["transformers", "VitsModel"]
    assert index["tokenizer_2"] == ["transformers", "VitsTokenizer"]
    projection = json.loads((speech_run.model_folder / "projection_model/config.json").read_text())
    assert projection["use_learned_position_embedding"] and projection["max_seq_length"] == 40


def test_a_transcript_decides_the_sound(model):
    first, again = (model.generate("a woman speaks", num_steps=2, transcript="Hello there.") for _ in range(2))
    assert first.shape == (1, 40_960) and torch.equal(first, again)
    loa = [model.generate_loa(model.encode_conditions(["a woman"], [said])) for said in ("Hello there.", "No.")]
    assert not torch.allclose(loa[0], loa[1], atol=1e-3)


@pytest.mark.parametrize(
    ("transcript", "message"),
    [(None, "--transcript"), (["a", "b"], "transcript: 2 for 1 prompts"), (" ", "give each prompt a transcript")],
)
def test_bad_transcripts_are_plain_errors(model, transcript, message):
    with pytest.raises(UserError, match=message):
        model.generate("a man speaks", num_steps=1, transcript=transcript)


def test_stock_diffusers_says_the_same_loa(model, speech_run):
    pipeline = diffusers.AudioLDM2Pipeline.from_pretrained(speech_run.model_folder, low_cpu_mem_usage=False)
    _, mask, theirs = pipeline.encode_prompt(
        ["a woman speaks"], "cpu", 1, False, transcription=["hello there."],
        max_new_tokens=pipeline.language_model.config.max_new_tokens,
    )  # fmt: skip
    conditions = model.encode_conditions(["a woman speaks"], ["Hello there."])
    assert torch.equal(mask.bool(), conditions["phonemes"].mask)
    torch.testing.assert_close(model.generate_loa(conditions), theirs, atol=1e-4, rtol=0)


def test_phonemes_that_nothing_reads_are_refused(smoke):
    with pytest.raises(UserError, match=r"conditioners\.phonemes: no network reads it; name it in gpt2\.conditions"):
        smoke(SPEECH[0])
    with pytest.raises(UserError, match=r"gpt2\.conditions names phonemes, but conditioners\.phonemes is null"):
        smoke("gpt2.conditions=[clap,phonemes]")


def test_a_text_models_encoder_is_no_phoneme_encoder(smoke_run, speech_run, tmp_path):
    with pytest.raises(UserError, match="not what `from: phonemes` asks for"):
        ModelFolder(tmp_path / "a", given={"phonemes": str(smoke_run.model_folder)}).take_given()
    ModelFolder(tmp_path / "b", given={"phonemes": str(speech_run.model_folder)}).take_given()
    assert isinstance(ModelFolder(tmp_path / "b").conditioner("phonemes"), PhonemeEncoder)


def test_espeak_runs_in_the_data_workers(speech_run):
    data = AudioShards(replace(speech_run.data, num_workers=1), speech_run.audio, seed=0, batch_size=4)
    stage = STAGES["gpt2"].build(speech_run, ModelFolder(speech_run.model_folder)).eval()
    data.phonemize = stage.conditioners["phonemes"].phonemize
    batch = next(iter(data.train_dataloader()))
    assert sorted(batch["phonemes"]) == sorted(map(phonemes_of, TRANSCRIPTS))
    with torch.no_grad():
        from_transcripts = stage.conditioners["phonemes"](batch["transcript"])
        phonemes_of.cache_clear()
        condition = stage.conditioners["phonemes"].encode(batch)
    assert phonemes_of.cache_info().misses == 0
    assert torch.equal(condition.embedding, from_transcripts.embedding) and torch.equal(
        condition.mask, from_transcripts.mask
    )


def test_stages_of_speech_ask_the_workers_for_phonemes(speech_run, tmp_path, monkeypatch):
    experiment = replace(speech_run, runs=str(tmp_path), stages=["gpt2"])
    shutil.copytree(speech_run.run_folder, experiment.run_folder)
    (experiment.run_folder / "stages" / "gpt2.json").unlink()
    seen = []
    encode = PhonemeEncoder.encode
    monkeypatch.setattr(PhonemeEncoder, "encode", lambda self, inputs: seen.append(inputs) or encode(self, inputs))
    run.train(experiment)
    batches = [inputs for inputs in seen if "key" in inputs]
    assert batches and all("phonemes" in batch for batch in batches)


def test_a_long_transcript_is_spoken_part_by_part(model, monkeypatch, tmp_path):
    """Each part reads the phonemes of the one before and its own, and keeps its sound; the seed decides all."""
    asked = []
    encode = PhonemeEncoder.encode
    monkeypatch.setattr(
        PhonemeEncoder, "encode", lambda self, inputs: asked.append(inputs["transcript"][0]) or encode(self, inputs)
    )
    transcript = "Hello there. Rain falls. A bell rings. Wind howls."
    first = model.generate("", transcript=transcript, num_steps=2, seed=3)
    spoken = [text for text in asked if text]
    parts = ["Hello there.", "Rain falls.", "A bell rings.", "Wind howls."]
    assert spoken == [parts[0], *(f"{a} {b}" for a, b in itertools.pairwise(parts))]
    assert first.shape[1] > model.audio.num_samples and torch.isfinite(first).all()
    assert torch.equal(first, model.generate("", transcript=transcript, num_steps=2, seed=3))
    alone = model.generate(["", ""], transcript=[transcript, "Rain."], num_steps=2, seed=[3, 9])
    assert torch.equal(alone[:1, : first.shape[1]], first) and not alone[1, model.audio.num_samples :].any()
    with pytest.warns(UserWarning, match=r"the transcript takes .* s, cut at 3"):
        assert model.generate("", transcript=transcript, num_steps=2, seconds=3.0).shape[1] == 48_000
    assert model.generate("", transcript="Hello there.", num_steps=2).shape[1] == model.audio.num_samples


def test_no_part_of_a_long_transcript_is_cut(model, recwarn):
    model.generate("", transcript="Rain falls on the roof. " * 4, num_steps=1)
    assert not [w for w in recwarn if "cut" in str(w.message)]


def test_files_of_long_transcripts_are_as_long_as_they_take_or_as_asked(model, speech_run, tmp_path):
    """A shorter sound of a batch is padded in the tensor, not in its file; `--seconds` is kept, silence included."""
    said = ["--transcript", "Hello there. Rain falls. A bell rings.", "--steps", "2", "--device", "cpu"]
    command = ["generate", str(speech_run.model_folder), "a man", "a woman", *said]
    assert main([*command, "--output", str(tmp_path / "spoken")]) == 0
    assert main([*command, "--output", str(tmp_path / "asked"), "--seconds", "30"]) == 0
    spoken, asked = (sorted(path.glob("*.wav")) for path in (tmp_path / "spoken", tmp_path / "asked"))
    assert len(spoken) == len(asked) == 2
    waveforms = model.generate(["a man", "a woman"], transcript=said[1], num_steps=2)
    for path, waveform in zip(spoken, waveforms):
        assert soundfile.info(path).frames == int(waveform.nonzero().max()) + 1
    assert [soundfile.info(path).frames for path in asked] == [480_000] * 2
