"""Exit codes of the command lines."""

import os

import pytest

from audioldm2_pl.errors import UserError, run_tool


def refuse() -> None:
    raise UserError("clips/a.wav: not audio; leave it out")


def interrupt() -> None:
    raise KeyboardInterrupt


def break_another_pipe() -> None:
    raise BrokenPipeError("a worker's")


def test_bad_input_is_one_line_and_code_2(capsys):
    assert run_tool(refuse) == 2
    assert capsys.readouterr().err == "error: clips/a.wav: not audio; leave it out\n"


def test_ctrl_c_gives_130(capsys):
    assert run_tool(interrupt) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("num_characters", [10, 20_000])  # less and more than stdout's buffer
def test_stdout_without_a_reader_gives_141(monkeypatch, num_characters):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        assert run_tool(lambda: print("x" * num_characters)) == 141


def test_another_broken_pipe_is_not_hidden(tmp_path, monkeypatch):
    with open(tmp_path / "stdout", "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        with pytest.raises(BrokenPipeError):
            run_tool(break_another_pipe)
