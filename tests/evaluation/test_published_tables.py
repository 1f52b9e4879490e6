import re

import pytest

from evaluation.report.published import published_tables

TABLES = {table.number: table for table in published_tables()}


@pytest.mark.parametrize(
    ("number", "system", "column", "printed"),
    [
        ("I", "GroundTruth", "CLAP (%) ↑", "25.1"),
        ("I", "AudioLDM 2-AC", "FAD ↓", "1.67"),
        ("I", "AudioLDM 2-AC-Large", "KL ↓", "0.98"),
        ("I", "AudioLDM 2-AC-Large", "Param", "712 M"),
        ("I", "TANGO", "CLAP (%) ↑", "17.6"),
        ("I", "AudioGen-Large", "OVL ↑", "-"),
        ("II", "AudioLDM 2-Full", "CLAP (%) ↑", "19.4"),
        ("II", "AudioLDM 2-Full-Large", "FAD ↓", "1.86"),
        ("III", "AudioLDM 2-Full", "REL ↑", "3.54"),
        ("III", "MusicGen-Medium †", "FAD ↓", "4.89"),
        ("IV", "AudioLDM 2-LJS", "Mean Opinion Score ↑", "3.65 ± 0.21"),
        ("V", "d. w/o FLAN-T5 crossattn (T-UNet)", "FAD ↓", "1.38"),
    ],
)
def test_cells_are_the_papers(number, system, column, printed):
    assert TABLES[number].cell(system, column) == printed


def test_tables_are_whole():
    sizes = {number: (len(table.rows), len(table.columns)) for number, table in TABLES.items()}
    assert sizes == {"I": (9, 7), "II": (5, 5), "III": (10, 5), "IV": (5, 1), "V": (5, 3)}
    for number, table in TABLES.items():
        assert table.source == f"arXiv:2308.05734, Table {number}" and table.year == 2023
        for _, cells in table.rows:
            assert len(cells) == len(table.columns)
            assert all(re.fullmatch(r"-|\d+(\.\d+)?( [MB]| ± \d\.\d+)?", cell) for cell in cells)


def test_a_system_has_the_same_numbers_in_every_table():
    shared = ("FAD ↓", "KL ↓", "CLAP (%) ↑")
    for system in ("AudioLDM 2-AC", "AudioLDM 2-AC-Large"):
        assert all(TABLES["I"].cell(system, c) == TABLES["II"].cell(system, c) for c in shared)
    assert all(TABLES["I"].cell("AudioLDM 2-AC", c) == TABLES["V"].cell("AudioLDM 2", c) for c in shared)
