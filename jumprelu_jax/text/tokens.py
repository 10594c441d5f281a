"""Documents → token ids, and streams of documents mixed by weight."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import datetime
import functools
import os
import pathlib
import random
import re
from typing import TypeVar

import numpy as np
import tokenizers

from jumprelu_jax import errors
from jumprelu_jax import json_files
from jumprelu_jax.text import long_text
from jumprelu_jax.text import packing
from jumprelu_jax.text import sources

T = TypeVar('T')
ChatTemplate = Callable[[list[sources.Message]], str]

# What a chat template that asks for the date is told, whenever it is rendered:
# the day that Llama's templates write where there is no clock.
_NOW = datetime.datetime(2024, 7, 26)
# Of strftime: what depends on the locale or the time zone.
_LOCAL = {
  'a': 'Fri', 'A': 'Friday', 'b': 'Jul', 'h': 'Jul', 'B': 'July', 'p': 'AM',
  'P': 'am', 'c': 'Fri Jul 26 00:00:00 2024', 'x': '07/26/24',
  'X': '00:00:00', 'r': '12:00:00 AM', 's': '1721952000', 'Z': '', 'z': '',
  '+': 'Fri Jul 26 00:00:00 UTC 2024',
}  # fmt: skip

# A document is encoded in a batch of this many, or of as many characters:
# enough to keep the tokenizer's threads busy, little enough that memory does
# not grow with the corpus.
_DOCUMENTS_PER_BATCH = 64
_CHARACTERS_PER_BATCH = 1 << 19


def encode(
  documents: Iterable[sources.Document],
  tokenizer: tokenizers.Tokenizer,
  chat_template: ChatTemplate | None = None,
) -> Iterator[packing.Document]:
  """Yields each document's token ids (int32), in order.

  No special token is added; those that a text, a chat template or a list of
  token ids has itself stay. Those of a long text come in pieces, which are
  encoded as they are asked for: before the next document is.

  Args:
    documents: text is encoded, whole or in parts; token ids pass through;
      conversations are rendered as text and encoded.
    tokenizer: the language model's.
    chat_template: renders a conversation, as `chat_renderer` gives it; None
      where the model has none.

  Raises:
    errors.InputError: a token id is not in the tokenizer's vocabulary; there is
      a conversation but no chat template; a text cannot be encoded.
  """
  vocab_size = None
  batch, size = [], 0
  for document in documents:
    is_list = isinstance(document, list)
    if is_list and isinstance(document[0], dict):
      document, is_list = _render(document, chat_template), False
    is_text = isinstance(document, str)
    if is_text and len(document) <= long_text.WINDOW:
      batch.append(document)
      size += len(document)
    elif not is_list:
      yield from _encode_batch(batch, tokenizer)
      batch, size = [], 0
      yield long_text.encode([document] if is_text else document, tokenizer)
    else:
      if vocab_size is None:
        # Not get_vocab_size(): that is too few where ids have gaps.
        vocab_size = 1 + max(tokenizer.get_vocab().values())
      batch.append(_checked_ids(document, vocab_size))
    if len(batch) == _DOCUMENTS_PER_BATCH or size >= _CHARACTERS_PER_BATCH:
      yield from _encode_batch(batch, tokenizer)
      batch, size = [], 0
  yield from _encode_batch(batch, tokenizer)


def chat_renderer(model_folder: str | os.PathLike) -> ChatTemplate | None:
  """Returns a model's chat template as a function; None if it has none.

  The text is a function of the conversation alone: templates that print the
  date are given a fixed one, and those that draw at random the same seed.

  Raises:
    errors.InputError: there is a template, but transformers or jinja2, which
      render it, are missing, or cannot load it. The function raises it for a
      conversation that the template refuses.
  """
  if not _has_chat_template(pathlib.Path(model_folder)):
    return None
  try:
    import transformers  # seconds to import; only for conversations
    from transformers.utils import chat_template_utils

    tokenizer = transformers.AutoTokenizer.from_pretrained(
      model_folder, local_files_only=True
    )
    # Loaded now, so that one that is missing fails here.
    import jinja2  # noqa: F401
  except Exception as error:
    raise errors.InputError(
      f'the chat template of {model_folder} cannot be loaded '
      f'({type(error).__name__}: {error}); pip install transformers jinja2, or '
      'give a text without conversations.'
    ) from error

  def render(conversation: list[sources.Message]) -> str:
    try:
      with _without_hidden_inputs(chat_template_utils):
        return tokenizer.apply_chat_template(conversation, tokenize=False)
    # Templates raise what they like: of jinja2, TypeError, KeyError.
    except Exception as error:
      roles = [message.get('role') for message in conversation]
      raise errors.InputError(
        f'the chat template of {model_folder} refuses a conversation of the '
        f'roles {roles} ({type(error).__name__}: {error}); give conversations '
        'in the form that the model was trained on.'
      ) from error

  return render


def lazy_chat_renderer(model_folder: str | os.PathLike) -> ChatTemplate:
  """Returns `chat_renderer`, which is loaded at the first conversation.

  So plain text needs neither a template nor the libraries that render one.
  """
  load = functools.cache(lambda: chat_renderer(model_folder))
  return lambda conversation: _render(conversation, load())


def mix(
  streams: Sequence[Iterator[T]], weights: Sequence[float], seed: int
) -> Iterator[T]:
  """Returns one stream of documents drawn from several.

  Each next document comes from stream i with probability
  weights[i] / sum(weights), independently of the draws before. So a weight is a
  share of the *documents*, not of the tokens: a stream of long documents gives
  more tokens than its weight says. The mix ends when the stream that was drawn
  has ended, so that the shares hold to the end; the rest of the others is not
  read. One stream passes through untouched.

  Args:
    streams: at least one.
    weights: as many, finite and above 0.
    seed: of the draws; same seed and streams, same mix.
  """
  assert len(streams) == len(weights) > 0
  return streams[0] if len(streams) == 1 else _mix(streams, weights, seed)


class _Clock:
  """Stands for `datetime.datetime`; in English, and without a time zone."""

  @classmethod
  def now(cls):
    return cls()

  def strftime(self, form):
    plain = re.sub('%(.)', lambda code: _LOCAL.get(code[1], code[0]), form)
    return _NOW.strftime(plain)


@contextlib.contextmanager
def _without_hidden_inputs(chat_template_utils):
  """Stops the clock of templates and seeds what they draw, while it lasts."""
  clock, state = chat_template_utils.datetime, random.getstate()
  chat_template_utils.datetime = _Clock
  random.seed(0)
  try:
    yield
  finally:
    chat_template_utils.datetime = clock
    random.setstate(state)


def _mix(streams, weights, seed):
  rng = np.random.default_rng(seed)
  bounds = np.cumsum(np.asarray(weights, np.float64))
  bounds /= bounds[-1]
  while True:
    # bounds[-1] is exactly 1, and random() is below it.
    drawn = np.searchsorted(bounds, rng.random(), side='right')
    try:
      document = next(streams[drawn])
    except StopIteration:
      return
    yield document


def _encode_batch(batch, tokenizer):
  texts = [document for document in batch if isinstance(document, str)]
  encodings = iter(long_text.encode_batch(texts, tokenizer))
  for document in batch:
    if isinstance(document, str):
      yield np.asarray(next(encodings).ids, np.int32)
    else:
      yield document


def _render(conversation, chat_template):
  if chat_template is None:
    raise errors.InputError(
      'the text has conversations, but the tokenizer of the model has no chat '
      'template; give a model that has one, or a text without conversations.'
    )
  return chat_template(conversation)


def _checked_ids(ids, vocab_size):
  low, high = min(ids), max(ids)
  if low < 0 or high >= vocab_size:
    raise errors.InputError(
      f'the text has the token id {low if low < 0 else high}, but the '
      f'tokenizer of the model has ids 0 to {vocab_size - 1}; give token ids '
      'that this tokenizer made.'
    )
  return np.asarray(ids, np.int32)


def _has_chat_template(folder):
  """True where a tokenizer has one; spares the import of transformers."""
  if any(folder.glob('chat_template.*')):
    return True
  try:
    settings = json_files.parse(
      (folder / 'tokenizer_config.json').read_text('utf-8')
    )
  except (OSError, ValueError):
    return False
  return isinstance(settings, dict) and bool(settings.get('chat_template'))
