"""The language model with something else in place of a site's activations.

`run_clean` runs the model once, untouched; `run_with` runs what follows a site
again, with other activations there, as often as wanted. What comes before the
site's block is not run twice, nor, where an SAE reads the residual stream
between two blocks, anything else.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import flax.struct
import jax
from jax import numpy as jnp

from jumprelu_jax.lm import loss as lm_loss
from jumprelu_jax.lm import sites
from jumprelu_jax.lm import transformer
from jumprelu_jax.lm.architecture import Architecture
from jumprelu_jax.text import packing


@dataclasses.dataclass(frozen=True)
class Splice:
  """Where activations are read and replaced; static in compiled functions.

  Attributes:
    where: the site that is replaced.
    source: the site that is read: the same, or one before it.
    at_special: replace special positions too, not text alone.
    positions: of each sequence whose logits are held at a time.
  """

  where: sites.Site
  source: sites.Site
  at_special: bool
  positions: int

  def everywhere(self) -> Splice:
    """Returns the splice that replaces special positions too."""
    return dataclasses.replace(self, at_special=True)


@flax.struct.dataclass
class Clean:
  """The untouched model on a batch: what every splice starts from.

  Attributes:
    tokens_BL: the batch.
    is_text_BL: where a position is text, and counts.
    before_BLD: residual stream before the block of the site.
    x_ND: activations at the source, float32; a row for each position.
    y_ND: activations at the site, float32.
    end_BLD: residual stream at the end.
  """

  tokens_BL: jax.Array
  is_text_BL: jax.Array
  before_BLD: jax.Array
  x_ND: jax.Array
  y_ND: jax.Array
  end_BLD: jax.Array


def make(
  architecture: Architecture,
  where: sites.Site,
  source: sites.Site | None,
  *,
  at_special: bool,
  positions: int,
) -> Splice:
  """Returns a splice at a site; a `source` of None reads the site itself."""
  after = sites.Site('resid_pre', where.layer + 1)
  if where.name == 'resid_post' and after.layer < architecture.num_layers:
    where = after  # the same activations, with no block before them
  return Splice(where, source or where, at_special, positions)


@functools.partial(jax.jit, static_argnames='splice')
def run_clean(
  model: transformer.Transformer,
  tokens_BL: jax.Array,
  splice: Splice,
  is_text_BL: jax.Array | None = None,
) -> Clean:
  """Runs the untouched model.

  Args:
    model: the model.
    tokens_BL: the batch.
    splice: where activations are read and replaced.
    is_text_BL: the positions that count; None takes all tokens that are not
      special.
  """
  if is_text_BL is None:
    is_text_BL = packing.is_text(tokens_BL, model.architecture.special_ids)
  where, found = splice.where, {}
  hooks = {
    site: functools.partial(_keep, found, site)
    for site in (splice.source, where)
  }
  x_BLD = transformer.embed(model, tokens_BL)
  before_BLD = transformer.run_blocks(model, x_BLD, hooks, 0, where.layer)
  end_BLD = transformer.run_blocks(model, before_BLD, hooks, where.layer)
  return Clean(
    tokens_BL=tokens_BL,
    is_text_BL=is_text_BL,
    before_BLD=before_BLD,
    x_ND=found[splice.source],
    y_ND=found[where],
    end_BLD=end_BLD,
  )


def run_with(
  model: transformer.Transformer,
  clean: Clean,
  y_ND: jax.Array,
  splice: Splice,
) -> jax.Array:
  """Returns the residual stream at the end, [B, L, D], with y_ND at the site.

  Args:
    model: the model.
    clean: what `run_clean` gave.
    y_ND: rows to put there, all of the batch's positions.
    splice: where; it says whether special positions keep their own.
  """
  is_replaced_BL = None if splice.at_special else clean.is_text_BL

  def replace(x_BLD):
    return y_ND.reshape(x_BLD.shape).astype(x_BLD.dtype)

  hooks = sites.splice(splice.where, replace, is_replaced_BL)
  return transformer.run_blocks(
    model, clean.before_BLD, hooks, splice.where.layer
  )


def at_predictions(
  fn: Callable,
  model: transformer.Transformer,
  clean: Clean,
  splice: Splice,
  *ends_BLD: jax.Array,
) -> Any:
  """Calls `lm_loss.at_predictions` on streams that `run_with` returned."""
  return lm_loss.at_predictions(
    fn, model, clean.tokens_BL, *ends_BLD, positions=splice.positions
  )


@functools.partial(jax.jit, static_argnames=('fn', 'splice'))
def gradient(
  fn: Callable,
  model: transformer.Transformer,
  clean: Clean,
  splice: Splice,
) -> jax.Array:
  """Returns the gradient by y_ND of fn, added up over text's predictions.

  Args:
    fn: (logits [B, V], next tokens [B]) → [B].
    model: the model.
    clean: what `run_clean` gave.
    splice: where.
  """
  special = model.architecture.special_ids
  counts_BL = packing.predicts_text(clean.tokens_BL, special)
  counts_BL &= clean.is_text_BL[:, :-1]

  def total(y_ND):
    end_BLD = run_with(model, clean, y_ND, splice.everywhere())
    values_BL = at_predictions(fn, model, clean, splice, end_BLD)
    return jnp.sum(jnp.where(counts_BL, values_BL, 0))

  return jax.grad(total)(clean.y_ND)


def _keep(found, site, x_BLD):
  """Keeps the rows at a site, [B * L, D] and float32."""
  found[site] = x_BLD.reshape(-1, x_BLD.shape[-1]).astype('float32')
  return x_BLD
