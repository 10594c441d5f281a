"""Time to evaluate SAEs beside that of the forward passes it cannot avoid.

  python -m experiments.benchmark.evaluate --config=configs/quickstart.py \
      --config.sae.num_latents=2048

A round runs, one after the other in one process, two forward passes to the
logits over the same text (clean and spliced: no metric that needs the loss can
do with fewer), one SAE's evaluation with all metrics but importance_uniformity,
and that of several SAEs in one pass. SAEs are random, a twentieth of their
latents active. Prints each round's ratio to the two forward passes, of the time
on the clock and of processor time, which other programs disturb less.
"""

import time

from absl import flags
import jax
from jax import numpy as jnp
import numpy as np

from experiments import launch
from jumprelu_jax import evaluation
from jumprelu_jax import inputs
from jumprelu_jax import products
from jumprelu_jax.lm import transformer
from jumprelu_jax.sae import maps
from jumprelu_jax.sae import released

_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Rounds that are measured.')
_SAES = flags.DEFINE_integer('saes', 6, 'SAEs that are evaluated together.')


def random_sae(setting, num_latents, seed):
  """Returns an SAE for activations of the text's mean and scale."""
  D = setting.model.architecture.site_dim(setting.where.name)
  (y_BLD,) = transformer.tap(
    setting.model, setting.tokens_NL[:1], (setting.where,)
  )
  y_ND = y_BLD[0, 1:].astype('float32')  # without BOS
  rng = np.random.default_rng(seed)
  W_dec = maps.unit_rows(jnp.asarray(rng.normal(size=(num_latents, D))))
  W_dec = W_dec.astype('float32')
  pre_NM = products.matmul(y_ND, W_dec.T)
  return released.SAE(
    W_enc=W_dec.T,
    b_enc=jnp.zeros(num_latents),
    W_dec=W_dec,
    b_dec=jnp.mean(y_ND, axis=0),
    threshold=jnp.maximum(jnp.quantile(pre_NM, 0.95, axis=0), 1e-3),
  )


def seconds(fn):
  """Returns how long a call takes, on the clock and of processor time."""
  wall, used = time.perf_counter(), time.process_time()
  fn()
  return np.array([time.perf_counter() - wall, time.process_time() - used])


def main():
  run = launch.run_config()
  prepared = inputs.prepare(run)
  setting, baseline = prepared.setting, prepared.baseline
  forward = jax.jit(transformer.logits)
  saes = [
    random_sae(setting, run.sae.num_latents, seed)
    for seed in range(_SAES.value)
  ]

  def two_forward_passes():
    for _ in range(2):
      for batch in setting.batches('forward'):
        jax.block_until_ready(forward(setting.model, batch.tokens_BL))

  def evaluate(some):
    return evaluation.measure(some, setting, baseline)

  for warm_up in (two_forward_passes, lambda: evaluate(saes[:1])):
    warm_up()
  ratios = []
  for i in range(_ROUNDS.value):
    forwards = seconds(two_forward_passes)
    one = seconds(lambda: evaluate(saes[:1])) / forwards
    many = seconds(lambda: evaluate(saes)) / forwards / len(saes)
    ratios.append((one, many))
    print(
      f'round {i}: two forward passes {forwards[0]:.2f} s; one SAE '
      f'{one[0]:.2f} of that (processor time {one[1]:.2f}); of {len(saes)} '
      f'together each {many[0]:.2f} ({many[1]:.2f})'
    )
  one, many = np.median(ratios, axis=0)
  print(
    f'{setting.tokens_NL.size:,} tokens, {run.sae.num_latents:,} latents, '
    f'{setting.where}: median one SAE {one[0]:.2f} ({one[1]:.2f}), '
    f'together each {many[0]:.2f} ({many[1]:.2f})'
  )


if __name__ == '__main__':
  launch.run(main)
