"""The paper's comparison on models that are at hand, from nothing to figures.

  python -m experiments.reproduce --preset=embedded --workdir=DIR --out=OUT

Tunes every architecture with the same budget, trains all of them at each place
and seed, trains the ablations, and writes tables and figures to OUT. The same
command continues what was killed. `presets` says what each preset trains;
docs/results.md says what came of them.
"""

import dataclasses

from absl import flags

from experiments import launch
from experiments.reproduce import presets
from experiments.reproduce import stages

_PRESET = flags.DEFINE_enum(
  'preset', 'embedded', list(presets.PRESETS), 'What to run.'
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder.', required=True)
_OUT = flags.DEFINE_string(
  'out', None, 'Folder for tables and figures.', required=True
)
_LM = flags.DEFINE_string(
  'lm', '', "The language model's folder, if not the hub's."
)


def main():
  preset = presets.PRESETS[_PRESET.value]
  if _LM.value:
    values = {**preset.values, 'lm.path': _LM.value}
    preset = dataclasses.replace(preset, values=values)
  stages.run(preset, _WORKDIR.value, _OUT.value)


if __name__ == '__main__':
  launch.run(main)
