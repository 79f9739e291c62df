"""report.html: the results of a decoding as one HTML page."""

from tokenverse_pp.base.options import PageOptions
from tokenverse_pp.evaluation.report.page import write_report

__all__ = ["PageOptions", "write_report"]
