"""Are latents interpretable? A language model explains, another checks.

Explain, simulate, score (Bills et al. 2023; section 7.2 of the paper), two
cheaper checks of an explanation, and baselines that need no model. All of it
reads a folder of latent records and nothing else.
"""
