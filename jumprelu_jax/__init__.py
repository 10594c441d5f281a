"""Sparse autoencoders with JumpReLU activations, in JAX."""

__version__ = '0.1.0'
