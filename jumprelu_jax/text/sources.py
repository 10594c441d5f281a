"""Sources of text: what to read, and the documents that are in it.

A source is files on disk or a dataset of the Hugging Face hub. It gives its
documents in their order, whatever kind each is: text, token ids or a
conversation. Nothing here knows of a tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
import contextlib
import dataclasses
import glob
import itertools
import math
import os
import re
from typing import Any
import urllib.parse

from jumprelu_jax import errors
from jumprelu_jax import progress
from jumprelu_jax.text import files

Message = dict[str, Any]  # 'role', 'content' and whatever a template may read
#: A long text comes in parts that follow each other.
Document = str | Iterator[str] | list[int] | list[Message]

_HUB = 'hf://datasets/'
_OPTIONS = ('column', 'weight', 'split', 'name', 'revision')
# Without this, `datasets` rewrites rows that look like traces of agents.
_READER_OPTIONS = {'json': {'parse_agent_traces': False}}
# Characters of a text file that are read at once; a longer one comes in parts.
_CHARACTERS = 1 << 18
_KINDS = (
  "a string, a list of token ids, or a list of messages with 'role' and "
  "'content'"
)


@dataclasses.dataclass(frozen=True)
class Source:
  """Where documents come from.

  Attributes:
    path: a file, a folder of files, a pattern such as `shards/*.parquet`, a
      folder written by `datasets.Dataset.save_to_disk`, or
      `hf://datasets/OWNER/NAME`, which is streamed.
    column: what holds the documents.
    weight: share of the documents of a mix, relative to the other sources'.
    split: split of a hub dataset or of a saved `datasets.DatasetDict`.
    name: configuration of a hub dataset; '' takes its only one.
    revision: commit, tag or branch of a hub dataset; '' takes the newest.
  """

  path: str
  column: str = 'text'
  weight: float = 1.0
  split: str = 'train'
  name: str = ''
  revision: str = ''

  def __post_init__(self):
    if not (self.weight > 0 and math.isfinite(self.weight)):
      raise errors.InputError(
        f'text {self.path} has weight={self.weight}; give a finite number '
        'above 0, or leave the source out.'
      )
    is_hub = self.path.startswith(_HUB)
    if is_hub and not re.fullmatch(r'[\w.-]+/[\w.-]+', self.hub_id):
      raise errors.InputError(
        f'text {self.path} is no dataset of the Hugging Face hub; give '
        f'{_HUB}OWNER/NAME and the rest as options, e.g. ?split=train.'
      )
    if not is_hub and '://' in self.path:
      raise errors.InputError(
        f'text {self.path} cannot be fetched; give a local path or '
        f'{_HUB}OWNER/NAME.'
      )
    if not is_hub and (self.name or self.revision):
      raise errors.InputError(
        f'text {self.path} has a name or a revision, which only datasets of '
        f'the hub have; leave them out, or give {_HUB}OWNER/NAME.'
      )

  @property
  def hub_id(self) -> str:
    """OWNER/NAME of a hub dataset; '' for local files."""
    is_hub = self.path.startswith(_HUB)
    return self.path.removeprefix(_HUB) if is_hub else ''


def parse(spec: str) -> tuple[Source, ...]:
  """Returns the sources that a spec names.

  Args:
    spec: sources separated by commas; each a path, then possibly `?` and
      options in the form of a URL's query, e.g.
      `a.jsonl.gz?weight=2,hf://datasets/owner/name?split=test&column=body`.
      Options are Source's attributes. Values are percent-decoded, paths are
      not; a path can hold neither comma nor question mark.

  Raises:
    errors.InputError: a source is empty; an option is unknown, repeated or
      without a value; a weight is not a finite number above 0.
  """
  return tuple(_parse_one(part.strip(), spec) for part in spec.split(','))


def read(source: Source) -> Iterator[Document]:
  """Returns the documents of a source, in order, without the blank ones.

  A document is text, a list of token ids, or a list of messages (a
  conversation); the type of the column's value tells which. The first document
  is read by this call, so that a source that cannot be used fails here and not
  after hours; the others are read as they are asked for. Rows whose text is
  null or blank are left out, which one line says at the end.

  Local files are told by suffix: `.jsonl` or `.json` (one object a line, or one
  list of objects), `.txt` (a file is one document, in the column 'text'), each
  also compressed (`.gz`, `.xz`, `.bz2`, `.zst`), `.parquet` and `.arrow`. The
  files of a folder or a pattern are read one after the other by their names.

  Raises:
    errors.InputError: the source is missing, empty, not readable or has no
      text; a row's value is of no such type. Later rows raise when reached.
  """
  documents = _documents(source)
  return itertools.chain([_first(documents, source)], documents)


def check(source: Source) -> None:
  """Raises what `read` raises, by reading the first document."""
  _first(_documents(source, says_left_out=False), source)


def _first(documents, source):
  try:
    return next(documents)
  except StopIteration:
    raise errors.InputError(
      f'text {source.path} has no text; give one with documents.'
    ) from None


def _parse_one(part, spec):
  path, _, query = part.partition('?')
  if not path:
    raise errors.InputError(
      f'text {spec!r} has a source without a path; give a file, a folder or '
      f'{_HUB}OWNER/NAME, and one comma between two sources.'
    )
  options = {}
  for option in query.split('&') if query else ():
    name, _, value = option.partition('=')
    if name not in _OPTIONS or name in options or not value:
      raise errors.InputError(
        f'text {part} has the option {option!r}; give each of '
        f'{", ".join(_OPTIONS)} at most once, with a value, e.g. '
        '?column=text&weight=2.'
      )
    options[name] = urllib.parse.unquote_plus(value)
  if 'weight' in options:
    options['weight'] = _number(options['weight'])
  return Source(path, **options)


def _number(value):
  try:
    return float(value)
  except ValueError:
    raise errors.InputError(
      f'text has the option weight={value!r}; give a finite number above 0.'
    ) from None


def _documents(source, says_left_out=True):
  seen = left_out = 0
  try:
    for row in _rows(source):
      seen += 1
      value = row.get(source.column)
      if (value is None and source.column in row) or _is_empty(value):
        left_out += 1
      elif _is_document(value):
        yield value
      else:
        raise errors.InputError(
          f'text {source.path} has {_type_name(value)} in column '
          f'{source.column!r} of a row with the columns {sorted(row)}; '
          f'expected {_KINDS}: choose the column with ?column=NAME.'
        )
  finally:
    # Also where no more documents are asked for.
    if left_out and says_left_out:
      progress.say(
        f'text {source.path}: {left_out:,} of {seen:,} rows have nothing in '
        f'column {source.column!r} and are left out'
      )


def _is_empty(value):
  """True for a blank text, and for a list without anything in it."""
  return not value.strip() if isinstance(value, str) else value == []


def _is_document(value):
  return (
    isinstance(value, str | Iterator)
    or _is_tokens(value)
    or _is_conversation(value)
  )


def _is_tokens(value):
  # bool is an int to isinstance, but no token id.
  return isinstance(value, list) and all(type(item) is int for item in value)


def _is_conversation(value):
  return isinstance(value, list) and all(
    isinstance(item, dict) and {'role', 'content'} <= item.keys()
    for item in value
  )


def _type_name(value):
  if value is None:
    return 'nothing'
  if isinstance(value, dict):
    return f'a dict of {sorted(value)}'
  if isinstance(value, list) and isinstance(value[0], dict):
    return f'a list with a dict of {sorted(value[0])}'
  if isinstance(value, list):
    names = sorted({type(item).__name__ for item in value})
    return f'a list of {" and ".join(names)}'
  return f'a value of type {type(value).__name__}'


def _rows(source) -> Iterator[dict[str, Any]]:
  with _reading(source):
    yield from _hub_rows(source) if source.hub_id else _local_rows(source)


@contextlib.contextmanager
def _reading(source):
  """Raises InputError for whatever is raised while a source is read."""
  what = 'from the Hugging Face hub' if source.hub_id else 'as its name says'
  remedy = (
    'check the id, the options name, split and revision, and the network'
    if source.hub_id
    else 'give it anew, or with the suffix of its format'
  )
  try:
    yield
  except errors.InputError:
    raise
  # `datasets` and what is below it raise whatever comes, StopIteration too.
  except Exception as error:
    cause = ' '.join(f'{type(error).__name__}: {error}'.split())  # one line
    raise errors.InputError(
      f'text {source.path} cannot be read {what} ({cause}); {remedy}.'
    ) from error


def _hub_rows(source) -> Iterable[dict[str, Any]]:
  import datasets  # 1.3 s to import; only those who read text pay for it

  return datasets.load_dataset(
    f'{_HUB}{source.hub_id}',  # else a local folder of that name is read
    name=source.name or None,
    split=source.split,
    revision=source.revision or None,
    streaming=True,
  )


def _local_rows(source) -> Iterable[dict[str, Any]]:
  import datasets

  # Else each local file read is reported to a counter on the network, which
  # takes seconds where names are not resolved.
  datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
  if _is_saved_dataset(source.path):
    saved = datasets.load_from_disk(source.path)
    if isinstance(saved, datasets.DatasetDict):
      return _split(saved, source).with_format(None)
    _check_no_split(source)
    return saved.with_format(None)  # it may have been saved as torch tensors
  _check_no_split(source)
  format_name, paths = files.find(source.path)
  if format_name == 'text':
    return _text_rows(source, paths)
  return datasets.load_dataset(
    format_name,
    # A name with brackets is a name, not a pattern: patterns are resolved.
    data_files=[glob.escape(path) for path in paths],
    split='train',
    streaming=True,
    **_READER_OPTIONS.get(format_name, {}),
  )


def _text_rows(source, paths):
  """Yields a row for each file, of any length.

  A file is a document: lines and blank lines mean nothing across books, code
  and articles, and cutting at them would put a BOS there.
  """
  for path in paths:
    parts = _parts(source, path)
    start = list(itertools.islice(parts, 2))
    is_long = len(start) > 1
    yield {'text': itertools.chain(start, parts) if is_long else ''.join(start)}


def _parts(source, path):
  with _reading(source), files.open_text(path) as file:
    while part := file.read(_CHARACTERS):
      yield part


def _is_saved_dataset(path):
  return any(
    os.path.isfile(os.path.join(path, name))
    for name in ('dataset_dict.json', 'state.json')
  )


def _split(saved, source):
  if source.split not in saved:
    raise errors.InputError(
      f'text {source.path} has no split {source.split!r}; give '
      f'?split= one of {", ".join(sorted(saved))}.'
    )
  return saved[source.split]


def _check_no_split(source):
  if source.split != 'train':
    raise errors.InputError(
      f'text {source.path} has split={source.split!r}, but local files have no '
      'splits; leave it out and give the path of the files to read.'
    )
