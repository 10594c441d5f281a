"""TopK SAEs with AuxK on GPT-2 small, residual stream before layer 8.

  python -m experiments.sweep --config=configs/topk.py --workdir=DIR

Gao et al. 2024 (arXiv:2406.04093) and their released configuration: 32,768
latents, batches of 131,072, Adam with beta2 = 0.999 and epsilon 6.25e-10,
constant learning rate 1e-4, gradients clipped at norm 1, AuxK of the 512
largest dead latents at 1/32, dead after 10 million tokens, b_dec the geometric
median, contexts of 64. Here activations are divided by one number; there each
is centred and divided by its own norm.

Hardware: one 24 GB GPU, as gpt2_small. Tokens: 200 million harvested, seen 6.5
times (1.3 billion). Store: 1.5 kB a token, 307 GB. Hours: harvest 0.2, one SAE
2.2. Estimated, not run, as there.
"""

from configs import common
from configs import gpt2_small


def get_config(arg=''):
  """Returns the recipe; `:quick` is a smoke test of the same model."""
  is_quick = common.parse_arg(arg)
  c = gpt2_small.get_config()
  c.text.context_length = 64
  common.read_the_pile(c, tokens=200_000_000)
  c.sae.num_latents = 2**15
  c.sae.initial_b_dec = 'geometric_median'
  c.optimizer.learning_rate = 1e-4
  c.optimizer.beta1 = 0.9
  c.optimizer.epsilon = 6.25e-10
  c.optimizer.max_gradient_norm = 1.0
  c.train.steps = 10_000
  c.train.batch_size = 131_072
  c.train.steps_per_log = 10
  c.train.steps_per_checkpoint = 1_000
  c.objective.sparsity_warmup_steps = 0
  common.sweep(c, 'topk/aux_k/16/32/64/128')
  if is_quick:
    common.shorten(c)
  return c
