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
from jumprelu_jax import seals
from jumprelu_jax import whole

_INPUTS = 'inputs.json'


def claim(workdir: str | os.PathLike, run: config_lib.RunConfig) -> None:
  """Makes a folder the run's own, or checks that it already is.

  Raises:
    errors.InputError: the folder holds a run with another config, or something
      else; it is left as it is.
  """
  workdir = pathlib.Path(workdir)
  path = workdir / 'config.json'
  if not hosts_lib.is_first():
    hosts_lib.wait_for(path.exists)
  if path.exists():
    check_same_config(path, run)
    return
  if workdir.exists() and not (workdir.is_dir() and _is_empty(workdir)):
    raise errors.InputError(
      f'--workdir={workdir} exists and holds no run; give an empty or a new '
      'folder.'
    )
  workdir.mkdir(parents=True, exist_ok=True)
  whole.write_json(path, run.to_dict())


@contextlib.contextmanager
def claimed(
  workdir: str | os.PathLike, run: config_lib.RunConfig
) -> Iterator[None]:
  """Claims a folder and holds its lock while it lasts.

  Raises:
    errors.InputError: as `claim`; or another process is at work there.
  """
  claim(workdir, run)
  if not hosts_lib.is_first():
    yield
    return
  with lock.held(pathlib.Path(workdir) / 'run.lock'):
    claim(workdir, run)  # another may have claimed it at the same time
    for path in pathlib.Path(workdir).rglob('*.partial'):
      path.unlink()  # of a process that was killed while it wrote
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
    seals.read(folder)
  except seals.BrokenSealError as error:
    raise errors.InputError(
      f'{folder} is damaged: {error}. Restore that file; or remove '
      f'{folder / seals.NAME} and give the same command again: the SAE is '
      'written anew from its last checkpoint.'
    ) from error
  return True


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
