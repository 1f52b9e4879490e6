"""What stages cost, on this machine's processor, and with a stand-in for NVML where a GPU would answer."""

import csv
import json

import pytest
import torch
from breaking import break_off

from audioldm2_pl.training import cost
from audioldm2_pl.training.records import record_of
from audioldm2_pl.training.run import train
from evaluation.report.costs import costs_of
from evaluation.report.sections import costs_section


def rows_of(experiment, stage: str) -> dict[str, list[tuple[int, float]]]:
    """Name -> (batch, value) of a stage's cost.csv"""
    found: dict[str, list[tuple[int, float]]] = {}
    with (experiment.run_folder / f"logs/{stage}/cost.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["name"], []).append((int(row["batch"]), float(row["value"])))
    return found


def test_the_processors_share_is_logged_and_recorded(smoke_run):
    rows = rows_of(smoke_run, "ldm")
    assert set(rows) == {"cpu_cores"} and [batch for batch, _ in rows["cpu_cores"]] == [0, 1, 2, 3]
    assert all(0 < value < 64 for _, value in rows["cpu_cores"])
    record = json.loads(record_of(smoke_run, "ldm").read_text())
    assert 0 < record["cpu_cores"] < 64 and "gpu_energy_kwh" not in record
    costs = costs_of(smoke_run.run_folder, 1.0)
    header = costs_section({"smoke": costs}).parts[0].table.header
    assert header == ["Stage", "Time", "Peak memory", "Cores in use", "Share"]


def test_a_gpus_power_adds_up_to_energy(smoke, monkeypatch):
    """300 W at half its time, asked at every batch: the record has their energy, and so has the report."""
    monkeypatch.setattr(cost, "SAMPLE_SECONDS", 0.0)
    answer = {"gpu_utilization": 0.5, "gpu_memory_gib": 3.0, "gpu_power_watts": 300.0}
    monkeypatch.setattr(cost, "read_gpu", lambda device: dict(answer))
    experiment = smoke("stages=[vae]")
    train(experiment)
    assert {value for _, value in rows_of(experiment, "vae")["gpu_power_watts"]} == {300.0}
    record = json.loads(record_of(experiment, "vae").read_text())
    assert (record["gpu_utilization"], record["gpu_power_watts"]) == (pytest.approx(0.5), pytest.approx(300.0))
    joules = record["gpu_energy_kwh"] * 3.6e6
    assert 0 < joules <= 300.0 * record["seconds"]
    table = costs_section({"smoke": costs_of(experiment.run_folder, 1.0)}).parts[0].table
    assert "GPU energy" in table.header and any(cell == "300 W" for cell in table.rows[0])
    assert table.rows[-1][0] == "total" and str(table.rows[-1][-2]).endswith("kWh")


def test_a_resumed_stage_goes_on_counting(smoke, monkeypatch):
    spent = []
    monkeypatch.setattr(cost, "SAMPLE_SECONDS", 0.0)
    answer = {"gpu_utilization": 1.0, "gpu_memory_gib": 1.0, "gpu_power_watts": 100.0}
    monkeypatch.setattr(cost, "read_gpu", lambda device: dict(answer))
    load = cost.Cost.load_state_dict
    monkeypatch.setattr(
        cost.Cost,
        "load_state_dict",
        lambda self, state: (spent.append(state["spent"]["gpu_joules"]), load(self, state)),
    )
    experiment = smoke("stages=[vae]", "training.vae.save_every_batches=2")
    break_off(experiment, "vae", 3, monkeypatch)
    train(experiment)
    record = json.loads(record_of(experiment, "vae").read_text())
    assert spent[0] > 0 and record["gpu_energy_kwh"] * 3.6e6 > spent[0]


def test_what_nvml_does_not_say_is_left_out(monkeypatch):
    assert cost.read_gpu(torch.device("cpu")) == {}

    def missing(device):
        raise ModuleNotFoundError("pynvml")

    monkeypatch.setattr(torch.cuda, "utilization", missing)
    assert cost.read_gpu(torch.device("cuda", 0)) == {}
