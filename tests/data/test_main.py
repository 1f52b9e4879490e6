"""`audioldm2-data NAME …`."""

from pathlib import Path

from data.__main__ import main


def test_without_a_name_it_lists_corpora_and_tools(capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    files = [path for path in (Path(__file__).parents[2] / "data").glob("[!_]*.py") if "\nmain" in path.read_text()]
    assert any(line.startswith("  audiocaps   AudioCaps: clips of 10 s") for line in lines)
    assert any(line.startswith("  verify      Checks every byte") for line in lines)
    assert not any(line.startswith("  journal") for line in lines) and len(lines) > len(files)


def test_a_name_runs_its_file(tmp_path, capsys):
    assert main(["fsdd", str(tmp_path / "none"), str(tmp_path / "shards")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/none: no such folder\n"


def test_an_unknown_name_is_told(capsys):
    assert main(["audiocap", "AudioCaps", "shards"]) == 2
    assert capsys.readouterr().err.startswith("error: audiocap: no such corpus or tool; did you mean 'audiocaps'?")
