"""The pictures of data, of a search and of its winner, each with its data as JSON beside it (no torch).

Every function writes the figure in the format of the path's suffix (`.svg`, `.png`), writes the numbers drawn
to the same path with the suffix `.json`, and returns them. Colours are Okabe and Ito's and cividis: both can be
told apart by the colour-blind.
"""

from glora.report.plots.layers import layer_plot, parameters_plot
from glora.report.plots.samples import samples_plot
from glora.report.plots.search import search_plot

__all__ = ["layer_plot", "parameters_plot", "samples_plot", "search_plot"]
