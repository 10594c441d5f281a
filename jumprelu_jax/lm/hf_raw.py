"""Reads a config.json key by key, with one clear error for each fault."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from jumprelu_jax import errors
from jumprelu_jax.lm import rope as rope_lib

# Hugging Face's activations → ours. gelu_new, gelu_fast and gelu_pytorch_tanh
# are the same function, written three times.
_ACTIVATIONS = {
  'gelu': 'gelu',
  'gelu_new': 'gelu_tanh',
  'gelu_fast': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'relu': 'relu',
  'silu': 'silu',
  'swish': 'silu',
}
#: Default of a key that must be there.
REQUIRED = object()
_THETA = 10_000.0
# No model has more; a file that says so is damaged, or made to fill memory.
_LARGEST_SIZE, MOST_LAYERS = 2**31 - 1, 10_000


@dataclasses.dataclass(frozen=True)
class Raw:
  """A config.json and where it is from; reads keys with one clear error.

  Attributes:
    values: the file's object.
    where: the file, for errors.
    defaults: of keys that are absent, those of the class.
    read: the keys that were asked for.
  """

  values: Mapping[str, Any]
  where: str
  defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  read: set[str] = dataclasses.field(default_factory=set)

  def get(self, key: str, kind: type, default: Any = REQUIRED) -> Any:
    """Returns a value of a type; null is not one."""
    value = self.get_or_none(key, kind, default)
    if value is None:
      raise errors.InputError(f'{self.where} lacks {key}.')
    return value

  def get_or_none(self, key: str, kind: type, default: Any = REQUIRED) -> Any:
    """Returns a value of a type, or None for null."""
    self.read.add(key)
    default = self.defaults.get(key, default)
    value = self.values.get(key, default)
    if value is REQUIRED:
      raise errors.InputError(f'{self.where} lacks {key}.')
    if kind is float and type(value) is int:
      value = float(value)
    is_good = value is None or type(value) is kind
    if is_good and kind is float and value is not None:
      is_good = math.isfinite(value)
    if not is_good:
      raise errors.InputError(
        f'{self.where}: {key}={value!r} is not supported; expected type '
        f'{kind.__name__}.'
      )
    return value

  def size(self, key: str, most: int = _LARGEST_SIZE) -> int:
    """Returns a size: 1 or more."""
    return self._within(key, self.get(key, int), 1, most)

  def positive(self, key: str, default: Any = REQUIRED) -> float:
    """Returns a number above 0."""
    return self._above_zero(key, self.get(key, float, default))

  def positive_or_none(self, key: str) -> float | None:
    """Returns a number above 0, or None for null."""
    value = self.get_or_none(key, float)
    return None if value is None else self._above_zero(key, value)

  def require(self, key: str, expected: Any) -> None:
    """Raises InputError if a key is there and is not as we compute it."""
    self.read.add(key)
    value = self.values.get(key)
    if value is not None and value != expected:
      raise errors.InputError(
        f'{self.where}: {key}={value!r} is not supported; expected '
        f'{expected!r}.'
      )

  def activation(self, key: str) -> str:
    """Returns our name of an activation."""
    name = self.get_or_none(key, str)
    if name not in _ACTIVATIONS:
      raise errors.InputError(
        f'{self.where}: activation {name!r} is not supported; expected one of '
        f'{", ".join(_ACTIVATIONS)}.'
      )
    return _ACTIVATIONS[name]

  def within(self, key: str) -> Raw:
    """Returns a nested object; empty if there is none."""
    values = self.get_or_none(key, dict, None)
    return Raw(values or {}, f'{self.where}: {key}')

  def refuse_others(self, idle: Collection[str] = ()) -> None:
    """Raises InputError for keys that nobody read; null says nothing."""
    others = [
      key
      for key, value in self.values.items()
      if value is not None and key not in self.read and key not in idle
    ]
    if others:
      key = others[0]
      value = repr(self.values[key])
      raise errors.InputError(
        f'{self.where}: {key[:80]}={value[:80]} is not known, and could change '
        'what is computed; remove the key if it does not.'
      )

  def _within(self, key, value, least, most):
    if not least <= value <= most:
      raise errors.InputError(
        f'{self.where}: {key}={value} is not supported; expected {least:,} to '
        f'{most:,}.'
      )
    return value

  def _above_zero(self, key, value):
    if not value > 0:
      raise errors.InputError(
        f'{self.where}: {key}={value} is not supported; expected a number '
        'above 0.'
      )
    return value


def rope(raw, head_dim):
  """Returns the one rotary table of a family that rotates whole heads."""
  spelled = _rope_object(raw)
  for one in (raw, raw.within('rope_parameters'), spelled):
    one.require('partial_rotary_factor', 1.0)
  theta = raw.positive('rope_theta', _THETA)
  theta = spelled.positive('rope_theta', theta)
  return _table(raw, spelled, theta, head_dim)


def neox_rope(raw, head_dim):
  """Returns the table of GPT-NeoX, which rotates a share of each head."""
  spelled = _rope_object(raw)
  share = raw.positive('rotary_pct')
  share = spelled.positive('partial_rotary_factor', share)
  theta = raw.positive('rotary_emb_base')
  theta = spelled.positive('rope_theta', theta)
  # Its class does not read these; files of transformers 4 have them as well.
  raw.require('partial_rotary_factor', share)
  raw.require('rope_theta', theta)
  if share > 1:
    raise errors.InputError(
      f'{raw.where}: partial_rotary_factor={share} is not supported; expected '
      'at most 1.'
    )
  return _table(raw, spelled, theta, int(head_dim * share))


def _rope_object(raw):
  """Returns the object that describes RoPE; the older one wins, as there."""
  new, old = raw.within('rope_parameters'), raw.within('rope_scaling')
  return old if old.values else new


def gemma3_ropes(raw, dim):
  """Returns Gemma 3's tables: global layers', then sliding ones'."""
  both, scaled = raw.within('rope_parameters'), raw.within('rope_scaling')
  full, sliding = both.within('full_attention'), both.within(
    'sliding_attention'
  )  # fmt: skip
  if both.values and not (full.values and sliding.values):
    raise errors.InputError(
      f'{raw.where}: rope_parameters={dict(both.values)!r} is not supported; '
      'expected full_attention and sliding_attention.'
    )
  both.refuse_others()
  # As transformers merges them.
  plain = full.values or {'rope_type': 'default'}
  where = f'{raw.where}: RoPE of full_attention'
  full = Raw(plain | dict(scaled.values), where)
  found = []
  for one, key, default in (
    (full, 'rope_theta', 1e6),
    (sliding, 'rope_local_base_freq', 1e4),
  ):
    one.require('partial_rotary_factor', 1.0)
    theta = raw.positive(key, default)
    found.append(_table(raw, one, one.positive('rope_theta', theta), dim))
  return tuple(found)


