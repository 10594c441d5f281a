"""An SAE from one format to another.

  python -m experiments.convert --source=PATH --target=FOLDER --format=saelens

The source's format is recognised. What the target's cannot express is refused.
"""

from absl import flags

from experiments import launch
from jumprelu_jax import api
from jumprelu_jax import progress
from jumprelu_jax.exchange import formats

_SOURCE = flags.DEFINE_string(
  'source', None, 'Folder, file or hub id.', required=True
)
_TARGET = flags.DEFINE_string('target', None, 'New folder.', required=True)
_FORMAT = flags.DEFINE_enum(
  'format', None, list(formats.FORMATS), 'To write.', required=True
)


def main():
  sae = api.load_sae(_SOURCE.value)
  sae.save(_TARGET.value, _FORMAT.value)
  progress.say(f'{_TARGET.value}: {_FORMAT.value}')


if __name__ == '__main__':
  launch.run(main)
