"""A static site of latent records: `python -m experiments.dashboard`."""
