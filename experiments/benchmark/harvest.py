"""Tokens/s of a harvest to disk beside those of the bare forward pass.

  python -m experiments.benchmark.harvest --config=configs/smollm2_135m.py \
      --config.lm.path=models/smollm2-135m --buckets=2

Each round runs the model over the same buckets twice: once throwing the
activations away, once writing stores. One process, one compiled program.
"""

import pathlib
import tempfile
import time

from absl import flags
import jax
import numpy as np

from experiments import launch
from jumprelu_jax import inputs
from jumprelu_jax import supply
from jumprelu_jax.activations import harvest as harvest_lib
from jumprelu_jax.text import packing

_BUCKETS = flags.DEFINE_integer('buckets', 2, 'Buckets in a round.')
_ROUNDS = flags.DEFINE_integer('rounds', 3, 'Rounds.')


def bare(plan, tap):
  """Runs the model over the plan's sequences, and keeps nothing."""
  for index in range(plan.num_buckets):
    tokens_NL = np.asarray(plan.tokens_NL[plan.sequences_of(index)])
    ahead = None
    for start in range(0, len(tokens_NL), plan.sequences_per_batch):
      some = tokens_NL[start : start + plan.sequences_per_batch]
      padded = packing.pad_rows(some, plan.sequences_per_batch, plan.pad_id)
      running = tap(padded)
      jax.block_until_ready(ahead)
      ahead = running
    jax.block_until_ready(ahead)


def main():
  run = launch.run_config()
  sequences = _BUCKETS.value * run.sequences_per_bucket
  run = run.with_values({'activations.sequences': sequences})
  prepared = inputs.prepare(run)
  tap = prepared.tap(prepared.harvested)
  ratios = []
  with tempfile.TemporaryDirectory() as folder:
    plan = prepared.plan(pathlib.Path(folder) / 'sequences.npy')
    tokens = plan.tokens_NL.size
    tap(np.asarray(plan.tokens_NL[: plan.sequences_per_batch]))  # compiles
    for i in range(_ROUNDS.value):
      began = time.perf_counter()
      bare(plan, tap)
      middle = time.perf_counter()
      stores = {
        supply.site_folder(f'{folder}/{i}', site): prepared.describe(
          site, len(plan.tokens_NL)
        )
        for site in prepared.harvested
      }
      harvest_lib.harvest(plan, tap, stores)
      ended = time.perf_counter()
      ratios.append((middle - began) / (ended - middle))
      print(
        f'round {i}: bare {tokens / (middle - began):,.0f} tokens/s, harvest '
        f'{tokens / (ended - middle):,.0f}: {ratios[-1]:.3f}'
      )
  print(f'median ratio {np.median(ratios):.3f}')


if __name__ == '__main__':
  launch.run(main)
