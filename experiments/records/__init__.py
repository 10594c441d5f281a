"""Latent records of an SAE: `python -m experiments.records`."""
