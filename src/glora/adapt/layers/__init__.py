"""The layer types that can be adapted; each shows its weight as the `(o, i)` matrix of the formula."""

from glora.adapt.layers.table import TABLE, WORDS, row_of, views_of
from glora.adapt.layers.view import View

__all__ = ["TABLE", "WORDS", "View", "row_of", "views_of"]
