"""Cost of a training step of every architecture, relative to JumpReLU's.

  python -m experiments.benchmark.architectures --config=configs/quickstart.py \
      --out=docs/step_cost.csv

Takes a step of each in turn, on one batch of random rows of the recipe's sizes,
round after round in one process, so that whatever slows the machine slows all
alike; prints the median of each one's ratio to JumpReLU of the same round.
"""

import csv
import time

from absl import flags
import jax
import numpy as np

from experiments import launch
from jumprelu_jax import architectures
from jumprelu_jax import sharding
from jumprelu_jax import train

_D_MODEL = flags.DEFINE_integer('d_model', 128, 'Size of an activation.')
_ROUNDS = flags.DEFINE_integer('rounds', 10, 'Rounds that are measured.')
_STEPS = flags.DEFINE_integer('steps', 10, 'Steps of each in a round.')
_OUT = flags.DEFINE_string('out', None, 'CSV to write.')

#: architecture → the objective that it is usually trained by.
OBJECTIVES = {
  'jumprelu': 'l0',
  'jumprelu_raw_threshold': 'l0',
  'jumprelu_free_norm': 'tanh+pre_activation',
  'gated': 'gated',
  'gated_free_norm': 'gated_ri_l1',
  'topk': 'aux_k',
  'batch_topk': 'aux_k',
  'relu': 'ri_l1',
  'matryoshka_jumprelu': 'l0',
  'matryoshka_batch_topk': 'aux_k',
  'jumprelu_transcoder': 'l0',
  'jumprelu_skip_transcoder': 'l0',
  'topk_transcoder': 'aux_k',
  'topk_skip_transcoder': 'aux_k',
}


def config_of(run, architecture, objective):
  """Returns the recipe's config for an architecture."""
  M = run.sae.num_latents
  is_nested = architecture.startswith('matryoshka')
  return run.with_values(
    {
      'sae.architecture': architecture,
      'objective.name': objective,
      'objective.prefixes': (M // 16, M // 8, M // 4, M // 2, M)
      if is_nested
      else (),
      'lm.target_site': 'mlp_out' if 'transcoder' in architecture else '',
    }
  )


class Stepper:
  """Takes steps of one architecture."""

  def __init__(self, run):
    train.check(run)
    D = _D_MODEL.value
    widths = (D,) * architectures.of(run).num_sites
    mesh = sharding.make_mesh(1, 1)
    init, self._step = train.compile_for(run, widths, mesh)
    self._state = init(jax.random.key(0))
    rng = np.random.default_rng(0)
    shape = (run.train.batch_size, sum(widths))
    rows_BD = rng.normal(size=shape).astype('float32') / D**0.5
    self._inputs = jax.device_put(
      (rows_BD, np.float32(1), train.numbers_of(run)), sharding.replicated(mesh)
    )

  def seconds(self, steps):
    """Returns the mean time of a step."""
    began = time.perf_counter()
    for _ in range(steps):
      self._state, metrics = self._step(self._state, *self._inputs)
    jax.block_until_ready(metrics)
    return (time.perf_counter() - began) / steps


def main():
  run = launch.run_config()
  steppers = {
    name: Stepper(config_of(run, name, objective))
    for name, objective in OBJECTIVES.items()
  }
  for stepper in steppers.values():
    stepper.seconds(3)  # compiles
  rounds = [
    {name: s.seconds(_STEPS.value) for name, s in steppers.items()}
    for _ in range(_ROUNDS.value)
  ]
  rows = []
  for name, objective in OBJECTIVES.items():
    ratios = [r[name] / r['jumprelu'] for r in rounds]
    rows.append(
      {
        'architecture': name,
        'objective': objective,
        'milliseconds': f'{1e3 * np.median([r[name] for r in rounds]):.2f}',
        'ratio': f'{np.median(ratios):.2f}',
        'least': f'{min(ratios):.2f}',
        'most': f'{max(ratios):.2f}',
      }
    )
    print(*rows[-1].values(), sep='  ')
  if _OUT.value:
    with open(_OUT.value, 'w', newline='') as file:
      table = csv.DictWriter(file, rows[0], lineterminator='\n')
      table.writeheader()
      table.writerows(rows)


if __name__ == '__main__':
  launch.run(main)
