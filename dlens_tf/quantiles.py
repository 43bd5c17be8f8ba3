"""Levels of the quantiles that every model, catalogue and manifest gives."""

QUANTILE_LEVELS = (0.025, 0.16, 0.5, 0.84, 0.975)
"""The median, and about one and two sigma to both sides."""

MEDIAN = QUANTILE_LEVELS.index(0.5)
"""Where the median is among them."""
