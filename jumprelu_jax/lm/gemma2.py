"""Gemma 2's architecture as pure functions on a pytree of parameters.

Follows Gemma Team 2024 (arXiv:2408.00118) and, where the report is silent, the
reference implementation in `transformers` (`Gemma2ForCausalLM`), to which the
tests hold it: rotary embeddings; sliding-window attention on even layers and
global attention on odd ones; soft-caps on attention scores and logits; GeGLU;
an RMSNorm with gain (1 + w) before and after each sub-layer; tied embeddings.

Letters: B sequences, L positions, D d_model, V vocabulary, H query heads, G
key/value heads, R = H / G, K head dim, P = H * K, Q = G * K, F MLP width.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
from jax import numpy as jnp

from jumprelu_jax.lm import sites


@dataclasses.dataclass(frozen=True)
class Gemma2Config:
  """Sizes and constants of a Gemma 2 model, under Hugging Face's names."""

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_hidden_layers: int
  num_attention_heads: int
  num_key_value_heads: int
  head_dim: int
  max_position_embeddings: int
  sliding_window: int
  query_pre_attn_scalar: float
  rope_theta: float = 10_000.0
  rms_norm_eps: float = 1e-6
  attn_logit_softcapping: float | None = 50.0
  final_logit_softcapping: float | None = 30.0
  bos_token_id: int = 2
  eos_token_id: int = 1
  pad_token_id: int = 0

  def site_dim(self, name: str) -> int:
    """Returns the size of the activations at a site (see `sites`)."""
    if name == 'attn_z':
      return self.num_attention_heads * self.head_dim
    return self.hidden_size

  def is_sliding(self, layer: int) -> bool:
    """True where attention sees the last `sliding_window` positions only."""
    return layer % 2 == 0


@flax.struct.dataclass
class Block:
  """Parameters of one transformer block; matrices map rows: y = x @ W."""

  pre_attn_norm_D: jax.Array
  W_q_DP: jax.Array
  W_k_DQ: jax.Array
  W_v_DQ: jax.Array
  W_o_PD: jax.Array
  post_attn_norm_D: jax.Array
  pre_mlp_norm_D: jax.Array
  W_gate_DF: jax.Array
  W_up_DF: jax.Array
  W_down_FD: jax.Array
  post_mlp_norm_D: jax.Array


@flax.struct.dataclass
class Gemma2:
  """A Gemma 2 language model: its parameters and, static, its config."""

  embed_VD: jax.Array
  blocks: tuple[Block, ...]
  final_norm_D: jax.Array
  config: Gemma2Config = flax.struct.field(pytree_node=False)


def init(config: Gemma2Config, key: jax.Array) -> Gemma2:
  """Returns a randomly initialised float32 model; `key` is consumed."""
  D, F = config.hidden_size, config.intermediate_size
  P = config.num_attention_heads * config.head_dim
  Q = config.num_key_value_heads * config.head_dim
  keys = iter(jax.random.split(key, 1 + 7 * config.num_hidden_layers))

  def dense(fan_in, fan_out):
    return jax.random.normal(next(keys), (fan_in, fan_out)) * fan_in**-0.5

  def gain():
    return jnp.zeros(D)  # RMSNorm gains are stored as gain - 1

  def block():
    return Block(
        gain(), dense(D, P), dense(D, Q), dense(D, Q), dense(P, D), gain(),
        gain(), dense(D, F), dense(D, F), dense(F, D), gain(),
    )  # fmt: skip

  embed_VD = jax.random.normal(next(keys), (config.vocab_size, D)) * D**-0.5
  blocks = tuple(block() for _ in range(config.num_hidden_layers))
  return Gemma2(embed_VD, blocks, gain(), config)


def residual(
  model: Gemma2, tokens_BL: jax.Array, hook: sites.Hook = sites.no_hook
) -> jax.Array:
  """Returns the last block's residual stream [B, L, D], before the final norm.

  Args:
    model: parameters; their dtype is the compute dtype.
    tokens_BL: token ids, int32.
    hook: called at every site of every layer (see `sites`).
  """
  config = model.config
  x_BLD = model.embed_VD[tokens_BL]
  # The reference rounds sqrt(d_model) to the weights' dtype before it scales.
  x_BLD = x_BLD * jnp.asarray(config.hidden_size**0.5, x_BLD.dtype)
  rope_LK = _rotary_angles(config, tokens_BL.shape[1])
  for layer, block in enumerate(model.blocks):
    x_BLD = _block(config, layer, block, x_BLD, rope_LK, hook)
  return x_BLD


