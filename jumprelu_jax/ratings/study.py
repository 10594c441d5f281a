"""The folder of a study, which belongs to its settings.

  STUDY/items.jsonl     what raters see of each item, a line each
  STUDY/study.json      settings, SAEs, and which latent an item is: the key of
                        the blinding; written last
  STUDY/seal.json       checksum of the first, and what the second says
  STUDY/answers.sqlite  what raters said; every answer has a checksum

It is whole in itself: neither the records nor the SAEs are read again.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import functools
import json
import math
import os
import pathlib
import re

import numpy as np

from jumprelu_jax import errors
from jumprelu_jax import identity
from jumprelu_jax import json_files
from jumprelu_jax import seals
from jumprelu_jax import seeds
from jumprelu_jax import whole
from jumprelu_jax.ratings import design
from jumprelu_jax.ratings import windows
from jumprelu_jax.records import schema

_STUDY, _ITEMS, _ANSWERS = 'study.json', 'items.jsonl', 'answers.sqlite'
_VERSION = 1
_REMEDY = (
  'Restore that file, or draw the study again, of the same records and '
  'settings, in another folder.'
)
# What must be the same of all records, or a page would tell them apart.
_ALIKE = ('model', 'text', 'strata')
# Names stand in addresses of pages, where '.' and '..' are folders.
_NAME = re.compile(r'\w[\w .-]{0,39}')


@dataclasses.dataclass(frozen=True)
class Settings:
  """What a study is drawn by.

  Attributes:
    records: folders, one for each SAE.
    raters: their names.
    per_sae: latents of each SAE that a rater rates.
    overlap: share of a rater's items that all raters have.
    l0: levels of sparsity; () to find them (`design.levels`).
    per_stratum: windows shown of each quantile, and of the largest, at most.
    seed: of the draw.
  """

  records: tuple[str, ...]
  raters: tuple[str, ...] = ('rater_1', 'rater_2')
  per_sae: int = 1
  overlap: float = 0.2
  l0: tuple[float, ...] = ()
  per_stratum: int = 5
  seed: int = 0

  def __post_init__(self):
    """Raises InputError where a value has no meaning."""
    for name in ('records', 'raters'):
      values = getattr(self, name)
      if not values or len(set(values)) < len(values):
        _refuse(name, values, 'one or more, each once')
    for rater in self.raters:
      if not _NAME.fullmatch(rater):
        _refuse(
          'raters', rater, 'up to 40 letters, digits, spaces, dots, - and _'
        )
    for name in ('per_sae', 'per_stratum'):
      if getattr(self, name) < 1:
        _refuse(name, getattr(self, name), 'at least 1')
    if not 0 <= self.overlap <= 1:
      _refuse('overlap', self.overlap, 'a share from 0 to 1')
    if any(not 0 < l0 < math.inf for l0 in self.l0):
      _refuse('l0', self.l0, 'positive numbers')
    if not 0 <= self.seed <= seeds.MOST:
      _refuse('seed', self.seed, f'at least 0 and at most {seeds.MOST}')


@dataclasses.dataclass(frozen=True)
class Study:
  """A study that was drawn.

  Attributes:
    folder: where it is.
    settings: what it was drawn by.
    saes: all that are in it.
    items: by name.
    orders: names of each rater's items, in the rater's order.
  """

  folder: pathlib.Path
  settings: Settings
  saes: tuple[design.SAE, ...]
  items: Mapping[str, design.Item]
  orders: Mapping[str, tuple[str, ...]]

  @property
  def answers(self) -> pathlib.Path:
    """The file of `answers`."""
    return self.folder / _ANSWERS

  @functools.cached_property
  def shown(self) -> dict[str, list[dict[str, object]]]:
    """What is shown of each item, as `windows.of_latents` gives it.

    Raises InputError if the file is damaged.
    """
    path = self.folder / _ITEMS
    try:
      lines = path.read_text(encoding='utf-8').split('\n')[:-1]
      rows = list(map(json_files.parse_object, lines))
      found = {row['item']: row['strata'] for row in rows}
      if found.keys() == self.items.keys():
        return found
      problem = 'it lacks items'
    except (OSError, ValueError, KeyError, TypeError) as error:
      problem = repr(error)
    raise errors.InputError(f'{path} is damaged ({problem}). {_REMEDY}')


def prepare(folder: str | os.PathLike, asked: Mapping[str, object]) -> Study:
  """Draws a study, or opens the one that is there.

  Args:
    folder: of the study.
    asked: settings by name. A study that is there must have these values;
      settings that are not given are its own, or else the defaults.

  Raises:
    errors.InputError: the folder holds a study with other settings or something
      else, no records are given for a new one, or they do not go together.
  """
  folder = pathlib.Path(folder)
  if (folder / _STUDY).exists():
    study = read(folder)
    _check_same(study, asked)
    _make_private(folder)
    return study
  if 'records' not in asked:
    raise errors.InputError(
      f'--study={folder} holds no study yet, and --records is missing; give '
      'the folders of records that it is to draw from.'
    )
  if folder.exists() and not (folder.is_dir() and _is_unfinished(folder)):
    raise errors.InputError(
      f'--study={folder} exists and holds no study; give an empty or a new '
      'folder.'
    )
  return _create(folder, Settings(**asked))


def read(folder: str | os.PathLike) -> Study:
  """Opens a study that was drawn.

  Raises:
    errors.InputError: there is none, or it is damaged.
  """
  folder = pathlib.Path(folder)
  path = folder / _STUDY
  if not path.is_file():
    raise errors.InputError(
      f'--study={folder} holds no {_STUDY}; give a folder that '
      'experiments.rate serve has made.'
    )
  try:
    found = json_files.parse_object(path.read_bytes())
    if found['version'] == _VERSION:
      seals.check(folder, _REMEDY, about=found)
      return _from_json(folder, found)
  except errors.InputError:
    raise
  except (ValueError, KeyError, TypeError, AttributeError,
          RecursionError) as error:  # fmt: skip
    raise errors.InputError(
      f'{path} is damaged: {error!r}. {_REMEDY}'
    ) from error
  raise errors.InputError(
    f'{path} is of version {found["version"]}; expected {_VERSION}. Read it '
    'with the version of this package that made it.'
  )


def same_folders(folders: Sequence[str]) -> tuple[str, ...]:
  """Returns folders' full paths in one order, however they were given."""
  return tuple(sorted(str(pathlib.Path(one).resolve()) for one in folders))


