"""report.html: what a decoding gave, as one page for a browser."""

from tokenverse_pp.evaluation.report.page import PageOptions, write_report

__all__ = ["PageOptions", "write_report"]
