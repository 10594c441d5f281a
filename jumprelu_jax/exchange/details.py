"""What an SAE's files say of it beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import math
import re
from typing import Any

from jumprelu_jax import errors

#: Our sites → TransformerLens' hooks in a block. Its `mlp_in` is without the
#: norm's gain, so that no hook of it is ours.
HOOKS = {
  'resid_pre': 'hook_resid_pre',
  'resid_mid': 'hook_resid_mid',
  'resid_post': 'hook_resid_post',
  'attn_z': 'attn.hook_z',
  'attn_out': 'hook_attn_out',
  'mlp_out': 'hook_mlp_out',
}
_SITES = {hook: site for site, hook in HOOKS.items()}


@dataclasses.dataclass(frozen=True)
class Details:
  """Where an SAE belongs, as far as its files say.

  Attributes:
    model: the language model's id on the hub, or its folder; '' if unknown.
    site: a name in `lm.sites.SITES`, or the files' own; '' if unknown.
    layer: -1 if unknown.
    target_site: of a transcoder; '' for SAEs.
    target_layer: likewise; -1 for SAEs.
    context_length: of the sequences that it was trained on; 0 if unknown.
    trained_as: the architecture in training; '' if unknown.
    l0: mean number of active latents; None if unknown.
    other: what else the files say, as they say it.

  Raises:
    errors.InputError: one of them is not of its type, or is no name: they
      become folders' names and lines of a card.
  """

  model: str = ''
  site: str = ''
  layer: int = -1
  target_site: str = ''
  target_layer: int = -1
  context_length: int = 0
  trained_as: str = ''
  l0: float | None = None
  other: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    for name, pattern in _WORDS.items():
      value = getattr(self, name)
      if not isinstance(value, str) or not pattern.fullmatch(value):
        raise _refused(name, value, 'a short name')
    for name, least in _INTEGERS.items():
      value = getattr(self, name)
      if type(value) is not int or not least <= value < 2**31:
        raise _refused(name, value, f'an integer, {least} or more')
    if self.l0 is not None and not (
      type(self.l0) in (int, float) and 0 <= self.l0 < math.inf
    ):
      raise _refused('l0', self.l0, 'a number')
    if not isinstance(self.other, Mapping):
      raise _refused('other', self.other, 'an object')


# A path may hold more than a name, but no line break.
_WORDS = {
  'model': re.compile(
    r'[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]{0,1000}'
  ),
  'site': re.compile(r'[\w.{}\[\]()+-]{0,200}'),
  'target_site': re.compile(r'[\w.{}\[\]()+-]{0,200}'),
  'trained_as': re.compile(r'[\w.+-]{0,100}'),
}
_INTEGERS = {'layer': -1, 'target_layer': -1, 'context_length': 0}


def _refused(name, value, expected):
  return errors.InputError(
    f'{name}={repr(value)[:80]} is not where an SAE belongs; expected '
    f'{expected}.'
  )


def text(value: Any) -> str:
  """Returns a word from a file; '' for what is none."""
  return value if isinstance(value, str) else ''


def number(value: Any, default: int) -> int:
  """Returns an integer from a file; a default for what is none."""
  return value if type(value) is int else default


def positive(value: Any) -> float | None:
  """Returns a number of 0 or more from a file; None for what is none."""
  is_number = type(value) in (int, float) and 0 <= value < math.inf
  return float(value) if is_number else None


def hook_of(site: str, layer: int) -> str:
  """Returns TransformerLens' name of a place; '' if it is not known."""
  if layer < 0 or not site:
    return ''
  return f'blocks.{layer}.{HOOKS.get(site, site)}'


def site_of(hook: str) -> tuple[str, int]:
  """Returns (site, layer) of TransformerLens' name; as far as it is known."""
  match = re.fullmatch(r'blocks\.(\d{1,9})\.(.+)', hook or '')
  if not match:
    return hook or '', -1
  return _SITES.get(match[2], match[2]), int(match[1])
