"""The API over real HTTP, with a function in the model's place that writes a tone."""

import threading
import time

import numpy as np
import pytest
import soundfile
from served import ask, running, until_ended

from audioldm2_pl.audio import save_waveform
from audioldm2_pl.errors import UserError
from audioldm2_pl.serve.jobs import Jobs, Limits

TONE = 0.5 * np.sin(np.arange(16_000) / 10)


def tone(job, progress, path):
    for step in range(1, 4):
        progress(step, 3)
    if job.request["prompt"] == "fail":
        raise UserError("the latent is not finite")
    save_waveform(path, TONE, 16_000, "how it was made")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("served"), tone) as address:
        yield address


def test_a_sound_is_asked_for_followed_and_fetched(server):
    status, job = ask(f"{server}/generate", {"prompt": "a bell", "num_steps": 3, "seed": 7})
    assert status == 202 and job["request"] == {"prompt": "a bell", "seed": 7} and job["sampling"] == {"num_steps": 3}
    events = ask(f"{server}/jobs/{job['id']}/events")[1].decode().strip().split("\n\n")
    assert all(event.startswith("data: {") for event in events) and '"state": "done"' in events[-1]
    for name, head in (("wav", b"RIFF"), ("flac", b"fLaC"), ("mp3", b"\xff")):
        status, sound = ask(f"{server}/jobs/{job['id']}/sound?format={name}")
        assert status == 200 and sound.startswith(head)
        assert b"how it was made" in sound or name == "mp3"
    assert ask(f"{server}/jobs/{job['id']}/log_mel.png")[1].startswith(b"\x89PNG")
    assert ask(f"{server}/jobs")[1][0]["id"] == job["id"]


def test_an_error_of_one_job_is_told_and_the_next_one_runs(server):
    failed, fine = (ask(f"{server}/generate", {"prompt": prompt})[1]["id"] for prompt in ("fail", "a bell"))
    told = until_ended(server, failed)
    assert told["state"] == "failed" and told["error"] == "the latent is not finite"
    assert until_ended(server, fine)["state"] == "done"
    assert ask(f"{server}/jobs/{failed}/sound")[0] == 422


