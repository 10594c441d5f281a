"""Language models in JAX: architectures, sites, Hugging Face folders."""
