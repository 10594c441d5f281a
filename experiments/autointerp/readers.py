"""Which language model answers, by the flags."""

import contextlib
import json

from absl import flags

from jumprelu_jax import api
from jumprelu_jax import errors
from jumprelu_jax.autointerp import local

_ENDPOINT = flags.DEFINE_string(
  'endpoint', None, 'Base URL of chat completions, http://127.0.0.1:8000/v1.'
)
_MODEL = flags.DEFINE_string('model', None, "The model's name there.")
_KEY_VARIABLE = flags.DEFINE_string(
  'key_variable', 'OPENAI_API_KEY', 'Environment variable that holds the key.'
)
_PARAMETERS = flags.DEFINE_string(
  'parameters', '{"temperature": 0}', 'JSON, of every request.'
)
_LIMIT_NAME = flags.DEFINE_enum(
  'limit_name',
  'max_tokens',
  ['max_tokens', 'max_completion_tokens'],
  "The parameter that limits an answer's length.",
)
_LM = flags.DEFINE_string(
  'lm', None, 'In place of an endpoint: a local model, as --config.lm.path.'
)
_CONCURRENCY = flags.DEFINE_integer('concurrency', 8, 'Requests at a time.')
_PER_MINUTE = flags.DEFINE_float(
  'per_minute', 0.0, 'Requests started in a minute; 0: no limit.'
)
_RETRIES = flags.DEFINE_integer('retries', 6, 'Of a request that fails.')
_TIMEOUT_S = flags.DEFINE_float('timeout_s', 120.0, 'For an answer.')
_BACKOFF_S = flags.DEFINE_float('backoff_s', 1.0, 'First wait; it doubles.')
_MAX_WAIT_S = flags.DEFINE_float('max_wait_s', 120.0, 'Longest wait.')


@contextlib.asynccontextmanager
async def of_flags():
  """Yields the reader that the flags ask for."""
  if (_ENDPOINT.value is None) == (_LM.value is None):
    raise errors.InputError(
      'these measures need a language model; give either --endpoint with '
      '--model, or --lm.'
    )
  if _LM.value is not None:
    yield local.Local(api.load_lm(_LM.value))
    return
  async with _chat() as reader:
    yield reader


def _chat():
  """Returns the endpoint's reader, not yet entered."""
  if not _MODEL.value:
    raise errors.InputError(
      f"--endpoint={_ENDPOINT.value} without --model; give the model's name."
    )
  try:
    from jumprelu_jax.autointerp import chat
  except ModuleNotFoundError as error:
    raise errors.InputError(
      f"--endpoint needs {error.name}; pip install 'jumprelu-jax[interp]'."
    ) from error
  return chat.Chat(
    _ENDPOINT.value,
    _MODEL.value,
    key_variable=_KEY_VARIABLE.value,
    parameters=_parameters(),
    limit_name=_LIMIT_NAME.value,
    limits=chat.Limits(
      _CONCURRENCY.value,
      _PER_MINUTE.value,
      _RETRIES.value,
      _TIMEOUT_S.value,
      _BACKOFF_S.value,
      _MAX_WAIT_S.value,
    ),
  )


def at_a_time():
  """Returns how many latents are asked about at a time."""
  return 1 if _LM.value is not None else max(_CONCURRENCY.value, 1)


def name_of_flags():
  """Returns the model's name, for the record."""
  return _LM.value if _LM.value is not None else _MODEL.value


def _parameters():
  try:
    parameters = json.loads(_PARAMETERS.value)
  except ValueError as error:
    raise errors.InputError(f'--parameters is not JSON ({error}).') from error
  if not isinstance(parameters, dict):
    raise errors.InputError(
      f'--parameters={_PARAMETERS.value}: expected a JSON object.'
    )
  return parameters
