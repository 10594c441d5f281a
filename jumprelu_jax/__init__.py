"""Sparse autoencoders with JumpReLU activations, in JAX."""
