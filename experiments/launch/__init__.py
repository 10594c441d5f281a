"""What all launchers share: flags, errors as one line, SIGTERM."""

from collections.abc import Callable
import contextlib
import sys

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

from jumprelu_jax import config as config_lib
from jumprelu_jax import errors
from jumprelu_jax import hosts
from jumprelu_jax import preemption

CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Recipe, such as configs/quickstart.py.', lock_config=True
)
_PROCESSES = flags.DEFINE_string(
  'processes',
  'one',
  "Processes that run this together: 'one', 'auto' (the cluster's environment) "
  'or ADDRESS:PORT,COUNT,INDEX.',
)


def run_config() -> config_lib.RunConfig:
  """Returns the checked config that --config and its overrides give."""
  if CONFIG.value is None:
    raise errors.InputError(
      '--config is missing; give a recipe, such as '
      '--config=configs/quickstart.py.'
    )
  return config_lib.RunConfig.from_config_dict(CONFIG.value.to_dict())


def run(main: Callable[[], None]) -> None:
  """Parses the flags and calls main(); the user's errors end with exit code 2.

  An `errors.InputError`, from the flags or from main, is printed as one line,
  and so is a disk that is full. Work that SIGTERM stopped ends with exit code
  75, and says what it has kept.
  """

  def guarded(argv):
    logging.set_verbosity(logging.WARNING)  # Orbax logs every call as INFO
    if len(argv) > 1:
      _fail(f'arguments {argv[1:]} are not flags; flags start with --.')
    try:
      hosts.start(_PROCESSES.value)
      with _hearing_preemption():
        main()
    except errors.InputError as error:
      _fail(error)
    except OSError as error:
      if errors.of_writing(error) is not errors.DiskFullError:
        raise
      _fail(
        f'{error.filename or "a file"} could not be written '
        f'({error.strerror}). What was written before is complete and kept; '
        'free some space and give the same command again: it goes on from '
        'there.'
      )
    except preemption.PreemptedError as error:
      _say('preempted', error)
      sys.exit(preemption.EXIT_CODE)

  app.run(guarded, flags_parser=_parse)


def _hearing_preemption():
  """Of several processes JAX hears SIGTERM; of one, we do."""
  if _PROCESSES.value == 'one':
    return preemption.heard()
  return contextlib.nullcontext()


def _parse(argv):
  """Parses flags; an override of an unknown config key is one clear line."""
  try:
    return flags.FLAGS(argv)
  except AttributeError as error:  # of config_flags: an unknown key
    _fail(
      f'the recipe has no key {error}; jumprelu_jax/config.py lists them all.'
    )
  except (flags.Error, ValueError, TypeError, OSError) as error:
    _fail(error)


def _fail(message):
  _say('error', message)
  sys.exit(2)


def _say(kind, message):
  print(f'{kind}: {" ".join(str(message).split())}', file=sys.stderr)
