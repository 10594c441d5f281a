"""What a training step costs, and what is around it: one line of JSON a case.

  python -m experiments.benchmark step --batch=2048 --d_model=576 \
      --num_latents=9216 --dtype=float32

The last line is the case asked for. Needs jax, flax, optax, orbax, numpy and
absl alone. Times are in milliseconds, ratios are of times measured in turns in
one process, so that what slows the machine slows all alike.
"""

import json
import sys

from absl import app
from absl import flags
from absl import logging

from experiments.benchmark import cases
from experiments.benchmark import timing

_BATCH = flags.DEFINE_integer('batch', 2048, 'Rows of a batch.')
_D_MODEL = flags.DEFINE_integer('d_model', 576, 'Size of an activation.')
_NUM_LATENTS = flags.DEFINE_integer('num_latents', 9216, 'Latents.')
_L0 = flags.DEFINE_float('l0', 40.0, 'Mean number of active latents.')
_DTYPE = flags.DEFINE_enum(
  'dtype', 'float32', ['float32', 'bfloat16'], "Of products' inputs."
)
_REPEATS = flags.DEFINE_integer('repeats', 10, 'Rounds that are measured.')


def main(argv):
  logging.set_verbosity(logging.WARNING)
  if len(argv) != 2 or argv[1] not in cases.CASES:
    sys.exit(
      f'error: cases {argv[1:]}: expected one of {", ".join(cases.CASES)}.'
    )
  shape = timing.Shape(
    batch=_BATCH.value,
    d_model=_D_MODEL.value,
    num_latents=_NUM_LATENTS.value,
    l0=_L0.value,
    dtype=_DTYPE.value,
    repeats=_REPEATS.value,
  )
  for line in cases.CASES[argv[1]](shape):
    print(json.dumps(line), flush=True)


if __name__ == '__main__':
  app.run(main)
