"""Reports of runs: one HTML page with data, learning curves, results, errors and images."""

from mmgcvit.report.make import make_report, report_after_training

__all__ = ["make_report", "report_after_training"]
