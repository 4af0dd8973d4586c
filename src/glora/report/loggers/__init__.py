"""Where the curves of a run are also shown: TensorBoard, trackio, Weights & Biases; fed from its files alone.

One more is a file here with a `Logger`, and a line in `LOGGERS`. `Feed` reads what a run writes, `metrics.jsonl` and
the journal of its search, and hands on what is new, while it runs or after it.
"""

from __future__ import annotations

from glora.report.loggers.feed import Feed
from glora.report.loggers.logger import LOGGERS, Logger, logger_class

__all__ = ["LOGGERS", "Feed", "Logger", "logger_class"]
