"""Blinded ratings of latents by people: who rates what, and what it says."""
