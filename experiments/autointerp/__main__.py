"""Automated interpretability: are latents what an explanation says of them?

  python -m experiments.autointerp score --records=RECORDS --out=OUT
  python -m experiments.autointerp compare --scores=OUT_A,OUT_B --out=TABLES

`score` measures one SAE's latents from their records (experiments.records),
`compare` holds several SAEs' scores against each other; each has --help.
docs/interpretability.md says what the scores mean.
"""

import importlib
import sys

from experiments import launch

_COMMANDS = ('score', 'compare')


def main():
  if len(sys.argv) < 2 or sys.argv[1] not in _COMMANDS:
    given = ' '.join(sys.argv[1:2]) or 'no command'
    sys.exit(
      f'error: {given}: expected {" or ".join(_COMMANDS)} first, such as '
      '`python -m experiments.autointerp score --records=RECORDS --out=OUT`.'
    )
  command = importlib.import_module(f'experiments.autointerp.{sys.argv.pop(1)}')
  launch.run(command.main)


if __name__ == '__main__':
  main()
