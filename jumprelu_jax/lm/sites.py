"""Where in a language model activations are read and replaced.

A site is a named place in a transformer block; a `Site` adds the block's index.
A language model calls hooks at sites; a hook is a function of the activations
x_BLD there, and what it returns flows on. This file holds the names and knows
nothing of any architecture.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import types

import jax
from jax import numpy as jnp

from jumprelu_jax import errors

#: name → what is there.
SITES = {
  'resid_pre': 'residual stream before the block',
  'attn_z': "attention heads' outputs, concatenated, before W_O (the paper's)",
  'attn_out': 'attention output as added to the residual stream',
  'resid_mid': 'residual stream between attention and MLP',
  'mlp_in': "MLP's input: normalised, with the norm's gain",
  'mlp_out': 'MLP output as added to the residual stream',
  'resid_post': 'residual stream after the block',
}


@dataclasses.dataclass(frozen=True)
class Site:
  """One place in a language model: a site's name and a zero-based layer."""

  name: str
  layer: int

  def __post_init__(self):
    if self.name not in SITES:
      raise errors.InputError(
        f'lm.site={self.name!r} is not a site; known sites: {", ".join(SITES)}.'
      )

  def __str__(self):
    return f'{self.name} of layer {self.layer}'


def parse(text: str) -> Site:
  """Returns the Site of 'name/layer', such as 'resid_post/20'.

  Raises:
    errors.InputError: it is not of that form.
  """
  name, _, layer = text.partition('/')
  if not layer.isdecimal():
    raise errors.InputError(
      f'site {text!r} is not of the form name/layer, such as resid_post/20.'
    )
  return Site(name, int(layer))


#: A function of x_BLD for each site that is hooked.
Hooks = Mapping[Site, Callable[[jax.Array], jax.Array]]
NO_HOOKS: Hooks = types.MappingProxyType({})


def of_layer(hooks: Hooks, layer: int) -> dict[str, Callable]:
  """Returns a layer's hooks by the site's name."""
  return {site.name: fn for site, fn in hooks.items() if site.layer == layer}


def call(hooks: Mapping[str, Callable], name: str, x: jax.Array) -> jax.Array:
  """Calls the hook of a site, if any; heads are concatenated for it."""
  if name not in hooks:
    return x
  x_BLD = x.reshape(*x.shape[:2], -1)
  return hooks[name](x_BLD).reshape(x.shape)


def splice(
  where: Site,
  fn: Callable[[jax.Array], jax.Array],
  replaced_BL: jax.Array | None = None,
) -> Hooks:
  """Returns hooks that replace x_BLD at one site by fn(x_BLD).

  Args:
    where: the site.
    fn: maps activations to activations of the same shape and dtype.
    replaced_BL: True where activations are replaced; None replaces all. Special
      positions are left as they are by giving `packing.is_text`.
  """

  def hook(x_BLD):
    if replaced_BL is None:
      return fn(x_BLD)
    return jnp.where(replaced_BL[..., None], fn(x_BLD), x_BLD)

  return {where: hook}