def _table(raw, spelled, theta, dim):
  """Returns a table of an object that names its type."""
  if dim < 2 or dim % 2:
    raise errors.InputError(
      f'{raw.where}: RoPE on {dim} coordinates of a head is not supported; '
      'expected an even number.'
    )
  result = rope_lib.Rope(theta=theta, dim=dim, scaling=_scaling(raw, spelled))
  spelled.read.update({'rope_type', 'type'})
  spelled.refuse_others(_IDLE_IN_ROPE)
  return result


# Of other types than the one that is named; transformers warns of them.
_IDLE_IN_ROPE = (
  'factor', 'low_freq_factor', 'high_freq_factor',
  'original_max_position_embeddings',
)  # fmt: skip


def _scaling(outer, raw):
  """Returns the RoPE scaling that an object names, or None."""
  name = raw.values.get('rope_type', raw.values.get('type', 'default'))
  if name == 'default':
    return None
  if name == 'linear':
    return rope_lib.LinearScaling(raw.positive('factor'))
  if name == 'llama3':
    factor = raw.positive('factor')
    low, high = (
      raw.positive('low_freq_factor'),
      raw.positive('high_freq_factor'),
    )
    if not low < high:
      raise errors.InputError(
        f'{raw.where}: low_freq_factor={low} and high_freq_factor={high} are '
        'not supported; expected the low one below the high one.'
      )
    length = raw.get(
      'original_max_position_embeddings',
      int,
      outer.size('max_position_embeddings'),
    )
    if length < 1:
      raise errors.InputError(
        f'{raw.where}: original_max_position_embeddings={length} is not '
        'supported; expected 1 or more.'
      )
    return rope_lib.Llama3Scaling(factor, low, high, length)
  raise errors.InputError(
    f'{raw.where}: RoPE type {name!r} is not supported; expected default, '
    'linear or llama3.'
  )


def windows(raw, num_layers, sliding_period):
  """Returns the window of each layer: all slide but each period's last."""
  types = raw.get_or_none('layer_types', list, None)
  if types is None:
    types = [
      'sliding_attention' if (i + 1) % sliding_period else 'full_attention'
      for i in range(num_layers)
    ]
  window = raw.get_or_none('sliding_window', int)
  return _windows_by_type(raw, types, num_layers, window)


def qwen_windows(raw):
  """Returns the window of each layer: the upper ones slide, if any do."""
  num_layers = raw.size('num_hidden_layers', MOST_LAYERS)
  window = raw.get_or_none('sliding_window', int)
  if not raw.get('use_sliding_window', bool):
    window = None
  first = raw.get('max_window_layers', int)
  types = raw.get_or_none('layer_types', list, None)
  if types is None:
    types = [
      'full_attention' if window is None or i < first else 'sliding_attention'
      for i in range(num_layers)
    ]
  return _windows_by_type(raw, types, num_layers, window)


def every_layer_full(raw):
  """Returns no window for any layer; refuses layer types that slide."""
  num_layers = raw.size('num_hidden_layers', MOST_LAYERS)
  raw.require('layer_types', ['full_attention'] * num_layers)
  return (None,) * num_layers


def _windows_by_type(raw, types, num_layers, window):
  """Returns the window of each layer by its type."""
  known = ('full_attention', 'sliding_attention')
  if len(types) != num_layers or not all(t in known for t in types):
    raise errors.InputError(
      f'{raw.where}: layer_types={types} is not supported; expected '
      f'{num_layers} of {", ".join(known)}.'
    )
  if 'sliding_attention' not in types:
    return (None,) * num_layers
  if window is None:
    raise errors.InputError(
      f'{raw.where} lacks sliding_window, and layers of it slide.'
    )
  if window < 1:
    raise errors.InputError(
      f'{raw.where}: sliding_window={window} is not supported; expected 1 or '
      'more.'
    )
  return tuple(window if t == 'sliding_attention' else None for t in types)
