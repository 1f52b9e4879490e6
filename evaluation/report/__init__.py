"""The report: one or several experiments under one protocol, in one HTML page beside one JSON file."""

from .report import ReportOptions, write_report

__all__ = ["ReportOptions", "write_report"]
