"""Reads a config.json key by key, with one clear error for each fault."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
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


@dataclasses.dataclass(frozen=True)
class Raw:
  """A config.json and where it is from; reads keys with one clear error."""

  values: Mapping[str, Any]
  where: str

  def get(self, key: str, kind: type, default: Any = REQUIRED) -> Any:
    """Returns a value of a type; null counts as absent."""
    value = self.values.get(key)
    if value is None:
      if default is REQUIRED:
        raise errors.InputError(f'{self.where} lacks {key}.')
      return default
    if kind is float and type(value) is int:
      value = float(value)
    if type(value) is not kind:
      raise errors.InputError(
        f'{self.where}: {key}={value!r} is not supported; expected type '
        f'{kind.__name__}.'
      )
    return value

  def require(self, key: str, expected: Any) -> None:
    """Raises InputError if a key is there and is not as we compute it."""
    value = self.values.get(key)
    if value is not None and value != expected:
      raise errors.InputError(
        f'{self.where}: {key}={value!r} is not supported; expected '
        f'{expected!r}.'
      )

  def activation(self, *keys: str) -> str:
    """Returns our name of the activation under the first key that is there."""
    name = next((self.values[k] for k in keys if self.values.get(k)), None)
    if name not in _ACTIVATIONS:
      raise errors.InputError(
        f'{self.where}: activation {name!r} is not supported; expected one of '
        f'{", ".join(_ACTIVATIONS)}.'
      )
    return _ACTIVATIONS[name]

  def within(self, key: str) -> Raw:
    """Returns a nested object; empty if there is none."""
    values = self.get(key, dict, {})
    return Raw(values, f'{self.where}: {key}')


def rope(raw, dim, *, theta):
  """Returns the one rotary table of a family; `theta` is its default."""
  spelled = raw.within('rope_parameters')
  if not spelled.values:
    spelled = raw.within('rope_scaling')
  theta = raw.get('rope_theta', float, theta)
  return rope_lib.Rope(
    theta=spelled.get('rope_theta', float, theta),
    dim=dim,
    scaling=scaling(spelled),
  )


def gemma3_ropes(raw, dim):
  """Returns Gemma 3's tables: global layers', then sliding ones'."""
  both = raw.within('rope_parameters')
  full, sliding = both.within('full_attention'), both.within(
    'sliding_attention'
  )  # fmt: skip
  if both.values and not (full.values and sliding.values):
    raise errors.InputError(
      f'{raw.where}: rope_parameters={dict(both.values)!r} is not supported; '
      'expected full_attention and sliding_attention.'
    )
  of_full = full if both.values else raw.within('rope_scaling')
  return (
    rope_lib.Rope(
      full.get('rope_theta', float, raw.get('rope_theta', float, 1e6)),
      dim,
      scaling(of_full),
    ),
    rope_lib.Rope(
      sliding.get(
        'rope_theta', float, raw.get('rope_local_base_freq', float, 1e4)
      ),
      dim,
      scaling(sliding),
    ),
  )


def scaling(raw):
  """Returns the RoPE scaling that an object names, or None."""
  name = raw.values.get('rope_type', raw.values.get('type', 'default'))
  if name == 'default':
    return None
  if name == 'linear':
    return rope_lib.LinearScaling(raw.get('factor', float))
  if name == 'llama3':
    return rope_lib.Llama3Scaling(
      raw.get('factor', float),
      raw.get('low_freq_factor', float),
      raw.get('high_freq_factor', float),
      raw.get('original_max_position_embeddings', int),
    )
  raise errors.InputError(
    f'{raw.where}: RoPE type {name!r} is not supported; expected default, '
    'linear or llama3.'
  )


def windows(raw, num_layers, sliding_period, default_window=REQUIRED):
  """Returns the window of each layer: all slide but each period's last."""
  types = raw.get(
    'layer_types',
    list,
    [
      'sliding_attention' if (i + 1) % sliding_period else 'full_attention'
      for i in range(num_layers)
    ],
  )
  return windows_of_types(raw, types, num_layers, default_window)


def qwen_windows(raw):
  """Returns the window of each layer: the upper ones slide, if any do."""
  num_layers = raw.get('num_hidden_layers', int)
  first = num_layers
  if raw.get('use_sliding_window', bool, False):
    first = raw.get('max_window_layers', int, 28)
  types = raw.get(
    'layer_types',
    list,
    [
      'sliding_attention' if i >= first else 'full_attention'
      for i in range(num_layers)
    ],
  )
  return windows_of_types(raw, types, num_layers, 4096)


def every_layer_full(raw):
  """Returns no window for any layer; refuses layer types that slide."""
  num_layers = raw.get('num_hidden_layers', int)
  raw.require('layer_types', ['full_attention'] * num_layers)
  return (None,) * num_layers


def windows_of_types(raw, types, num_layers, default_window):
  """Returns the window of each layer by its type."""
  known = {'full_attention', 'sliding_attention'}
  if len(types) != num_layers or not set(types) <= known:
    raise errors.InputError(
      f'{raw.where}: layer_types={types} is not supported; expected '
      f'{num_layers} of {", ".join(sorted(known))}.'
    )
  if 'sliding_attention' not in types:
    return (None,) * num_layers
  window = raw.get('sliding_window', int, default_window)
  return tuple(window if t == 'sliding_attention' else None for t in types)
