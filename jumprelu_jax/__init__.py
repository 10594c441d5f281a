"""Sparse autoencoders with JumpReLU activations, in JAX."""

from jumprelu_jax.api import LM
from jumprelu_jax.api import SAE
from jumprelu_jax.api import load_lm
from jumprelu_jax.api import load_sae

__all__ = ['LM', 'SAE', 'load_lm', 'load_sae']
