"""What all launchers share: flags, errors as one line, SIGTERM."""

from collections.abc import Callable
import contextlib
import os
import pathlib
import sys
import traceback

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


# Flags that name what launchers write.
_WRITTEN = ('workdir', 'out', 'target', 'json')


def run_config() -> config_lib.RunConfig:
  """Returns the checked config that --config and its overrides give."""
  if CONFIG.value is None:
    raise errors.InputError(
      '--config is missing; give a recipe, such as '
      '--config=configs/quickstart.py.'
    )
  return config_lib.RunConfig.from_config_dict(CONFIG.value.to_dict())


def run(
  main: Callable[[], None],
  *,
  in_processes: bool = False,
  takes_urls: bool = False,
) -> None:
  """Parses the flags and calls main(); the user's errors end with exit code 2.

  An `errors.InputError`, from the flags or from main, is printed as one line,
  and so is an error of the operating system. Work that SIGTERM stopped ends
  with exit code 75, and says what it has kept. When one of several processes
  ends with an error, all do, and say why.

  Args:
    main: the launcher's work.
    in_processes: whether several processes may share it.
    takes_urls: whether it may write to URLs.
  """

  def guarded(argv):
    logging.set_verbosity(logging.WARNING)  # Orbax logs every call as INFO
    if len(argv) > 1:
      _fail(f'arguments {argv[1:]} are not flags; flags start with --.')
    try:
      _check_names(takes_urls)
      _join(in_processes)
      with _hearing_preemption():
        main()
      hosts.meet('end')  # the first process works for longer
    except preemption.PreemptedError as error:
      _end('preempted', error, preemption.EXIT_CODE)
    except Exception as error:
      if line := _line(error):
        _fail(line)
      if not hosts.are_several():
        raise
      traceback.print_exc()
      _end('error', f'{type(error).__name__}: {error}', 1)

  app.run(guarded, flags_parser=_parse)


def _join(in_processes):
  """Joins the other processes, if there are any that run the same."""
  spec = _PROCESSES.value
  if spec != 'one' and not in_processes:
    raise errors.InputError(
      f'--processes={spec}: this command runs in one process. Only '
      'experiments.train and experiments.sweep run in several; several hosts '
      'share experiments.harvest by --host=I --hosts=N.'
    )
  hosts.start(spec)
  hosts.agree('command', _decisive)


def _decisive():
  """Returns what processes must have in common from the start."""
  config = CONFIG.value.to_dict() if CONFIG.value is not None else {}
  return {
    'command': pathlib.Path(sys.argv[0]).name,
    **config_lib.flatten({'config': config}),
    **hosts.software(),
  }


def _line(error):
  """Returns what to say of an error; '' of a defect, which has a traceback."""
  if isinstance(error, errors.InputError):
    return error
  if reason := hosts.departure():  # in whatever way this one met with it
    return reason
  if isinstance(error, UnicodeEncodeError) and 'surrogate' in error.reason:
    return f'{error.object!r} is not UTF-8; give it a name that is.'
  found = errors.system_error(error)
  return _line_of_disks(found) if found else ''


def _line_of_disks(error):
  """Returns what to say of an error of the operating system."""
  name, what, advice = str(error.filename or 'a file'), 'failed', 'see to it'
  if errors.of_writing(error) is errors.DiskFullError:
    what, advice = 'could not be written', 'free some space'
  elif os.path.islink(name) and not os.path.exists(name):
    advice = f'it is a link to {os.readlink(name)}, which is not there: fix it'
  return (
    f'{name} {what} ({error.strerror}). What was written before is complete '
    f'and kept; {advice}, and give the same command again: it resumes from '
    'there.'
  )


def _check_names(takes_urls):
  """Raises InputError for names that no file may have here."""
  for text in (*sys.argv, os.getcwd()):
    if text != text.encode(errors='replace').decode():
      raise errors.InputError(
        f'{text!r} is not UTF-8; give names of files and folders that are.'
      )
  for name in _WRITTEN:
    value = flags.FLAGS[name].value if name in flags.FLAGS else None
    if not takes_urls and '://' in str(value):
      raise errors.InputError(
        f'--{name}={value} is a URL, expected a folder or file of this '
        "machine; mount it, or give another. Only experiments.harvest's "
        '--workdir may be a URL.'
      )


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
  _end('error', message, 2)


def _end(kind, message, code):
  """Prints one line, in all of several processes, and ends."""
  line = ' '.join(str(message).split())
  print(f'{kind}: {line}', file=sys.stderr)
  hosts.leave(line, code)
  sys.exit(code)