def logits(
  model: Gemma2, tokens_BL: jax.Array, hook: sites.Hook = sites.no_hook
) -> jax.Array:
  """Returns next-token logits [B, L, V] in float32; arguments as `residual`."""
  config = model.config
  x_BLD = residual(model, tokens_BL, hook)
  x_BLD = _rms_norm(x_BLD, model.final_norm_D, config.rms_norm_eps)
  logits_BLV = jnp.einsum('BLD,VD->BLV', x_BLD, model.embed_VD)
  return _soft_cap(logits_BLV, config.final_logit_softcapping).astype('float32')


def tap(model: Gemma2, tokens_BL: jax.Array, where: sites.Site) -> jax.Array:
  """Returns the activations x_BLD at one site, running no later block."""
  found = []
  head = model.replace(blocks=model.blocks[: where.layer + 1])
  residual(head, tokens_BL, sites.record(where, found))
  return found[0]


def _block(config, layer, block, x_BLD, rope_LK, hook):
  """One transformer block; calls the hook at each of its sites."""
  eps = config.rms_norm_eps

  def at(name, x):
    return hook(sites.Site(name, layer), x)

  h_BLD = _rms_norm(x_BLD, block.pre_attn_norm_D, eps)
  z_BLP = at('attn_z', _attention(config, layer, block, h_BLD, rope_LK))
  x_BLD += _rms_norm(z_BLP @ block.W_o_PD, block.post_attn_norm_D, eps)
  h_BLD = _rms_norm(x_BLD, block.pre_mlp_norm_D, eps)
  h_BLF = jax.nn.gelu(h_BLD @ block.W_gate_DF, approximate=True)
  h_BLD = (h_BLF * (h_BLD @ block.W_up_DF)) @ block.W_down_FD
  x_BLD += at('mlp_out', _rms_norm(h_BLD, block.post_mlp_norm_D, eps))
  return at('resid_post', x_BLD)


def _attention(config, layer, block, h_BLD, rope_LK):
  """Grouped-query attention; returns the heads' outputs, concatenated."""
  B, L, _ = h_BLD.shape
  H, G, K = (
    config.num_attention_heads,
    config.num_key_value_heads,
    config.head_dim,
  )
  q_BLHK = _rotate((h_BLD @ block.W_q_DP).reshape(B, L, H, K), rope_LK)
  k_BLGK = _rotate((h_BLD @ block.W_k_DQ).reshape(B, L, G, K), rope_LK)
  v_BLGK = (h_BLD @ block.W_v_DQ).reshape(B, L, G, K)
  q_BLGRK = q_BLHK.reshape(B, L, G, H // G, K)
  # Second position letter S: the position attended to.
  scores_BGRLS = jnp.einsum('BLGRK,BSGK->BGRLS', q_BLGRK, k_BLGK)
  scores_BGRLS *= config.query_pre_attn_scalar**-0.5
  scores_BGRLS = _soft_cap(scores_BGRLS, config.attn_logit_softcapping)
  distance_LS = jnp.arange(L)[:, None] - jnp.arange(L)[None]
  window = config.sliding_window if config.is_sliding(layer) else L
  sees_LS = (distance_LS >= 0) & (distance_LS < window)
  scores_BGRLS = jnp.where(sees_LS[None, None, None], scores_BGRLS, -jnp.inf)
  weights_BGRLS = jax.nn.softmax(scores_BGRLS.astype('float32'), axis=-1)
  weights_BGRLS = weights_BGRLS.astype(h_BLD.dtype)
  z_BLGRK = jnp.einsum('BGRLS,BSGK->BLGRK', weights_BGRLS, v_BLGK)
  return z_BLGRK.reshape(B, L, H * K)


def _rms_norm(x_BLD, weight_D, eps):
  """RMSNorm with gain 1 + weight, computed in float32."""
  x32_BLD = x_BLD.astype('float32')
  mean_square_BL1 = jnp.mean(x32_BLD**2, axis=-1, keepdims=True)
  x32_BLD *= jax.lax.rsqrt(mean_square_BL1 + eps)
  gain_D = 1 + weight_D.astype('float32')
  return (x32_BLD * gain_D[None, None]).astype(x_BLD.dtype)


def _soft_cap(x, cap):
  """Cap * tanh(x / cap); the identity where the model has no cap."""
  return x if cap is None else cap * jnp.tanh(x / cap)


def _rotary_angles(config, length):
  """Angles [L, K / 2] of the rotary embedding, in float32."""
  exponent_K = jnp.arange(0, config.head_dim, 2) / config.head_dim
  frequency_K = config.rope_theta**-exponent_K
  return jnp.arange(length)[:, None] * frequency_K[None]


def _rotate(x_BLHK, angle_LK):
  """Rotates the pairs (i, i + K / 2) of every head by their angles."""
  cos, sin = (
    f(angle_LK)[None, :, None].astype(x_BLHK.dtype) for f in (jnp.cos, jnp.sin)
  )
  a, b = jnp.split(x_BLHK, 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
