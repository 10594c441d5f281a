"""Latent records: what there is to know of each latent of an SAE.

`schema`  the files, and how they are read
"""