def _from_json(folder, found):
  settings = {
    k: tuple(v) if isinstance(v, list) else v
    for k, v in found['settings'].items()
  }
  items = [design.Item(**item) for item in found['items']]
  return Study(
    folder,
    Settings(**settings),
    tuple(design.SAE(**sae) for sae in found['saes']),
    {item.name: item for item in items},
    {rater: tuple(names) for rater, names in found['orders'].items()},
  )


def _check_same(study, asked):
  """Raises InputError, with the differences, if other settings are asked."""
  there = {name: getattr(study.settings, name) for name in asked}
  if differing := identity.differences(there, asked):
    raise errors.InputError(
      f'{study.folder} holds a study with other settings ({differing}); give '
      'another --study, or leave them out to go on with it.'
    )


def _is_unfinished(folder):
  """True if a folder is empty, or holds what a killed `_create` has left."""
  return all(
    path.name in (_ITEMS, seals.NAME) or path.name.endswith('.partial')
    for path in folder.iterdir()
  )


def _create(folder, settings):
  """Draws a study and writes it."""
  opened = [schema.read(path) for path in settings.records]
  _check_alike(opened)
  alive = [_alive(records) for records in opened]
  sparsities = design.levels([r.source.l0 for r in opened], settings.l0)
  saes = tuple(map(_sae, opened, sparsities, alive))
  drawn = design.draw(
    saes, alive, settings.raters, per_sae=settings.per_sae,
    overlap=settings.overlap, seed=settings.seed,
  )  # fmt: skip
  lines = ''.join(_lines(opened, drawn, settings))
  folder.mkdir(parents=True, exist_ok=True)
  _make_private(folder)
  whole.write_text(folder / _ITEMS, lines)
  content = {
    'version': _VERSION,
    'settings': dataclasses.asdict(settings),
    'saes': [dataclasses.asdict(sae) for sae in saes],
    'items': [dataclasses.asdict(item) for item in drawn.items],
    'orders': drawn.orders,
  }
  seals.write(folder, content, [_ITEMS])
  whole.write_json(folder / _STUDY, content)
  _make_private(folder)
  return read(folder)


def _make_private(folder):
  """Lets nobody else in: a study has the key of its blinding, and answers."""
  with contextlib.suppress(PermissionError):  # it is another user's
    folder.chmod(0o700)
    for path in filter(pathlib.Path.is_file, folder.iterdir()):
      path.chmod(0o600)


def _alive(records):
  """Returns the latents that fire, ascending."""
  table = records.latents(['latent', 'count'])
  fires_M = table['count'].to_numpy() > 0
  return np.sort(table['latent'].to_numpy()[fires_M])


def _sae(records, sparsity, alive_A):
  source = records.source
  return design.SAE(
    records=str(records.folder),
    site=source.site,
    layer=source.layer,
    architecture=source.architecture,
    l0=source.l0,
    sparsity=sparsity,
    num_latents=source.num_latents,
    num_alive=len(alive_A),
  )


def _lines(opened, drawn, settings):
  """Yields the lines of items.jsonl, in an order that says nothing."""
  rng = np.random.default_rng((settings.seed, 1))
  extents = map(windows.extent, opened)
  shown = windows.smallest(extents, settings.per_stratum)
  strata = {}
  for i, records in enumerate(opened):
    own = {item.latent: item.name for item in drawn.items if item.sae == i}
    found = windows.of_latents(records, list(own), shown, rng)
    strata |= {own[latent]: value for latent, value in found.items()}
  for name in sorted(strata):
    yield json.dumps({'item': name, 'strata': strata[name]}) + '\n'


def _check_alike(opened):
  """Raises InputError if records differ where a page would show it."""
  for records in opened:
    source = records.source
    if not source.architecture:
      raise errors.InputError(
        f'{records.folder / schema.SOURCE} names no architecture, and a study '
        'compares them; give the command of the records again with '
        '--architecture=NAME, which changes nothing else.'
      )
    if not source.l0 > 0:
      raise errors.InputError(
        f'{records.folder}: none of its latents fires; leave it out of '
        '--records.'
      )
    for name in _ALIKE:
      ours, first = getattr(source, name), getattr(opened[0].source, name)
      if ours != first:
        raise errors.InputError(
          f'{records.folder} has {name} {ours!r}, {opened[0].folder} has '
          f'{first!r}, and raters could tell them apart; give records that '
          'were made alike.'
        )


def _refuse(name, value, expected):
  raise errors.InputError(f'--{name}={value!r}: expected {expected}.')
