"""Language models for notebooks and scripts: run, splice, ablate, steer."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import functools
import os

import jax
from jax import numpy as jnp
import numpy as np
import tokenizers

from jumprelu_jax import embedded
from jumprelu_jax import errors
from jumprelu_jax import products
from jumprelu_jax import seeds
from jumprelu_jax.api import sae as sae_lib
from jumprelu_jax.lm import generation
from jumprelu_jax.lm import huggingface
from jumprelu_jax.lm import sites
from jumprelu_jax.lm import transformer
from jumprelu_jax.text import long_text
from jumprelu_jax.text import pieces


@dataclasses.dataclass(frozen=True, eq=False)
class LM:
  """A language model and its tokenizer.

  Attributes:
    model: parameters, a pytree.
    tokenizer: of the `tokenizers` library.
    name: its id or folder.
  """

  model: transformer.Transformer
  tokenizer: tokenizers.Tokenizer
  name: str

  def tokens(self, text: str | Sequence[str]) -> np.ndarray:
    """Returns token ids [B, L], int32: one BOS first, PAD at the end."""
    texts = [text] if isinstance(text, str) else list(text)
    architecture = self.model.architecture
    rows = [self.encode(one) for one in texts]
    length = max(map(len, rows), default=0)
    if not length:
      raise errors.InputError('got no text; expected a string or several.')
    if length > architecture.max_positions:
      raise errors.InputError(
        f'the text has {length} tokens; the model reads at most '
        f'{architecture.max_positions}.'
      )
    padded = [row + [architecture.pad_id] * (length - len(row)) for row in rows]
    return np.array(padded, np.int32)

  def encode(self, text: str, *, starts: bool = True) -> list[int]:
    """Returns a text's token ids, BOS before them if it starts a sequence.

    Raises:
      errors.InputError: the model has no embedding for one of them.
    """
    architecture = self.model.architecture
    pieces = long_text.encode([text], self.tokenizer)
    ids = np.concatenate([np.empty(0, np.int32), *pieces]).tolist()
    bos = architecture.bos_id
    # A text that was rendered for chat often has one itself.
    if starts and bos is not None and ids[:1] != [bos]:
      ids = [bos, *ids]
    architecture.check_ids(np.array(ids, int), self.tokenizer.id_to_token)
    return ids

  def words(self, tokens: Sequence[int]) -> list[str]:
    """Returns the text of consecutive tokens, one piece per token.

    They concatenate to the text; see `text.pieces` for characters that are cut
    into several tokens.
    """
    return pieces.split(pieces.to_bytes(self.tokenizer, tokens))

  def text(self, tokens: Sequence[int]) -> str:
    """Returns the text of consecutive tokens without special ones."""
    added = self.tokenizer.get_added_tokens_decoder()
    special = {token for token, how in added.items() if how.special}
    tokens = [token for token in map(int, tokens) if token not in special]
    if self.tokenizer.decoder is None:  # words, with spaces between them
      return self.tokenizer.decode(tokens)
    return ''.join(self.words(tokens))

  def run(
    self, text: str | Sequence[str] | np.ndarray, *taps: sites.Site | str
  ) -> tuple[jax.Array, ...]:
    """Runs the model.

    Args:
      text: text, or token ids [B, L].
      *taps: where activations are wanted: sites, or words as 'resid_post/2'.

    Returns:
      Logits [B, L, V], float32, and the activations [B, L, D] of each tap.
    """
    where = tuple(map(_site, taps))
    for site in where:
      self.model.architecture.check_site(site)
    return _run(self.model, self._ids(text), where)

  def run_with(
    self,
    text: str | Sequence[str] | np.ndarray,
    where: sites.Site | str,
    fn: Callable[[jax.Array], jax.Array],
  ) -> jax.Array:
    """Returns logits [B, L, V] with fn(x_BLD) in place of x_BLD at a site."""
    hooks = {_site(where): lambda x_BLD: fn(x_BLD).astype(x_BLD.dtype)}
    return transformer.logits(self.model, self._ids(text), hooks)

  def splice(self, text, sae: sae_lib.SAE) -> jax.Array:
    """Returns logits with the SAE's reconstruction in place of activations."""
    self._check(sae)
    return self.run_with(text, sae.site, sae)

  def ablate(self, text, sae: sae_lib.SAE, latent: int) -> jax.Array:
    """Returns logits without what one latent adds; all else stays.

    Of the activations f_i d_i is taken away, so that the SAE's error stays in.
    """
    self._check(sae, latent)
    direction_D = sae.weights.W_dec[latent]

    def without(x_BLD):
      f_BL1 = sae.encode(x_BLD)[..., latent, None]
      return x_BLD - f_BL1 * direction_D[None, None]

    return self.run_with(text, sae.site, without)

  def steer(
    self, text, sae: sae_lib.SAE, latent: int, strength: float
  ) -> jax.Array:
    """Returns logits with `strength` of a latent's direction added everywhere.

    Args:
      text: as `run`.
      sae: whose decoder row it is.
      latent: its index.
      strength: in units of the latent's activation.
    """
    return self.run_with(text, sae.site, self.steering(sae, latent, strength))

  def steering(
    self, sae: sae_lib.SAE, latent: int, strength: float
  ) -> Callable[[jax.Array], jax.Array]:
    """Returns the function x_BLD → x_BLD that `steer` puts in."""
    self._check(sae, latent)
    added_D = strength * sae.weights.W_dec[latent]
    return lambda x_BLD: x_BLD + added_D[None, None]

  def generate(
    self,
    text: str,
    count: int,
    where: sites.Site | str | None = None,
    fn: Callable[[jax.Array], jax.Array] | None = None,
    *,
    temperature: float = 0.0,
    seed: int = 0,
  ) -> str:
    """Returns what the model goes on with after a text.

    Args:
      text: the beginning.
      count: tokens to add.
      where: a site at which fn(x_BLD) takes the place of x_BLD, as in
        `run_with`; None changes nothing.
      fn: such as `steering` returns.
      temperature: 0 takes the likeliest token each time.
      seed: of the draws at other temperatures.
    """
    hooks = {}
    if where is not None:
      hooks = {_site(where): lambda x_BLD: fn(x_BLD).astype(x_BLD.dtype)}
    seeds.check('seed', seed)
    (tokens_L,) = self.tokens(text)
    longest = self.model.architecture.max_positions
    if len(tokens_L) + count > longest:
      raise errors.InputError(
        f'{len(tokens_L)} tokens of text and {count} more; the model reads at '
        f'most {longest}.'
      )
    added = generation.generate(
      self.model,
      tokens_L,
      count,
      hooks,
      temperature=temperature,
      key=seeds.key(seed),
    )
    return self.text(np.asarray(added))

  def attribution(
    self, text, sae: sae_lib.SAE, token: int | str, position: int = -1
  ) -> jax.Array:
    """Returns what latents add to a logit, to first order, [L, M] float32.

    Activation times gradient: f W_dec^T dlogit/dx at each position of one text,
    the SAE's reconstruction and its error both in place.

    Args:
      text: one text, or token ids [1, L].
      sae: whose latents.
      token: whose logit: an id, or a text of one token.
      position: where it is predicted.
    """
    self._check(sae)
    ids = self._ids(text)
    wanted = self._token(token)

    def logit(added_BLD):
      hooks = {sae.site: lambda x_BLD: x_BLD + added_BLD.astype(x_BLD.dtype)}
      return transformer.logits(self.model, ids, hooks)[0, position, wanted]

    x_BLD = self.run(ids, sae.site)[1]
    gradient_BLD = jax.grad(logit)(jnp.zeros(x_BLD.shape))
    effect_LM = products.matmul(gradient_BLD[0], sae.weights.W_dec.T)
    return sae.encode(x_BLD)[0] * effect_LM

  def promoted(
    self, sae: sae_lib.SAE, latent: int, count: int = 10
  ) -> list[tuple[str, float]]:
    """Returns the tokens whose logits a latent's direction raises most.

    The decoder row through the final norm's gain and the unembedding, without
    the layers between: (token, its share of the logit), largest first.
    """
    self._check(sae, latent)
    model = self.model
    gain_D = model.final_norm_D
    if model.architecture.norm == 'rms_plus_one':
      gain_D = 1 + gain_D
    head_VD = model.embed_VD if model.head_VD is None else model.head_VD
    direction_D = sae.weights.W_dec[latent] * gain_D
    effect_V = np.asarray(
      products.matmul(head_VD, direction_D.astype(head_VD.dtype))
    )
    best = np.argsort(-effect_V.astype('float32'))[:count]
    words = pieces.split_each(pieces.to_bytes(self.tokenizer, best))
    return list(zip(words, effect_V[best].tolist(), strict=True))

  def _ids(self, text):
    if isinstance(text, str | list | tuple):
      return jnp.asarray(self.tokens(text))
    ids = np.asarray(text)
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
      raise errors.InputError(
        f'got token ids of shape {list(ids.shape)} and dtype {ids.dtype}; '
        'expected whole numbers [B, L], or text.'
      )
    self.model.architecture.check_ids(ids, self.tokenizer.id_to_token)
    return jnp.asarray(ids, 'int32')

  def _token(self, token):
    if not isinstance(token, str):
      self.model.architecture.check_ids(np.array(token))
      return int(token)
    ids = self.encode(token, starts=False)
    if len(ids) != 1:
      raise errors.InputError(
        f'{token!r} is {len(ids)} tokens ({self.words(ids)}); give one, often '
        'with a space before it.'
      )
    return ids[0]

  def _check(self, sae, latent=None):
    """Raises InputError unless an SAE fits this model."""
    self.model.architecture.check_site(sae.site)
    wanted = self.model.architecture.site_dim(sae.site.name)
    size = sae.weights.W_enc.shape[0]
    if size != wanted:
      raise errors.InputError(
        f'the SAE reads activations of size {size}, but {self.name} has '
        f'{wanted} at {sae.site}; load the model that it was trained on '
        f'({sae.details.model or "unknown"}).'
      )
    if latent is not None and not 0 <= latent < sae.num_latents:
      raise errors.InputError(
        f'latent {latent} is not there; expected 0 to {sae.num_latents - 1}.'
      )


def load_lm(
  path_or_hub_id: str | os.PathLike = sae_lib.EMBEDDED, dtype: str = 'float32'
) -> LM:
  """Reads a language model: a folder, a hub id, or the one that is shipped.

  Raises:
    errors.InputError: it is not there, damaged, or not computed exactly.
  """
  name = str(path_or_hub_id)
  folder = embedded.LM
  if name != sae_lib.EMBEDDED:
    folder, _ = huggingface.resolve(name, '')
  model = huggingface.load(folder, dtype=dtype)
  return LM(model, huggingface.load_tokenizer(folder), name)


@functools.partial(jax.jit, static_argnames='where')
def _run(model, tokens_BL, where):
  found = {}

  def keep(site, x_BLD):
    found[site] = x_BLD
    return x_BLD

  hooks = {site: functools.partial(keep, site) for site in where}
  logits_BLV = transformer.logits(model, tokens_BL, hooks)
  return logits_BLV, *(found[site] for site in where)


def _site(where):
  return where if isinstance(where, sites.Site) else sites.parse(where)
