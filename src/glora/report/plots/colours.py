"""Colours and markers that tell several series apart, for the colour-blind too (no torch)."""

from __future__ import annotations

__all__ = ["COLOURS", "MARKERS", "look"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")  # Okabe and Ito
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def look(place: int) -> tuple[str, str]:
    """The colour and the marker of the series in this place: no two of the first 64 are alike."""
    turn, colour = divmod(place, len(COLOURS))
    return COLOURS[colour], MARKERS[(colour + turn) % len(MARKERS)]
