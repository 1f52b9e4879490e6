"""Shards from a server that breaks connections, and the copies that are kept of them."""

import importlib.util
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest
import torch

from audioldm2_pl.audio import AudioConfig
from audioldm2_pl.errors import UserError
from audioldm2_pl.shards import remote as remote_shards
from audioldm2_pl.shards.datamodule import AudioShards, DataConfig
from audioldm2_pl.shards.reader import ShardFolder
from audioldm2_pl.shards.remote import RemoteFolder, make_room, stream
from audioldm2_pl.shards.stream import ClipStream

AUDIO = AudioConfig(clip_seconds=2.56)


class Server:
    """Serves a folder; `drops` lists after how many bytes each of the next answers breaks off (None: not at all)."""

    def __init__(self, folder):
        self.folder = folder
        self.drops: list[int | None] = []
        self.ranges = True
        self.tag = '"1"'
        self.status = 200
        self.asked: list[tuple[str, int]] = []  # path, first byte
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = self.folder / request.path.lstrip("/")
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        self.asked.append((path.name, start))
        if self.status != 200 or not path.is_file():
            request.send_error(self.status if self.status != 200 else 404)
            return
        content = path.read_bytes()
        size = len(content)
        if start and self.ranges:
            content = content[start:]
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        else:
            request.send_response(200)
        request.send_header("ETag", self.tag)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        drop = self.drops.pop(0) if self.drops else None
        request.wfile.write(content[:drop])
        request.wfile.flush()
        request.close_connection = True


@pytest.fixture
def server(shards, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(remote_shards, "PAUSE_SECONDS", 0.001)
    server = Server(shards)
    yield server
    server.http.shutdown()
    server.http.server_close()


def clips_of(folder: ShardFolder, start: int | None = None, count: int = 12) -> list[dict]:
    clips = ClipStream([folder], AUDIO, AUDIO.num_samples, 0, 2, start)
    return [clip for clip, _ in zip(clips, range(count))]


def same(a: list[dict], b: list[dict]) -> bool:
    return len(a) == len(b) and all(
        x["key"] == y["key"] and x["text"] == y["text"] and torch.equal(x["waveform"], y["waveform"])
        for x, y in zip(a, b)
    )


def test_a_broken_connection_goes_on_at_the_byte_where_it_broke(server, shards):
    content = (shards / "train" / "000001.tar").read_bytes()
    server.drops = [100_000, 1, 30_000, None]
    assert b"".join(stream(f"{server.url}/train/000001.tar")) == content
    assert [start for _, start in server.asked] == [0, 100_000, 100_001, 130_001]


def test_a_server_without_ranges_sends_all_again(server, shards):
    server.ranges = False
    server.drops = [100_000, 150_000, None]
    assert b"".join(stream(f"{server.url}/train/000001.tar")) == (shards / "train" / "000001.tar").read_bytes()


def test_a_file_that_changes_under_way_is_not_mixed(server):
    pieces = stream(f"{server.url}/train/000001.tar")
    server.drops = [100_000]
    first = next(pieces)
    server.tag = '"2"'
    with pytest.raises(UserError, match="changed while it was read"):
        for piece in pieces:
            first += piece


@pytest.mark.parametrize(
    "status, tries, text", [(404, 1, "no such file"), (403, 1, "403"), (503, remote_shards.TRIES, "503")]
)
def test_a_refusal_is_one_plain_line(server, status, tries, text):
    server.status = status
    with pytest.raises(UserError, match=f"{server.url}/train/index.json: cannot be read at byte 0 .*{text}") as caught:
        ShardFolder(f"{server.url}/train")
    assert "\n" not in str(caught.value) and len(server.asked) == tries


def test_shards_from_a_bad_line_are_those_on_the_disk(server, shards, tmp_path):
    remote = RemoteFolder(f"{server.url}/train/", tmp_path / "cache")
    server.drops = [200, None, 50_000, 60_000, None, 300_000, None]
    folder = ShardFolder(f"{server.url}/train/", remote)
    assert same(clips_of(folder), clips_of(ShardFolder(shards / "train")))
    assert folder.shard_path(0) == f"{server.url}/train/000000.tar"
    # each shard came once: the second pass and another reader find the copies
    num_asked = len(server.asked)
    assert same(clips_of(folder, 0), clips_of(ShardFolder(shards / "train"), 0))
    assert same(clips_of(ShardFolder(f"{server.url}/train", remote)), clips_of(folder))
    assert [name for name, _ in server.asked[num_asked:]] == ["index.json"]


@pytest.mark.parametrize("num_workers", [0, 3])
def test_all_processes_of_a_machine_share_one_fetch(num_workers, server, shards, tmp_path):
    config = DataConfig([f"{server.url}/train"], f"{server.url}/test", cache=str(tmp_path), num_workers=num_workers)
    local = DataConfig([str(shards / "train")], num_workers=num_workers)
    batches = [
        [batch["key"] for batch, _ in zip(AudioShards(c, AUDIO, 0, 2).train_dataloader(), range(6))]
        for c in (config, local)
    ]
    assert batches[0] == batches[1]
    tars = [name for name, _ in server.asked if name.endswith(".tar")]
    assert len(tars) == len(set(tars)) == 3  # two of them fetched ahead of their first clip
    keys = [key for batch in AudioShards(config, AUDIO, 0, 3).val_dataloader() for key in batch["key"]]
    assert len(keys) == len(set(keys)) == 4


def test_a_cache_for_fewer_shards_than_are_read_at_a_time_is_refused(server, shards, tmp_path):
    sizes = sorted(path.stat().st_size / 2**30 for path in (shards / "train").glob("*.tar"))
    config = {"train": [f"{server.url}/train"], "cache": str(tmp_path), "cache_gib": 1.01 * sum(sizes[1:])}
    with pytest.raises(UserError, match=r"data\.cache_gib=.*: the 3 shards .* lower data\.interleave_shards"):
        AudioShards(DataConfig(**config, interleave_shards=2), AUDIO, 0, 2)
    with pytest.raises(UserError, match=r"data\.cache_gib"):
        AudioShards(DataConfig(**config), AUDIO, 0, 2)
    data = AudioShards(DataConfig(**config, interleave_shards=1), AUDIO, 0, 2)
    assert len(list(zip(data.train_dataloader(), range(12)))) == 12


def test_the_cache_keeps_to_its_bound(server, shards, tmp_path):
    size = (shards / "train" / "000000.tar").stat().st_size
    folder = ShardFolder(f"{server.url}/train", RemoteFolder(f"{server.url}/train", tmp_path, 1.5 * size / 2**30))
    expected = clips_of(ShardFolder(shards / "train"))
    assert same(clips_of(folder), expected)
    assert len(list(tmp_path.glob("*.tar"))) == 1
    assert same(clips_of(folder), expected)  # fetched again
    assert not list(tmp_path.glob("*.part"))


def test_the_least_recently_opened_shards_go_first(tmp_path):
    for age, name in enumerate("abcd"):
        (tmp_path / f"{name}.tar").write_bytes(bytes(100))
        os.utime(tmp_path / f"{name}.tar", (1e9 - age, 1e9 - age))
    (tmp_path / "killed.part").write_bytes(bytes(100))
    os.utime(tmp_path / "killed.part", (1e9, 1e9))
    make_room(tmp_path, 250, tmp_path / "d.tar")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "d.tar"]


