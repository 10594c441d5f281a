"""What an SAE's files say of it beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import re
from typing import Any

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


def hook_of(site: str, layer: int) -> str:
  """Returns TransformerLens' name of a place; '' if it is not known."""
  if layer < 0 or not site:
    return ''
  return f'blocks.{layer}.{HOOKS.get(site, site)}'


def site_of(hook: str) -> tuple[str, int]:
  """Returns (site, layer) of TransformerLens' name; as far as it is known."""
  match = re.fullmatch(r'blocks\.(\d+)\.(.+)', hook or '')
  if not match:
    return hook or '', -1
  return _SITES.get(match[2], match[2]), int(match[1])
