"""report.html: what a decoding gave, as one page for a browser."""

from tokenverse_pp.base.options import PageOptions
from tokenverse_pp.evaluation.report.page import write_report

__all__ = ["PageOptions", "write_report"]
