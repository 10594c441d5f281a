"""SmolLM2-135M, residual stream after layer 10: a real model on a laptop.

  python -m experiments.sweep --config=configs/smollm2_135m.py --workdir=DIR

Hardware: two CPU cores, 4 GiB. Text: what the package ships (novels, speeches,
the Bible, an encyclopaedia), 512,000 tokens of it, seen four times. Store:
0.6 GB in bfloat16. Hours: 0.6, measured; results in docs/results.md.

Gemma Scope's recipe with the quickstart's changes for short runs
(docs/small_budget.md): initial threshold and bandwidth are the quickstart's,
times sqrt(128 / 576) for the larger d_model, since initial pre-activations
spread by 1 / sqrt(d_model).
"""

from configs import common


def get_config(arg=''):
  """Returns the recipe; `:quick` is a smoke test of a minute."""
  is_quick = common.parse_arg(arg)
  c = common.gemma_scope()
  c.lm.path = 'HuggingFaceTB/SmolLM2-135M-Instruct'
  c.lm.dtype = 'float32'
  c.lm.layer = 10
  c.text.harvest = 'embedded'
  c.text.heldout = 'embedded'
  c.text.context_length = 256
  c.activations.sequences = 2_000
  c.activations.bucket_rows = 250_000
  c.sae.num_latents = 2_304
  c.sae.initial_threshold = 0.024
  c.objective.bandwidth = 0.0047
  c.objective.sparsity_warmup_steps = 400
  c.optimizer.learning_rate = 3e-3
  c.optimizer.threshold_learning_rate = 1e-2
  c.optimizer.beta2 = 0.98
  c.optimizer.warmup_steps = 200
  c.optimizer.decay_fraction = 1.0
  c.train.update(
    steps=2_000,
    batch_size=1024,
    steps_per_log=20,
    steps_per_checkpoint=500,
  )
  c.evaluation.sequences = 64
  c.evaluation.sequences_per_batch = 4
  c.sweep.saes = ('jumprelu/l0/1.5e-4/3e-4/6e-4/1.2e-3/2.5e-3',)
  if is_quick:
    common.shorten(c)
  return c
