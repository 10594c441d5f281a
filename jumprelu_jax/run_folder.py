"""A run's folder: whose it is, and whether what lies there is whole.

A folder belongs to one config (config.json) and to the inputs that the run
began with (inputs.json); a process at work there holds its lock.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import os
import pathlib

from jumprelu_jax import config as config_lib
from jumprelu_jax import config_history
from jumprelu_jax import errors
from jumprelu_jax import hosts as hosts_lib
from jumprelu_jax import identity
from jumprelu_jax import json_files
from jumprelu_jax import lock
from jumprelu_jax import progress
from jumprelu_jax import seals
from jumprelu_jax import whole
from jumprelu_jax.lm import outliers
from jumprelu_jax.lm import sites

#: In the folder of an SAE that was trained with a norm filter.
LIMITS = 'norm_limits.json'

_INPUTS = 'inputs.json'
# Of an SAE's folder; made again by the command of its run where removed.
_REMADE = ('evaluation.json', 'latents.npz')


def claim(workdir: str | os.PathLike, run: config_lib.RunConfig) -> None:
  """Makes a folder the run's own, or checks that it already is.

  Raises:
    errors.InputError: the folder holds a run with another config, or something
      else; it is left as it is.
  """
  workdir = pathlib.Path(workdir)
  path = workdir / 'config.json'
  if path.exists():
    check_same_config(path, run)
    return
  if workdir.exists() and not (workdir.is_dir() and _is_empty(workdir)):
    raise errors.InputError(
      f'--workdir={workdir} exists and holds no run; give an empty or a new '
      'folder.'
    )
  whole.make_folder(workdir)
  whole.write_json(path, run.to_dict())


@contextlib.contextmanager
def claimed(
  workdir: str | os.PathLike, run: config_lib.RunConfig
) -> Iterator[None]:
  """Claims a folder and holds its lock while it lasts; of several, the first.

  Raises:
    errors.InputError: as `claim`; or another process is at work there; or this
      one does not see the folder.
  """
  workdir = pathlib.Path(workdir)
  with contextlib.ExitStack() as stack:
    if hosts_lib.is_first():
      claim(workdir, run)
      stack.enter_context(lock.held(workdir / 'run.lock'))
      claim(workdir, run)  # another may have claimed it at the same time
      for path in workdir.rglob('*.partial'):
        path.unlink()  # of a process that was killed while it wrote
    hosts_lib.meet('workdir')
    path = workdir / 'config.json'
    hosts_lib.check_visible(path, path.exists)
    yield


def load_run(folder: str | os.PathLike) -> config_lib.RunConfig:
  """Reads the config of a run's or an SAE's folder, of any version.

  Raises:
    errors.InputError: there is none, or it is not a config.
  """
  path = pathlib.Path(folder) / 'config.json'
  has(path.parent, path.name)  # raises if it is damaged
  if not path.is_file():
    raise errors.InputError(
      f'{path} does not exist; give a folder that a run has written.'
    )
  raw = config_history.complete(read_json(path))
  return config_lib.RunConfig.from_config_dict(raw)


def write_limits(folder: pathlib.Path, limits: outliers.Limits) -> None:
  """Writes the norms up to which rows were trained on, if there is a limit."""
  content = {f'{site.name}/{site.layer}': norm for site, norm in limits}
  if content:
    whole.write_json(folder / LIMITS, content)


def read_limits(
  folder: str | os.PathLike, run: config_lib.RunConfig
) -> outliers.Limits:
  """Returns the norms up to which an SAE's rows were trained on.

  Args:
    folder: of the SAE.
    run: its config; () where it asks for no filter.

  Raises:
    errors.InputError: the file is damaged.
  """
  if not run.activations.max_norm_multiple:
    return ()
  path = pathlib.Path(folder) / LIMITS
  if not path.is_file():
    progress.say(
      f'WARNING: {path} is missing, as in folders of earlier versions: '
      'positions that the norm filter kept out of training are measured too.'
    )
    return ()
  raw = read_json(path)
  if not all(isinstance(norm, int | float) for norm in raw.values()):
    raise errors.InputError(
      f'{path} holds {raw}, expected a norm for each site; restore that file.'
    )
  return tuple((sites.parse(site), float(raw[site])) for site in sorted(raw))


def check_unchanged(
  workdir: pathlib.Path, digests: Mapping[str, object]
) -> None:
  """Checks that inputs are those that the run began with; notes new ones.

  Args:
    workdir: the run's folder.
    digests: checksums by what they are of, in any depth.

  Raises:
    errors.InputError: they differ, or inputs.json is damaged.
  """
  path, found = workdir / _INPUTS, {}
  if path.exists():
    try:
      found = seals.check_signed(read_json(path))
    except ValueError as error:
      raise errors.InputError(
        f'{path} is damaged: {error}. Remove it if the model and the texts are '
        'as they were.'
      ) from error
  before = config_lib.flatten(
    {key: found[key] for key in digests if key in found}
  )
  changed = identity.differences(before, config_lib.flatten(digests))
  if before and changed:
    raise errors.InputError(
      f'{workdir} was begun with other inputs (checksums of {changed}); '
      'restore them, or give another --workdir.'
    )
  if not before:
    whole.write_json(path, seals.signed({**found, **digests}))


def check_same_config(path: pathlib.Path, run: config_lib.RunConfig) -> None:
  """Raises errors.InputError, with the differences, if config.json differs."""
  theirs = identity.of_raw(config_history.complete(read_json(path)))
  if differing := identity.differences(theirs, identity.of(run)):
    raise errors.InputError(
      f'{path.parent} holds a run with another config ({differing}); give '
      'another --workdir.'
    )


def has(folder: pathlib.Path, name: str) -> bool:
  """Returns whether a stage has written its file in an SAE's folder.

  Raises:
    errors.InputError: a file under the folder's seal is damaged.
  """
  if not seals.is_sealed(folder, name):
    return False
  try:
    seals.read(folder, optional=_REMADE)
  except seals.BrokenSealError as error:
    what = 'written', 'from its last checkpoint', folder / seals.NAME
    if error.path.name in _REMADE:
      what = 'evaluated', 'on the same text', error.path
    done, how, removed = what
    raise errors.InputError(
      f'{folder} is damaged: {error}. Restore that file; or remove {removed} '
      f'and give the command of its run again: the SAE is {done} again {how}.'
    ) from error
  return name not in _REMADE or all((folder / n).is_file() for n in _REMADE)


def read_json(path: pathlib.Path) -> dict[str, object]:
  """Returns the object that a file holds.

  Raises:
    errors.InputError: it holds none.
  """
  try:
    return json_files.read_object(path)
  except ValueError as error:
    raise errors.InputError(
      f'{path} is damaged: it is not JSON of an object ({error}). If it is a '
      'run of yours, restore this file; else give another --workdir.'
    ) from error


def _is_empty(workdir):
  """True but for what a process left that was killed as it claimed it."""
  begun = set(workdir.glob('config.json.*.partial'))
  return set(workdir.iterdir()) <= begun | {workdir / 'run.lock'}
