"""Files are there whole or not at all, and a disk that fails is one line."""

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from audioldm2_pl.atomic import read_json_object, write_text, written_whole
from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.models.vae import VAEConfig, build_vae


@pytest.fixture
def full() -> Iterator[None]:
    """Files of more than 64 KiB cannot be written, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


WRITERS = {
    "text": lambda path: path.write_text("x" * 100_000),
    "torch": lambda path: torch.save({"a": torch.zeros(10_000), "b": torch.zeros(50_000)}, path),
    "safetensors": lambda path: save_file({"a": torch.zeros(100_000)}, path),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_is_one_line_and_leaves_what_was_there(kind, full, tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with (
        pytest.raises(UserError, match=r"file: cannot be written \(.+\); put that right") as error,
        written_whole(path) as part,
    ):
        WRITERS[kind](part)
    assert "\n" not in str(error.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"] and path.read_text() == "before"


def test_a_part_of_the_model_folder_on_a_full_disk(full, tmp_path):
    folder = ModelFolder(tmp_path)
    with pytest.raises(UserError, match=r"vae: cannot be written"):
        folder.save("vae", build_vae(VAEConfig(block_out_channels=[32, 32], norm_num_groups=4)))
    assert not list(tmp_path.iterdir())


def test_an_error_that_is_not_the_disks_stays_what_it_is(tmp_path):
    with pytest.raises(ZeroDivisionError), written_whole(tmp_path / "file"):
        1 / 0  # noqa: B018


def test_something_in_the_way(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        write_text(tmp_path / "file" / "record.json", "after")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"[" * 100_000, b"\xff\xfe"])
def test_json_that_is_none(content, tmp_path):
    path: Path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        read_json_object(path)
