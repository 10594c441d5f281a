"""Sparse autoencoders: as they are trained, and as they are released."""
