"""Run folders -> one self-contained HTML page, from what is in them alone (no torch)."""

from glora.report.page.page import render
from glora.report.page.record import RunRecord, read_run

__all__ = ["RunRecord", "read_run", "render"]