def test_a_cache_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").touch()
    folder = ShardFolder(f"{server.url}/train", RemoteFolder(f"{server.url}/train", tmp_path / "file"))
    with pytest.raises(UserError, match=r"data\.cache"):
        clips_of(folder)


def test_any_store_that_fsspec_knows_is_read(shards, tmp_path):
    store = fsspec.filesystem("memory")
    for path in (shards / "train").iterdir():
        store.pipe(f"/bucket/train/{path.name}", path.read_bytes())
    folder = ShardFolder("memory://bucket/train", RemoteFolder("memory://bucket/train", tmp_path))
    assert same(clips_of(folder), clips_of(ShardFolder(shards / "train")))
    with pytest.raises(UserError, match=r"memory://bucket/none/index\.json: cannot be read at byte 0 .no such file"):
        ShardFolder("memory://bucket/none")


class Breaking:
    """An open file of a store whose line breaks after so many bytes."""

    def __init__(self, file, budget: int):
        self.file, self.budget, self.size = file, budget, file.size

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def seek(self, place: int) -> None:
        self.file.seek(place)

    def read(self, size: int) -> bytes:
        if self.budget <= 0:
            raise OSError("reset by peer")
        piece = self.file.read(min(size, self.budget))
        self.budget -= len(piece)
        return piece


def test_a_store_goes_on_where_it_broke(monkeypatch):
    store = fsspec.filesystem("memory")
    store.pipe("/bucket/file", bytes(range(256)) * 1000)
    monkeypatch.setattr(remote_shards, "PAUSE_SECONDS", 0.001)
    budgets = [100_000, 50_000, 0, 1_000_000]
    whole_open = type(store).open
    opener = lambda self, *args, **kwargs: Breaking(whole_open(self, *args, **kwargs), budgets.pop(0))  # noqa: E731
    monkeypatch.setattr(type(store), "open", opener)
    assert [len(piece) for piece in stream("memory://bucket/file")] == [100_000, 50_000, 106_000]


@pytest.mark.skipif(importlib.util.find_spec("s3fs") is not None, reason="s3fs is there")
def test_a_missing_package_is_named():
    with pytest.raises(UserError, match=r"s3://bucket/train/index\.json: needs a further package: pip install s3fs"):
        ShardFolder("s3://bucket/train")


def test_an_unknown_kind_of_url_is_refused():
    with pytest.raises(UserError, match=r"nonsense://a/index\.json: cannot be read"):
        ShardFolder("nonsense://a")


def test_commands_run_only_where_allowed(shards, tmp_path, monkeypatch):
    command = f"pipe:touch {tmp_path}/ran; cat {shards}/train/{{name}}"
    with pytest.raises(UserError, match="--allow-pipe"):
        AudioShards(DataConfig([command]), AUDIO, 0, 2)
    with pytest.raises(UserError, match="AUDIOLDM2_ALLOW_PIPE=1"):
        ShardFolder(command)
    assert not (tmp_path / "ran").exists()
    monkeypatch.setenv("AUDIOLDM2_ALLOW_PIPE", "1")
    config = DataConfig([command], cache=str(tmp_path / "cache"))
    assert same(clips_of(AudioShards(config, AUDIO, 0, 2).train[0]), clips_of(ShardFolder(shards / "train")))
    assert (tmp_path / "ran").exists()


def test_workers_may_run_commands_too(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("AUDIOLDM2_ALLOW_PIPE", "1")
    config = DataConfig([f"pipe:cat {shards}/train/{{name}}"], num_workers=1, cache=str(tmp_path))
    assert len(next(iter(AudioShards(config, AUDIO, 0, 2).train_dataloader()))["key"]) == 2


@pytest.mark.parametrize("command, text", [("pipe:cat x", "{name}"), ("pipe:exit 3; {name}", "exit code 3")])
def test_a_command_that_fails_is_named(command, text, tmp_path, monkeypatch):
    monkeypatch.setenv("AUDIOLDM2_ALLOW_PIPE", "1")
    with pytest.raises(UserError, match=text):
        ShardFolder(command, RemoteFolder(command, tmp_path))
