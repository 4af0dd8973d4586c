"""The version of this library (no torch)."""

__version__ = "0.2.0"
