"""Figures: a table of the very numbers drawn → a picture, PNG and PDF."""

from jumprelu_jax.plot.fronts import pareto

__all__ = ['pareto']
