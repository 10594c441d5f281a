"""SAEs for notebooks and scripts: arrays in, arrays out, errors that teach."""

from __future__ import annotations

import dataclasses
import os

import jax
from jax import numpy as jnp

from jumprelu_jax import errors
from jumprelu_jax.exchange import details as details_lib
from jumprelu_jax.exchange import formats
from jumprelu_jax.exchange import hub
from jumprelu_jax.lm import sites
from jumprelu_jax.sae import released

#: The name of the model that is shipped, and of its SAE.
EMBEDDED = hub.EMBEDDED


@dataclasses.dataclass(frozen=True, eq=False)
class SAE:
  """A trained SAE or transcoder, and what is known of it.

  Attributes:
    weights: its arrays, float32, a pytree: W_enc [D, M], b_enc [M], W_dec
      [M, E], b_dec [E], and threshold [M] or k.
    details: language model, site, layer, and what else its files say.
  """

  weights: released.Released
  details: details_lib.Details = details_lib.Details()

  @property
  def site(self) -> sites.Site:
    """Where it reads; InputError if its files do not say so in our words."""
    return _known_site(self.details.site, self.details.layer)

  @property
  def target(self) -> sites.Site:
    """What it predicts: the same, or a transcoder's target."""
    if not self.details.target_site:
      return self.site
    return _known_site(self.details.target_site, self.details.target_layer)

  @property
  def num_latents(self) -> int:
    """M."""
    return self.weights.W_enc.shape[1]

  def encode(self, x: jax.Array) -> jax.Array:
    """Returns activations of the latents, float32.

    Args:
      x: raw activations of the model, [..., D].

    Returns:
      [..., M]; 0 where a latent does not fire.
    """
    return self._rows(self.weights.encode, x, self.weights.W_enc.shape[0])

  def decode(self, f: jax.Array) -> jax.Array:
    """Returns the reconstruction [..., E], float32, of activations [..., M].

    Without a transcoder's skip, which needs the input: call the SAE for it.
    """
    return self._rows(self.weights.decode, f, self.num_latents)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns the reconstruction [..., E], float32, of activations [..., D]."""
    return self._rows(self.weights, x, self.weights.W_enc.shape[0])

  def save(
    self,
    folder: str | os.PathLike,
    format: str = 'jumprelu_jax',  # noqa: A002  (its name in every library)
  ) -> None:
    """Writes the SAE into a new folder; see `exchange.formats.FORMATS`.

    Raises:
      errors.InputError: the format is not known or cannot express this SAE, or
        the folder holds something.
    """
    formats.save(self.weights, self.details, folder, format)

  def _rows(self, fn, values, size):
    values = jnp.asarray(values)
    if values.ndim < 1 or values.shape[-1] != size:
      raise errors.InputError(
        f'got an array of shape {list(values.shape)}; expected [..., {size}].'
      )
    rows_NK = fn(values.reshape(-1, size).astype('float32'))
    return rows_NK.reshape(*values.shape[:-1], rows_NK.shape[-1])


def load_sae(path_or_hub_id: str | os.PathLike) -> SAE:
  """Reads an SAE of any format (`exchange.formats.FORMATS`).

  Args:
    path_or_hub_id: a folder or a file in it; or OWNER/REPOSITORY/FOLDER of the
      Hugging Face hub, such as
      google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71; or
      embedded, an SAE of the embedded language model, which is shipped too.

  Raises:
    errors.InputError: it is not there, of no known format, or damaged.
  """
  weights, details = formats.load(hub.resolve_sae(path_or_hub_id))
  return SAE(weights, details)


def _known_site(name, layer):
  if name not in sites.SITES or layer < 0:
    raise errors.InputError(
      f"the SAE's files name its place {name!r}, layer {layer}; give it "
      'yourself, as SAE(weights, dataclasses.replace(details, site=…, '
      f'layer=…)), with one of {", ".join(sites.SITES)}.'
    )
  return sites.Site(name, layer)
