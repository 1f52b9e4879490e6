"""`python -m evaluation reproduce`: runs the steps of a table that are not done yet, and writes what was measured.

A step that fails leaves out the rows that need it, no others. The same command goes on where it was stopped.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from audioldm2_pl.errors import Interrupted, UserError
from audioldm2_pl.processes import STOPPED, run_command

from .results import write_results
from .steps import Step, steps_of
from .table import Reproduction

Runner = Callable[[Sequence[str]], int]  # a command as a shell would have it => its exit code


def reproduce(found: Reproduction, runner: Runner | None = None) -> None:
    """UserError where nothing could be done and nothing was measured before, Interrupted where a step was stopped."""
    runner = runner or run_command
    steps = [step for step in steps_of(found) if not step.is_done]
    made: set[Path] = set()  # by steps before; those that failed are not among them
    left_out, num_run = [], 0
    for number, step in enumerate(steps, 1):
        if missing := step.missing(made):
            left_out.append(f"{step.kind} {step.title}: needs {missing[0]}")
            continue
        print(f"\n[{number} of {len(steps)}] {step.kind}: {step.title}\n{step.line}", flush=True)
        if code := run_step(step, runner):
            left_out.append(f"{step.kind} {step.title}: failed with code {code}")
            continue
        num_run += 1
        made |= set(step.makes)
    measured = write_results(found)
    if left_out:
        print("\nleft out:", *left_out, sep="\n  ", flush=True)
    if left_out and not num_run and not measured:
        raise UserError(f"{found.name}: nothing could be run ({left_out[0]}); --dry-run prints what it needs")


def run_step(step: Step, runner: Runner) -> int:
    """=> its exit code. Interrupted where a signal ended it."""
    if step.call is not None:
        try:
            step.call()
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return 0
    code = runner(step.command)
    if code in STOPPED:
        raise Interrupted(STOPPED[code], "the same command goes on")
    return code
