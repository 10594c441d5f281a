"""Sparse autoencoders with JumpReLU activations, in JAX."""

import importlib

__all__ = ['LM', 'SAE', 'load_lm', 'load_sae']


def __getattr__(name):
  # When first asked for: training alone needs none of the packages that read
  # language models and other libraries' files.
  if name in __all__:
    return getattr(importlib.import_module('jumprelu_jax.api'), name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
