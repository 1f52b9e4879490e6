"""Files that tell how they were made, and are made again."""

import json
import shutil

import pytest
import soundfile

from audioldm2_pl.audio import save_waveform
from audioldm2_pl.cli import main
from audioldm2_pl.errors import UserError
from audioldm2_pl.provenance import read_provenance
from audioldm2_pl.tags import read_comment


@pytest.fixture(scope="module")
def generated(smoke_run, tmp_path_factory):
    """Two clips of one batch, a model beside them that may be changed, and an edit of the first clip."""
    folder = tmp_path_factory.mktemp("generated")
    model = shutil.copytree(smoke_run.model_folder, folder / "model")
    assert main(["generate", str(model), "a bell", "wind", "--steps", "2", "--seed", "5", "--output", str(folder)]) == 0
    source = str(folder / "0001_a_bell.wav")
    span = ["--between", "0.5", "1", "--steps", "2"]
    assert main(["edit", str(model), source, "rain", *span, "--output", str(folder / "edited.flac")]) == 0
    return folder


def test_a_clip_tells_how_it_was_made(generated, capsys):
    assert main(["show", str(generated / "0002_wind.wav")]) == 0
    said = capsys.readouterr().out
    assert "prompt  wind" in said and "seed  6" in said and "num_steps=2, guidance_scale=3.0" in said
    assert f"{generated / 'model'} (here; digest" in said and "licences" in said


@pytest.mark.parametrize("name", ["0001_a_bell.wav", "0002_wind.wav", "edited.flac"])
def test_a_file_is_made_again(name, generated, tmp_path, capsys):
    again = tmp_path / name
    assert main(["show", str(generated / name), "--again", str(again)]) == 0
    assert "the same samples" in capsys.readouterr().out or name == "0002_wind.wav"  # in a batch of two, it was
    first, second = (soundfile.read(path, dtype="int16")[0].astype(int) for path in (generated / name, again))
    assert first.shape == second.shape and abs(first - second).max() <= 4 and abs(first).max() > 4
    assert read_comment(again) == read_comment(generated / name)


def test_another_model_or_source_is_refused(generated, smoke_run, tmp_path, capsys):
    moved = shutil.copytree(generated, tmp_path / "moved")
    clip, output = str(moved / "0001_a_bell.wav"), str(tmp_path / "again.wav")
    config = moved / "model" / "unet" / "config.json"
    config.write_text(config.read_text() + "\n")
    assert main(["show", clip, "--again", output, "--model", str(moved / "model")]) == 2
    assert "is not the model that made the sound" in capsys.readouterr().err
    assert main(["show", clip, "--again", output, "--model", str(smoke_run.model_folder)]) == 0
    source = generated / "0001_a_bell.wav"
    kept = source.read_bytes()
    try:
        source.write_bytes(kept + b"\0\0")
        assert main(["show", str(generated / "edited.flac"), "--again", output]) == 2
        assert "has changed since the sound was made with it" in capsys.readouterr().err
    finally:
        source.write_bytes(kept)


@pytest.mark.parametrize(
    ("comment", "said"),
    [
        ("", "does not tell how it was made"),
        ("a holiday", "does not tell"),
        ("[" * 100_000, "does not tell"),
        ('{"audioldm2_pl": 3}', "its comment is damaged"),
        ('{"audioldm2_pl": {"version": "1"}}', "its comment is damaged"),
        ("steps", "num_steps=-3 has to be"),
        ("seed", "seed='0' is not a whole number"),
    ],
)
def test_a_strange_comment_is_one_line(comment, said, generated, tmp_path):
    if comment in ("steps", "seed"):
        content = json.loads(read_comment(generated / "0001_a_bell.wav") or "")
        content["audioldm2_pl"]["sampling" if comment == "steps" else "request"] |= (
            {"num_steps": -3} if comment == "steps" else {"seed": "0"}
        )
        comment = json.dumps(content)
    path = tmp_path / "a.wav"
    save_waveform(path, soundfile.read(generated / "0001_a_bell.wav")[0], 16_000, comment)
    with pytest.raises(UserError, match=said) as error:
        read_provenance(path)
    assert "\n" not in str(error.value)


def test_the_output_has_to_be_a_sound_file(generated, tmp_path, capsys):
    assert main(["show", str(generated / "0001_a_bell.wav"), "--again", str(tmp_path / "a.mp3")]) == 2
    assert "--again" in capsys.readouterr().err
