"""Figures from records, one module per kind. They need matplotlib (``pip install fedsieve[report]``)."""

from fedsieve.report.figures.curves import accuracy_against_share, accuracy_over_rounds, over_rounds, rates_against
from fedsieve.report.figures.heat_map import heat_map
from fedsieve.report.figures.masks import layers_kept, mask_scatter
from fedsieve.report.figures.overview import draw_all

__all__ = [
    "accuracy_against_share",
    "accuracy_over_rounds",
    "draw_all",
    "heat_map",
    "layers_kept",
    "mask_scatter",
    "over_rounds",
    "rates_against",
]