def test_a_recording_is_uploaded_and_edited(server, tmp_path):
    soundfile.write(tmp_path / "a.flac", TONE, 16_000)
    status, told = ask(f"{server}/files", (tmp_path / "a.flac").read_bytes(), X_File_Name="a.flac")
    assert status == 200
    status, job = ask(f"{server}/edit", {"source": told["id"], "between": [[0.2, 0.5]], "prompt": "rain"})
    assert status == 202 and job["editing"] == {"between": [[0.2, 0.5]]}
    assert until_ended(server, job["id"])["state"] == "done"
    assert ask(f"{server}/edit", {"source": job["id"], "vary": 0.5})[0] == 202  # a job's sound is a source, too


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("generate", {"prompt": ""}, 422, "prompt 1 is empty"),
        ("generate", {"prompt": "a", "num_steps": 0}, 422, "num_steps"),
        ("generate", {"prompt": "a", "steps": 3}, 422, "steps"),
        ("generate", {"prompt": "a", "seconds": 61}, 422, "at most 60"),
        ("generate", {"prompt": "a", "num_steps": 201}, 422, "at most 200"),
        ("generate", {"prompt": "a", "seconds": float("nan")}, 422, "seconds"),
        ("generate", {"prompt": "a\ud800"}, 422, "prompt"),
        ("generate", {"prompt": "a", "audio": "../jobs/x.wav"}, 422, "no such file here"),
        ("generate", {"prompt": "a", "image": "/etc/passwd"}, 422, "no such file here"),
        ("generate", [], 422, "dictionary"),
        ("generate", {"prompt": "a" * 300_000}, 413, "at most"),
        ("edit", {"source": "0123456789abcdef", "vary": 0.5}, 422, "no such file here"),
        ("edit", {"source": "0123456789abcdef"}, 422, "choose one of"),
        ("edit", {"vary": 0.5}, 422, "source"),
        ("files", b"", 422, "empty"),
        ("files", b"MZ", 415, "X-File-Name"),
        ("nothing", {}, 404, "Not Found"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(server, path, body, status, said):
    name = "a.wav" if body == b"" else "a.exe"
    found, answer = ask(f"{server}/{path}", body, X_File_Name=name)
    assert found == status and said in answer["error"] and "\n" not in answer["error"]


def test_a_file_that_is_no_recording_is_no_source(server):
    told = ask(f"{server}/files", b"no sound at all", X_File_Name="a.wav")[1]
    status, answer = ask(f"{server}/edit", {"source": told["id"], "vary": 0.5})
    assert status == 422 and "cannot be read" in answer["error"]


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Sec_Fetch_Site": "cross-site"}])
def test_pages_of_other_sites_are_kept_out(server, headers):
    assert ask(f"{server}/jobs", **headers)[0] == 403


def test_a_token_opens_a_server(tmp_path):
    with running(tmp_path, tone, token="0123456789abcdef") as address:
        assert ask(f"{address}/jobs")[0] == 401
        assert ask(f"{address}/jobs", Authorization="Bearer 0123456789abcdeF")[0] == 401
        assert ask(f"{address}/jobs", Authorization="Bearer 0123456789abcdef")[0] == 200
        assert ask(address)[0] == 200  # the page, which asks for it


def test_the_queue_and_uploads_have_ends(tmp_path):
    released = threading.Event()

    def wait(job, progress, path):
        assert released.wait(30)
        tone(job, progress, path)

    limits = Limits(max_waiting=2, max_upload_megabytes=1, max_kept=2)
    with running(tmp_path, wait, limits) as address:
        first, second = (ask(f"{address}/generate", {"prompt": "a"})[1]["id"] for _ in range(2))
        assert ask(f"{address}/generate", {"prompt": "a"})[0] == 429
        assert ask(f"{address}/jobs/{second}")[1]["waits_for"] == 1
        assert ask(f"{address}/jobs/{second}", method="DELETE")[1]["state"] == "cancelled"
        status, answer = ask(f"{address}/files", bytes(1_000_001), X_File_Name="a.wav")
        assert status == 413 and "1 MB" in answer["error"] and not list((tmp_path / "uploads").iterdir())
        released.set()
        assert until_ended(address, first)["state"] == "done"
        ids = [ask(f"{address}/generate", {"prompt": "a"})[1]["id"] for _ in range(2)]
        assert [until_ended(address, job)["state"] for job in ids] == ["done", "done"]
        ask(f"{address}/generate", {"prompt": "a"})
        assert ask(f"{address}/jobs/{first}")[0] == 404  # only two that have ended are kept
        names = [ask(f"{address}/files", bytes(10), X_File_Name="a.wav")[1]["id"] for _ in range(4)]
        assert len(list((tmp_path / "uploads").iterdir())) == 2 and (tmp_path / "uploads" / names[-1]).exists()


def test_what_a_request_does_not_say_is_the_models(tmp_path):
    with running(tmp_path, tone, Limits(max_steps=20)) as address:
        assert ask(f"{address}/generate", {"prompt": "a"})[0] == 202  # 20 steps, not the authors' 200
    with running(tmp_path, tone, Limits(max_steps=19)) as address:
        status, answer = ask(f"{address}/generate", {"prompt": "a"})
        assert status == 422 and "num_steps=20: this server makes at most 19" in answer["error"]


def test_a_job_that_takes_too_long_is_stopped(tmp_path):
    def slow(job, progress, path):
        while True:
            time.sleep(0.02)
            progress(1, 1_000)

    with running(tmp_path, slow, Limits(max_job_seconds=0.2)) as address:
        told = until_ended(address, ask(f"{address}/generate", {"prompt": "a"})[1]["id"])
        assert told["state"] == "failed" and "stopped after 0.2 s" in told["error"]


def test_a_server_finds_what_an_earlier_one_left(tmp_path):
    stop = threading.Event()

    def hang(job, progress, path):
        if job.request["prompt"] == "long":
            while not stop.is_set():
                time.sleep(0.01)
                progress(1, 9)
        tone(job, progress, path)

    with running(tmp_path, hang) as address:
        done = ask(f"{address}/generate", {"prompt": "a bell"})[1]["id"]
        until_ended(address, done)
        left = [ask(f"{address}/generate", {"prompt": prompt})[1]["id"] for prompt in ("long", "a siren")]
        while ask(f"{address}/jobs/{left[0]}")[1]["state"] != "running":
            time.sleep(0.02)
    (tmp_path / "jobs" / "0000.json").write_text("{")  # damaged, and another program's
    (tmp_path / "jobs" / "1111.json").write_text('{"id": "1111"}')
    stop.set()
    jobs = Jobs(tmp_path, tone, Limits())
    assert list(jobs.jobs) == [done, *left] and jobs.jobs[done].state == "done"
    end = time.monotonic() + 30
    while any(jobs.jobs[job].state != "done" for job in left):
        assert time.monotonic() < end
        time.sleep(0.02)
    jobs.close()
