"""Gemma Scope's recipe, from which every recipe starts.

Lieberum et al. 2024 (arXiv:2408.05147), section 3, on top of Rajamanoharan et
al. 2024 (arXiv:2407.14435): a 131k-latent SAE on 8B activations, scaled to unit
mean squared norm, in batches of 4,096. `jumprelu_jax.config` says what each key
means.
"""

from ml_collections import config_dict


def gemma_scope() -> config_dict.ConfigDict:
  """Returns the recipe; it names no language model and no text of its own."""
  c = config_dict.ConfigDict()
  c.seed = 0
  c.lm = {
    'path': '',
    'revision': '',
    'dtype': 'bfloat16',
    'site': 'resid_post',
    'layer': 20,
    'target_site': '',
    'target_layer': -1,
  }
  c.text = {
    'harvest': '',
    'heldout': '',
    'context_length': 1024,
    'packing': 'pack',
    'bos_id': -1,
    'special_ids': (),
  }
  c.activations = {
    'mode': 'stored',
    'store': '',
    'sites': (),
    'sequences': 0,
    'sequences_per_batch': 8,
    'bucket_rows': 1_000_000,
    'dtype': 'bfloat16',
    'format': 'npy',
    'max_norm_multiple': 0.0,
    'prefetch_batches': 2,
  }
  c.sae = {
    'architecture': 'jumprelu',
    'num_latents': 2**17,
    'k': 50,
    'selection': 'exact',
    'initial_threshold': 0.001,
    'initial_encoder_norm': 1.0,
    'initial_decoder_norm': 1.0,
    'initial_b_dec': 'zeros',
    'initial_frequency': 0.0,
    'use_pre_encoder_bias': True,
    'compute_dtype': 'float32',
    'capacity': -1,
  }
  c.objective = {
    'name': 'l0',
    'sparsity_coeff': 6e-4,
    'sparsity_warmup_steps': 10_000,
    'estimator': 'threshold',
    'kernel': 'rectangle',
    'bandwidth': 0.001,
    'target_l0': 50.0,
    'frequency_scale': 0.1,
    'tanh_scale': 4.0,
    'pre_activation_coeff': 0.0,
    'aux_k_coeff': 1 / 32,
    'aux_k': 512,
    'dead_after_tokens': 10_000_000,
    'prefixes': (),
    'components': (),
    'controller_gain': 2.0,
    'controller_rate': 0.02,
    'window_rows': 4.0,
  }
  c.optimizer = {
    'learning_rate': 7e-5,
    'threshold_learning_rate': 7e-5,
    'beta1': 0.0,
    'beta2': 0.999,
    'epsilon': 1e-8,
    'warmup_steps': 1_000,
    'decay': 'cosine',
    'decay_fraction': 0.0,
    'max_gradient_norm': 0.0,
    'threshold_gradient_decay': 0.0,
  }
  c.train = {
    'steps': 1_953_125,
    'batch_size': 4096,
    'steps_per_log': 500,
    'steps_per_checkpoint': 10_000,
  }
  c.evaluation = {
    'sequences': 2048,
    'sequences_per_batch': 8,
    'splice_special': False,
    'importance_sequences': 0,
  }
  c.mesh = {'data': 1, 'latent': 1}
  c.sweep = {'saes': ('jumprelu/l0/1e-4/2e-4/4e-4/6e-4/1e-3/2e-3',)}
  return c


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
  c.train = {
    'steps': 10,
    'batch_size': 64,
    'steps_per_log': 5,
    'steps_per_checkpoint': 5,
  }
  c.evaluation.sequences = 8
  c.mesh = {'data': 1, 'latent': 1}
  c.sae.k = 16
  if c.objective.prefixes:
    c.objective.prefixes = (64, 128, 256)
  c.objective.aux_k = 64
  # The first architecture at its first two sparsities.
  c.sweep.saes = ('/'.join(c.sweep.saes[0].split('/')[:4]),)
