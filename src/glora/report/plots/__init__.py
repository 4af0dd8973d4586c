"""The pictures of data, searches, winners and benchmarks, each with its data as JSON beside it (no torch).

Every function writes the figure in the format of the path's suffix (`.svg`, `.png`), writes the numbers drawn
to the same path with the suffix `.json`, and returns them. Colours are Okabe and Ito's and cividis: both can be
told apart by the colour-blind.
"""

from glora.report.plots.features import Placed, features_plot
from glora.report.plots.fewshot import fewshot_plot
from glora.report.plots.layers import layer_plot, parameters_plot
from glora.report.plots.samples import samples_plot
from glora.report.plots.search import search_plot
from glora.report.plots.winners import fronts_plot, layers_of_winners, parameters_of_winners

__all__ = [
    "Placed",
    "features_plot",
    "fewshot_plot",
    "fronts_plot",
    "layer_plot",
    "layers_of_winners",
    "parameters_of_winners",
    "parameters_plot",
    "samples_plot",
    "search_plot",
]
