"""JumpReLU SAEs on the embedded language model: minutes on two cores.

  python -m experiments.sweep --config=configs/quickstart.py --workdir=DIR

Hardware: two CPU cores, 2 GiB. Tokens: 1.0 million harvested, seen twice.
Store: 0.5 GB. Hours: 0.08, measured; results in docs/quickstart_results.csv.
"""

from configs import common


def get_config(arg=''):
  """Returns the recipe; `:quick` is a smoke test of seconds."""
  is_quick = common.parse_arg(arg)
  c = common.gemma_scope()
  c.lm.path = 'embedded'
  c.lm.dtype = 'float32'
  c.lm.layer = 2
  c.text.harvest = 'embedded'
  c.text.heldout = 'embedded'
  c.text.context_length = 128
  c.activations.sequences = 8_000
  c.activations.sequences_per_batch = 32
  c.activations.dtype = 'float32'
  c.sae.num_latents = 1024
  c.sae.k = 32
  c.sae.initial_threshold = 0.05
  c.objective.bandwidth = 0.01
  c.objective.aux_k = 64
  c.objective.dead_after_tokens = 100_000
  c.objective.sparsity_warmup_steps = 400
  c.optimizer.learning_rate = 7e-3
  c.optimizer.threshold_learning_rate = 2e-2
  c.optimizer.beta2 = 0.98
  c.optimizer.warmup_steps = 50
  c.optimizer.decay_fraction = 1.0
  c.train.update(
    steps=2_000,
    batch_size=1024,
    steps_per_log=20,
    steps_per_checkpoint=500,
  )
  c.evaluation.sequences = 512
  c.evaluation.sequences_per_batch = 32
  c.sweep.saes = ('jumprelu/l0/1.5e-4/3e-4/7e-4/1.5e-3/3e-3/5e-3',)
  if is_quick:
    c.activations.sequences = 128
    c.activations.bucket_rows = 10_000
    c.sae.num_latents = 256
    c.objective.sparsity_warmup_steps = 20
    c.optimizer.warmup_steps = 5
    c.train.update(
      steps=60,
      batch_size=256,
      steps_per_log=10,
      steps_per_checkpoint=20,
    )
    c.evaluation.sequences = 64
    c.sweep.saes = ('jumprelu/l0/1e-3/1e-2',)
  return c
