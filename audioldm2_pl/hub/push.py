"""A run's model with its card as a repository of the model hub."""

import shutil
from pathlib import Path

from audioldm2_pl.atomic import link_file, write_text
from audioldm2_pl.audio import save_waveform
from audioldm2_pl.config import ExperimentConfig, to_yaml
from audioldm2_pl.errors import UserError, reason_of
from audioldm2_pl.generation import Generation
from audioldm2_pl.hub.card import write_card
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.pipeline import AudioLDM2
from audioldm2_pl.prompts import file_name
from audioldm2_pl.provenance import Opened, Provenance
from audioldm2_pl.shards.format import captions_of


def build_repository(experiment: ExperimentConfig, repository: str, licence: str, num_sounds: int) -> Path:
    """Writes `runs/<name>/hub`: links to the model's files, README.md, experiment.yaml and some generated sounds.

    Raises UserError where the model is missing or not whole, or a name is no repository's.
    """
    check_repository(repository)
    if num_sounds < 0:
        raise UserError(f"--sounds {num_sounds}: give 0 or more")
    model = ModelFolder(experiment.model_folder)
    if not model.has("unet") or not model.has("vae") or not model.has("vocoder"):
        raise UserError(f"{model.path}: is no whole model; train the experiment first")
    folder = experiment.run_folder / "hub"
    new = folder.with_name(".hub.part")
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(model.path.resolve(), new, copy_function=link_file, ignore=shutil.ignore_patterns(".*"))
    sounds = make_sounds(experiment, new, num_sounds, repository)
    write_text(new / "experiment.yaml", to_yaml(experiment))
    write_text(new / "README.md", write_card(experiment, repository, licence, sounds))
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)
    return folder


def check_repository(repository: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"{repository}: is no repository's name ({reason_of(error)}); say user/name") from None
    if repository.count("/") != 1:
        raise UserError(f"{repository}: is no repository's name; say user/name")


def make_sounds(experiment: ExperimentConfig, folder: Path, count: int, repository: str) -> dict[str, str]:
    """Generates `sounds/<key>.wav` of the first captions of the test split => file -> caption; none without a split."""
    if count == 0 or experiment.data.test is None:
        return {}
    if not (captions := first_captions(experiment, count)):
        return {}
    model = AudioLDM2.from_pretrained(folder)
    if not model.needs_prompt:  # it makes sound of a transcript or a picture, not of captions
        return {}
    origin = Provenance.of(repository, folder, Opened(), model.sampling)
    requests = [Generation(text, seed=seed) for seed, text in enumerate(captions.values())]
    for key, request, waveform in zip(captions, requests, model.generate(requests)):
        comment = origin.with_request(request).comment()
        save_waveform(folder / "sounds" / f"{key}.wav", waveform, model.sample_rate, comment)
    return {f"sounds/{key}.wav": text for key, text in captions.items()}


def first_captions(experiment: ExperimentConfig, count: int) -> dict[str, str]:
    """File name -> caption of the first clips of the test split, each caption once; none where it is not here."""
    try:
        split = experiment.data.open(str(experiment.data.test))
    except UserError:
        return {}
    texts = (caption.strip() for clip in split.clips_without_sound() for caption in captions_of(clip)[:1])
    found: dict[str, str] = {}
    for text in texts:
        if text and text not in found.values():
            found[f"{len(found) + 1}_{file_name(text)}"] = text
        if len(found) == count:
            break
    return found


def push(folder: Path, repository: str, private: bool) -> str:
    """Uploads a folder => the repository's address. Raises UserError where the hub does not take it."""
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="audioldm2 push")
    except Exception as error:  # of the network, the token or the hub
        raise UserError(
            f"{repository}: the hub did not take it ({reason_of(error)}); log in with `hf auth login`, then run the "
            f"same command, or upload {folder} yourself"
        ) from None
    return str(address)
