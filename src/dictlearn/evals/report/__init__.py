"""report.html and its pictures: everything a run shows, in one file that asks the network nothing."""

from dictlearn.evals.report.page import write_report

__all__ = ["write_report"]
