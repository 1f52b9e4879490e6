"""A small share of `make faults`, and that a fault is found where there is one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from children import HUNG, Child, Fault, check_plain

RUN = Path(__file__).with_name("run.py")
FAST = ("data_kills", "settings")


def test_a_share_of_the_faults_does_no_harm(tmp_path):
    output = tmp_path / "faults.json"
    command = [sys.executable, str(RUN), "--scale", "0.01", "--only", ",".join(FAST), "--output", str(output)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"TMPDIR": str(tmp_path)}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kinds = json.loads(output.read_text())["kinds"]
    assert set(kinds) == set(FAST) and all(kind["done"] >= kind["wanted"] for kind in kinds.values())
    assert "| settings | 2 | 2 |" in output.with_suffix(".md").read_text()
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and again.stdout == ""  # what is finished is not repeated


def fail() -> int:
    raise KeyError("a defect")


def refuse() -> int:
    print("a reason, but no line of an error")
    return 2


def hang() -> int:
    while True:
        pass


@pytest.mark.parametrize(("body", "said"), [(fail, "traceback"), (refuse, "without a line"), (hang, "hung")])
def test_what_must_not_be_is_found(body, said, tmp_path):
    outcome = Child(body, tmp_path / "log").wait(1)
    assert (outcome.code == HUNG) == (body is hang)
    with pytest.raises(Fault, match=said):
        check_plain(outcome)
