"""`audioldm2 serve` itself: a model's sounds, a killed server, and the page in a browser."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from browser import CHROMIUM, Browser
from served import ask, until_ended

from audioldm2_pl.cli import main
from audioldm2_pl.provenance import read_provenance

ROOT = Path(__file__).parents[2]


def start(model, folder) -> tuple[subprocess.Popen, str]:
    """A server process and its address."""
    command = [sys.executable, "-m", "audioldm2_pl.cli", "serve", str(model), "--port", "0", "--output", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    line = server.stdout.readline()
    assert line.startswith("page: http://127.0.0.1:"), line
    return server, line.split()[1].rstrip("/")


@pytest.fixture(scope="module")
def server(smoke_run, tmp_path_factory):
    process, address = start(smoke_run.model_folder, tmp_path_factory.mktemp("served"))
    yield address
    process.terminate()
    assert process.wait(20) in (0, -signal.SIGTERM, 128 + signal.SIGTERM)


def test_the_sounds_are_those_of_the_command_line(server, smoke_run, tmp_path):
    job = ask(f"{server}/generate", {"prompt": "a bell", "num_steps": 2, "seed": 3})[1]
    assert until_ended(server, job["id"])["state"] == "done"
    (tmp_path / "a.wav").write_bytes(ask(f"{server}/jobs/{job['id']}/sound")[1])
    flags = ["--steps", "2", "--seed", "3", "--output", str(tmp_path)]
    assert main(["generate", str(smoke_run.model_folder), "a bell", *flags]) == 0
    first, second = tmp_path / "a.wav", tmp_path / "0001_a_bell.wav"
    assert abs(soundfile.read(first)[0] - soundfile.read(second)[0]).max() < 1e-3
    assert read_provenance(first) == read_provenance(second)
    edit = ask(f"{server}/edit", {"source": job["id"], "between": [[0.5, 1.0]], "prompt": "rain", "num_steps": 2})[1]
    assert until_ended(server, edit["id"])["state"] == "done"


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_the_guides_lines_run(server, tmp_path):
    """Those of docs/generate.md, with fewer steps."""
    soundfile.write(tmp_path / "in.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 40_000), 16_000)
    (block,) = re.findall(r"```shell\n(.*?)```", (ROOT / "docs" / "generate.md").read_text(), re.DOTALL)
    last = ""
    for line in block.strip().splitlines():
        words = shlex.split(line.replace('"num_steps": 50', '"num_steps": 2'), comments=True)
        words = [word.replace("localhost:7860", server).replace("ID", last) for word in words]
        said = subprocess.run([*words, "--fail", "--silent"], cwd=tmp_path, capture_output=True, check=True).stdout
        last = json.loads(said)["id"] if said.startswith(b'{"id"') else last
    assert (tmp_path / "bell.flac").read_bytes().startswith(b"fLaC")
    assert until_ended(server, last)["state"] == "done"


def test_a_killed_server_loses_no_sound(smoke_run, tmp_path):
    server, address = start(smoke_run.model_folder, tmp_path)
    done = ask(f"{address}/generate", {"prompt": "a bell", "num_steps": 2})[1]["id"]
    until_ended(address, done)
    sound = ask(f"{address}/jobs/{done}/sound")[1]
    left = ask(f"{address}/generate", {"prompt": "wind", "num_steps": 200})[1]["id"]
    while ask(f"{address}/jobs/{left}")[1]["state"] == "queued":
        time.sleep(0.02)
    os.kill(server.pid, signal.SIGKILL)
    server.wait()
    server, address = start(smoke_run.model_folder, tmp_path)
    try:
        assert ask(f"{address}/jobs/{done}/sound")[1] == sound
        assert until_ended(address, left)["state"] == "done"
    finally:
        server.kill()
        server.wait()


def test_other_machines_need_a_token(smoke_run, tmp_path, capsys):
    command = ["serve", str(smoke_run.model_folder), "--output", str(tmp_path)]
    assert main([*command, "--host", "0.0.0.0"]) == 2
    assert "give --token-file FILE" in capsys.readouterr().err
    (tmp_path / "token").write_text("short\n")
    assert main([*command, "--token-file", str(tmp_path / "token")]) == 2
    assert "at least 16" in capsys.readouterr().err
    assert main([*command, "--max-waiting", "0"]) == 2
    assert "max_waiting=0 has to be" in capsys.readouterr().err


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_the_page_makes_edits_and_plays_a_sound(server, tmp_path):
    with Browser(tmp_path / "profile") as browser:
        browser.open(server)
        browser.wait_for("document.getElementById('title').textContent.includes('model')")
        browser.run("document.querySelector('[name=prompt]').focus()")
        browser.write("a siren")
        browser.run("document.querySelector('[name=num_steps]').value = 2")
        browser.click("#go")
        browser.wait_for("document.querySelector('article[data-state=done] audio')")
        assert "a siren" in browser.text()
        browser.wait_for("document.querySelector('article img').naturalWidth > 0")
        browser.run(
            "[...document.querySelectorAll('.links button')].find((b) => b.textContent === 'Edit this').click()"
        )
        browser.wait_for("!document.getElementById('wave').hidden")
        assert "regenerates" in browser.text()
        browser.click("#go")
        browser.wait_for("document.querySelectorAll('article[data-state=done] audio').length >= 2")
        assert "between" in browser.text()
        browser.run("document.querySelector('[name=num_steps]').value = 100000")
        browser.run("document.getElementById('said').textContent = ''")
        browser.click("#go")
        browser.wait_for("document.getElementById('said').textContent.includes('at most 200')")
        browser.resize(390, 800, mobile=True)
        assert browser.run("document.documentElement.scrollWidth <= 390")
