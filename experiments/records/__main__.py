"""Finds the latent records of an SAE in one pass over text.

  python -m experiments.records --sae=DIR/jumprelu_l0_0.001 --out=RECORDS
  python -m experiments.records --sae=OWNER/REPOSITORY/FOLDER --out=RECORDS \
      --lm=FOLDER_OR_HUB_ID --text=FILE --tokens=1000000

DIR is the folder of an SAE trained here, whose config says the model and the
held-out text. A command that was killed is continued by giving it again.
"""

import dataclasses

from absl import flags

from experiments import launch
from experiments.records import make
from jumprelu_jax import errors
from jumprelu_jax import progress
from jumprelu_jax.records import state

_SAE = flags.DEFINE_string('sae', None, 'Folder or hub id.', required=True)
_OUT = flags.DEFINE_string('out', None, 'Folder of records.', required=True)
_LM = flags.DEFINE_string('lm', '', "Language model, not the SAE files'.")
_TEXT = flags.DEFINE_string(
  'text', '', "Sources, not the run's held-out ones; 'harvest' for its others."
)
_TOKENS = flags.DEFINE_integer('tokens', 0, 'Tokens to read; 0 reads all.')
_CONTEXT = flags.DEFINE_integer(
  'context_length', 0, "Of sequences; 0 takes the SAE files'."
)
_SITE = flags.DEFINE_string('site', '', 'Such as resid_post/2, if unknown.')
_MESH = flags.DEFINE_list('mesh', ['1', '1'], 'Devices: data,latent.')
_SETTINGS = {
  field.name: flags.DEFINE_integer(
    field.name, field.default, 'See jumprelu_jax/records/state.py.'
  )
  for field in dataclasses.fields(state.Settings)
}


def request():
  """Returns what the flags ask for."""
  if len(_MESH.value) != 2 or not all(n.isdecimal() for n in _MESH.value):
    raise errors.InputError(
      f'--mesh={",".join(_MESH.value)}: expected DATA,LATENT, such as 1,8.'
    )
  for flag in (_TOKENS, _CONTEXT):
    if flag.value < 0:
      raise errors.InputError(
        f'--{flag.name}={flag.value}: expected 0 or more.'
      )
  settings = {name: flag.value for name, flag in _SETTINGS.items()}
  return make.Request(
    sae=_SAE.value,
    lm=_LM.value,
    text=_TEXT.value,
    tokens=_TOKENS.value,
    context_length=_CONTEXT.value,
    site=_SITE.value,
    mesh=tuple(map(int, _MESH.value)),
    settings=state.Settings(**settings),
  )


def main():
  make.make(request(), _OUT.value)
  progress.say(f'{_OUT.value}: records')


if __name__ == '__main__':
  launch.run(main)
