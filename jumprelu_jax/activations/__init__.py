"""Activations of a language model: shards on disk, read as batches."""
