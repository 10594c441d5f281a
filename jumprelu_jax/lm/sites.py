"""Where in a language model activations are read and replaced.

A site is a named place in a transformer block; a `Site` adds the block's
index. Language models call a hook at every site; this file holds the names and
the two hooks that the project needs (read one site, replace one site). It knows
nothing of any architecture.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses

import jax

from jumprelu_jax import errors

#: Residual stream after the block; MLP output as added to the residual (after
#: a post-norm, where the model has one); attention heads concatenated, before
#: the output projection W_O (the paper's attention site).
SITE_NAMES = ('resid_post', 'mlp_out', 'attn_z')


@dataclasses.dataclass(frozen=True)
class Site:
  """One place in a language model: a site's name and a zero-based layer."""

  name: str
  layer: int

  def __post_init__(self):
    if self.name not in SITE_NAMES:
      raise errors.InputError(
        f'lm.site={self.name!r} is not a site; known sites: '
        f'{", ".join(SITE_NAMES)}.'
      )

  def __str__(self):
    return f'{self.name} of layer {self.layer}'


#: Called as hook(site, x_BLD) at every site; what it returns flows on.
Hook = Callable[[Site, jax.Array], jax.Array]


def no_hook(site: Site, x_BLD: jax.Array) -> jax.Array:
  """Leaves every site as it is."""
  del site
  return x_BLD


def splice(where: Site, fn: Callable[[jax.Array], jax.Array]) -> Hook:
  """Returns a hook that replaces x_BLD at one site by fn(x_BLD)."""

  def hook(site, x_BLD):
    return fn(x_BLD) if site == where else x_BLD

  return hook


def record(where: Site, into: list[jax.Array]) -> Hook:
  """Returns a hook that appends x_BLD of one site to a list (trace time)."""

  def hook(site, x_BLD):
    if site == where:
      into.append(x_BLD)
    return x_BLD

  return hook
