"""A hub id in a model folder's place: what is fetched of it, what is opened of the cache, and what is never run."""

import hashlib
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from audioldm2_pl.conditioners.pretrained import load_pretrained
from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.hub.parts import find_model, load_part
from audioldm2_pl.models.audiomae import AudioMAE, AudioMAEConfig
from audioldm2_pl.models.vae import VAEConfig, build_vae

TINY_MAE = AudioMAEConfig(
    num_frames=32, num_bins=32, embed_dim=8, depth=1, num_heads=2, decoder_dim=8, decoder_depth=1, decoder_heads=2
)
PARTS = {
    "vae": lambda: build_vae(VAEConfig(block_out_channels=[4], norm_num_groups=2, layers_per_block=1)),
    "language_model": lambda: GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, n_positions=8, vocab_size=1)),
    "audiomae": lambda: AudioMAE(TINY_MAE),
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def bin_of(path):
    """The name of a .safetensors before there were any."""
    return path.with_name("pytorch_model.bin" if path.stem == "model" else f"{path.stem}.bin")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model folder of three parts, two of which hold a .bin alone, and the third one beside its safetensors."""
    folder = ModelFolder(tmp_path_factory.mktemp("model"))
    torch.manual_seed(0)
    for part, build in PARTS.items():
        folder.save(part, build())
        (path,) = (folder.path / part).glob("*.safetensors")
        torch.save(load_file(path), bin_of(path))
        if part != "language_model":
            path.unlink()
    return folder.path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub's, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.fixture
def hub(model, cache, monkeypatch):
    """A hub that has me/model; the list of files that are fetched of it."""
    names = [str(path.relative_to(model)) for path in model.rglob("*") if path.is_file()]
    fetched: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            content = self.answer()
            self.wfile.write(content)

        def answer(self) -> bytes:
            path = self.path.partition("?")[0]
            if path.startswith("/api/models/me/model/tree/"):
                found = [{"type": "file", "path": n, "size": (model / n).stat().st_size, "oid": COMMIT} for n in names]
                content = json.dumps(found).encode()
            elif path.startswith("/api/"):
                found = {"id": "me/model", "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
                content = json.dumps(found).encode()
            else:
                name = path.removeprefix(f"/me/model/resolve/{COMMIT}/")
                fetched.append(name)
                content = (model / name).read_bytes()
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            return content

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + template)
    yield fetched
    server.shutdown()


def check_parts(found, model) -> None:
    for part in PARTS:
        ours, theirs = (load_part(folder, part).state_dict() for folder in (found, model))
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items()), part


def test_pickled_weights_are_fetched_where_there_are_no_others(hub, model, monkeypatch):
    found = find_model("me/model")
    assert {name for name in hub if name.endswith((".bin", ".safetensors"))} == {
        "vae/diffusion_pytorch_model.bin",
        "audiomae/pytorch_model.bin",
        "language_model/model.safetensors",
    }
    check_parts(found, model)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert find_model("me/model") == found


def test_a_cache_that_other_programs_have_filled_is_opened(cache, model):
    """As diffusers leaves it: what it does without was never fetched, though the list of files has it."""
    repository = cache / "models--me--model"
    files = [path for path in model.rglob("*") if path.is_file()]
    for path in files:
        blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        link = repository / "snapshots" / COMMIT / path.relative_to(model)
        for folder in (blob.parent, link.parent):
            folder.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(path.read_bytes())
        link.symlink_to(os.path.relpath(blob, link.parent))
    names = [*(str(path.relative_to(model)) for path in files), "vae/diffusion_pytorch_model.fp16.safetensors"]
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "trees").mkdir()
    listed = {"format_version": 1, "files": {name: {"size": 1, "blob_id": COMMIT} for name in names}}
    (repository / "trees" / f"{COMMIT}.json").write_text(json.dumps(listed))
    check_parts(find_model("me/model"), model)
    folder = ModelFolder(cache.parent / "run", given={"vae": "me/model"}, started={"audiomae": "me/model"})
    folder.take_given()
    assert all(torch.equal(a, b) for a, b in zip(folder.load("vae").parameters(), load_part(model, "vae").parameters()))
    assert folder.start("audiomae") is not None


def test_what_is_not_cached_is_one_line(cache):
    with pytest.raises(UserError, match="nobody/nothing: no such folder, and the hub does not give it"):
        find_model("nobody/nothing")
    with pytest.raises(UserError, match="cannot load GPT2LMHeadModel from 'nobody/nothing'"):
        load_pretrained(GPT2LMHeadModel, "nobody/nothing")


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("part", PARTS)
def test_pickled_weights_run_no_code(part, tmp_path):
    folder = ModelFolder(tmp_path / "model")
    folder.save(part, PARTS[part]())
    (path,) = (folder.path / part).glob("*.safetensors")
    path.unlink()
    torch.save({"weight": Payload(tmp_path / "ran")}, bin_of(path))
    with pytest.raises(
        UserError, match=rf"{part}: cannot be loaded \(.*\.bin is damaged, or not weights alone"
    ) as error:
        load_part(folder.path, part)
    assert "\n" not in str(error.value) and "weights_only" not in str(error.value)
    if part == "language_model":
        with pytest.raises(UserError, match="cannot load GPT2LMHeadModel"):
            load_pretrained(GPT2LMHeadModel, str(folder.path / part))
    assert not (tmp_path / "ran").exists()
