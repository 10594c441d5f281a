"""The flags that say what records are wanted.

Of every launcher that makes them, and imported by those alone: importing
defines the flags.
"""

import dataclasses

from absl import flags

from experiments.records import make
from jumprelu_jax import errors
from jumprelu_jax.records import state

SAE = flags.DEFINE_string('sae', None, "An SAE's folder or hub id.")
_LM = flags.DEFINE_string('lm', '', "Language model, not the SAE files'.")
_TEXT = flags.DEFINE_string(
  'text',
  '',
  "Sources of text, not the held-out ones of the SAE's run; 'harvest' for what "
  'it was trained on.',
)
_TOKENS = flags.DEFINE_integer('tokens', 0, 'Tokens to read; 0 reads all.')
_CONTEXT = flags.DEFINE_integer(
  'context_length', 0, "Of sequences; 0 takes the SAE files'."
)
_SITE = flags.DEFINE_string('site', '', 'Such as resid_post/2, if unknown.')
_TARGET = flags.DEFINE_string(
  'target', '', 'What a transcoder predicts, such as mlp_out/2, if unknown.'
)
_ARCHITECTURE = flags.DEFINE_string(
  'architecture',
  '',
  "What to call the SAE's architecture, if its files do not say; of records "
  'that are there too.',
)
_MESH = flags.DEFINE_list('mesh', ['1', '1'], 'Devices: data,latent.')
_HELP = {
  'top': 'Windows of a latent with its largest activations.',
  'sampled': 'Windows of a latent drawn from all its firings.',
  'strata': 'Quantiles that these are divided into.',
  'width': 'Tokens of a window.',
  'token_slots': 'Tokens of a latent that are counted.',
  'positions': 'Positions that tell which latents fire together.',
  'background': 'Windows drawn without regard to any latent.',
  'seed': 'Of the samples.',
}
_SETTINGS = {
  field.name: flags.DEFINE_integer(field.name, field.default, _HELP[field.name])
  for field in dataclasses.fields(state.Settings)
}


def from_flags() -> make.Request:
  """Returns what the flags ask for; InputError if they make no sense."""
  if len(_MESH.value) != 2 or not all(n.isdecimal() for n in _MESH.value):
    raise errors.InputError(
      f'--mesh={",".join(_MESH.value)}: expected DATA,LATENT, such as 1,8.'
    )
  for flag in (_TOKENS, _CONTEXT):
    errors.check_least(0, {f'--{flag.name}': flag.value})
  return make.Request(
    sae=SAE.value,
    lm=_LM.value,
    text=_TEXT.value,
    tokens=_TOKENS.value,
    context_length=_CONTEXT.value,
    site=_SITE.value,
    target=_TARGET.value,
    architecture=_ARCHITECTURE.value,
    mesh=tuple(map(int, _MESH.value)),
    settings=state.Settings(
      **{name: flag.value for name, flag in _SETTINGS.items()}
    ),
  )
