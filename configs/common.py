"""What recipes share: all of them start from Gemma Scope's."""

import copy

from ml_collections import config_dict

from configs import defaults


def gemma_scope() -> config_dict.ConfigDict:
  """Returns `defaults.GEMMA_SCOPE`, to be changed."""
  return config_dict.ConfigDict(copy.deepcopy(defaults.GEMMA_SCOPE))


def parse_arg(arg: str) -> bool:
  """Returns whether `--config=recipe.py:quick` was asked for.

  Raises:
    ValueError: the argument is anything else.
  """
  if arg not in ('', 'quick'):
    raise ValueError(
      f'recipe argument {arg!r} is not known; use none or "quick", as in '
      '--config=configs/quickstart.py:quick.'
    )
  return arg == 'quick'


def sweep(c: config_dict.ConfigDict, *saes: str) -> None:
  """Sweeps 'architecture/objective/sparsity/…'; the first is the run's own."""
  c.sweep.saes = saes
  c.sae.architecture, c.objective.name, *_ = saes[0].split('/')


def read_the_pile(c: config_dict.ConfigDict, *, tokens: int) -> None:
  """Harvests tokens from the Pile's training split; evaluates on another."""
  pile = 'hf://datasets/monology/pile-uncopyrighted'
  c.text.harvest = f'{pile}?split=train'
  c.text.heldout = f'{pile}?split=validation'
  c.activations.sequences = tokens // c.text.context_length


def shorten(c: config_dict.ConfigDict) -> None:
  """Makes a recipe a smoke test: everything runs, nothing is learned."""
  c.text.context_length = min(c.text.context_length, 64)
  c.activations.sequences = 32
  c.activations.bucket_rows = 1_000
  c.sae.num_latents = 256
  c.objective.sparsity_warmup_steps = 2
  c.optimizer.warmup_steps = 2
  c.train.update(
    steps=10,
    batch_size=64,
    steps_per_log=5,
    steps_per_checkpoint=5,
  )
  c.evaluation.sequences = 8
  c.mesh.update(data=1, latent=1)
  c.sae.k = 16
  if c.objective.prefixes:
    c.objective.prefixes = (64, 128, 256)
  c.objective.aux_k = 64
  # The first architecture at its first two sparsities.
  c.sweep.saes = ('/'.join(c.sweep.saes[0].split('/')[:4]),)
