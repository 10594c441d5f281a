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
from absl import logging

from experiments.benchmark import cases
from experiments.benchmark import shapes


def main(argv):
  logging.set_verbosity(logging.WARNING)
  if len(argv) != 2 or argv[1] not in cases.CASES:
    sys.exit(
      f'error: cases {argv[1:]}: expected one of {", ".join(cases.CASES)}.'
    )
  for line in cases.CASES[argv[1]](shapes.of_flags()):
    print(json.dumps(line), flush=True)


if __name__ == '__main__':
  app.run(main)
