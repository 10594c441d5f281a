"""One decoder-only transformer for all families, as functions on a pytree.

Families differ in numbers and in rows of two tables (`Architecture`), and in
which arrays there are: what a family lacks is None. The tests hold every family
to its reference implementation in `transformers`.

Letters: B sequences, L positions, D d_model, V vocabulary, C longest sequence,
H query heads, G key/value heads, R = H / G, K head dim, F MLP width; Q and S
are the positions of queries and of keys inside attention.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools

import flax.struct
import jax
from jax import numpy as jnp

from jumprelu_jax import products
from jumprelu_jax.lm import architecture as architecture_lib
from jumprelu_jax.lm import layers
from jumprelu_jax.lm import rope
from jumprelu_jax.lm import sites

# Queries are taken this many at a time, or a sixteenth of the sequence where
# that is more: smaller chunks skip more of the future, larger ones keep the
# program short. Measured best on a CPU at 128 to 1,024 positions.
_QUERIES_PER_CHUNK, _MAX_CHUNKS = 64, 16


@flax.struct.dataclass
class Blocks:
  """Parameters of all blocks; matrices map rows: y = x @ W.

  Names are those of one block; every array has a leading axis of layers more.
  """

  attn_norm_D: jax.Array
  W_q_DHK: jax.Array
  W_k_DGK: jax.Array
  W_v_DGK: jax.Array
  W_o_HKD: jax.Array
  mlp_norm_D: jax.Array
  W_up_DF: jax.Array
  W_down_FD: jax.Array
  attn_norm_bias_D: jax.Array | None = None
  post_attn_norm_D: jax.Array | None = None
  mlp_norm_bias_D: jax.Array | None = None
  post_mlp_norm_D: jax.Array | None = None
  q_norm_K: jax.Array | None = None
  k_norm_K: jax.Array | None = None
  b_q_HK: jax.Array | None = None
  b_k_GK: jax.Array | None = None
  b_v_GK: jax.Array | None = None
  b_o_D: jax.Array | None = None
  W_gate_DF: jax.Array | None = None
  b_gate_F: jax.Array | None = None
  b_up_F: jax.Array | None = None
  b_down_D: jax.Array | None = None


@flax.struct.dataclass
class Transformer:
  """A language model: its parameters and, static, its architecture."""

  embed_VD: jax.Array
  blocks: Blocks
  final_norm_D: jax.Array
  final_norm_bias_D: jax.Array | None = None
  positions_CD: jax.Array | None = None
  head_VD: jax.Array | None = None  # None: logits read the embedding
  architecture: architecture_lib.Architecture = flax.struct.field(
    pytree_node=False, default=None
  )


def shapes(architecture: architecture_lib.Architecture) -> Transformer:
  """Returns the parameters' shapes: a Transformer of tuples."""
  sizes = architecture.sizes()

  def shape(name, stack):
    is_there = (
      name not in architecture_lib.OPTIONAL or name in architecture.optional
    )
    letters = name.rsplit('_', 1)[1]
    return (*stack, *(sizes[a] for a in letters)) if is_there else None

  def of_class(cls, stack=(), **others):
    names = [f.name for f in dataclasses.fields(cls) if '_' in f.name]
    return cls(**{name: shape(name, stack) for name in names}, **others)

  blocks = of_class(Blocks, (architecture.num_layers,))
  return of_class(Transformer, blocks=blocks, architecture=architecture)


def init(
  architecture: architecture_lib.Architecture, key: jax.Array
) -> Transformer:
  """Returns a randomly initialised float32 model; `key` is consumed."""
  is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
  leaves, treedef = jax.tree_util.tree_flatten_with_path(
    shapes(architecture), is_leaf=is_shape
  )
  keys = jax.random.split(key, len(leaves))

  def draw(path, shape, key):
    name = path[-1].name
    if name.startswith('W_'):
      fan_in = shape[1] * (shape[2] if name == 'W_o_HKD' else 1)
      return jax.random.normal(key, shape) * fan_in**-0.5
    if name in ('embed_VD', 'head_VD', 'positions_CD'):
      return jax.random.normal(key, shape) * architecture.d_model**-0.5
    is_gain = 'norm' in name and 'bias' not in name
    return jnp.full(
      shape, float(is_gain and architecture.norm != 'rms_plus_one')
    )

  return jax.tree.unflatten(
    treedef,
    [draw(path, s, k) for (path, s), k in zip(leaves, keys, strict=True)],
  )


def residual(
  model: Transformer,
  tokens_BL: jax.Array,
  hooks: sites.Hooks = sites.NO_HOOKS,
  num_layers: int | None = None,
) -> jax.Array:
  """Returns the residual stream x_BLD after the last block, before its norm.

  Args:
    model: parameters; their dtype is the compute dtype.
    tokens_BL: token ids, int32.
    hooks: what to call where (see `sites`).
    num_layers: stop after this many blocks; None runs all.
  """
  return run_blocks(model, embed(model, tokens_BL), hooks, 0, num_layers)


def embed(model: Transformer, tokens_BL: jax.Array) -> jax.Array:
  """Embeds tokens and, where the model learned them, positions."""
  x_BLD = model.embed_VD[tokens_BL]
  # The reference rounds the factor to the weights' dtype before it scales.
  x_BLD *= jnp.asarray(model.architecture.embed_scale, x_BLD.dtype)
  if model.positions_CD is not None:
    x_BLD += model.positions_CD[None, : tokens_BL.shape[1]]
  return x_BLD


def run_blocks(
  model: Transformer,
  x_BLD: jax.Array,
  hooks: sites.Hooks = sites.NO_HOOKS,
  start: int = 0,
  end: int | None = None,
) -> jax.Array:
  """Returns the residual stream after some of the blocks.

  Args:
    model: as `residual`.
    x_BLD: the residual stream before the first of them.
    hooks: what to call where; those at other blocks are ignored.
    start: the first block.
    end: the block after the last; None runs all that follow.
  """
  end = model.architecture.num_layers if end is None else end
  apply = functools.partial(_apply, model, _rope_tables(model, x_BLD))
  done = start
  # Hooked layers run by themselves, the others in loops between them.
  for layer in sorted({s.layer for s in hooks if start <= s.layer < end}):
    x_BLD = jax.lax.fori_loop(done, layer, apply, x_BLD)
    x_BLD = apply(layer, x_BLD, sites.of_layer(hooks, layer))
    done = layer + 1
  return jax.lax.fori_loop(done, end, apply, x_BLD)


def logits(
  model: Transformer,
  tokens_BL: jax.Array,
  hooks: sites.Hooks = sites.NO_HOOKS,
) -> jax.Array:
  """Returns next-token logits [B, L, V], float32; arguments as `residual`."""
  return unembed(model, residual(model, tokens_BL, hooks))


def unembed(model: Transformer, x_BLD: jax.Array) -> jax.Array:
  """Returns logits [B, L, V], float32, of the residual stream at the end."""
  architecture = model.architecture
  norm = layers.norm_of(architecture)
  x_BLD = norm(x_BLD, model.final_norm_D, model.final_norm_bias_D)
  head_VD = model.embed_VD if model.head_VD is None else model.head_VD
  logits_BLV = products.einsum(
    'BLD,VD->BLV', x_BLD, head_VD, preferred_element_type='float32'
  )
  return layers.soft_cap(logits_BLV, architecture.logit_cap)


def tap(
  model: Transformer, tokens_BL: jax.Array, where: Sequence[sites.Site]
) -> tuple[jax.Array, ...]:
  """Returns the activations x_BLD at some sites, from one pass.

  Nothing after the last site is computed, nor need its layers be there.
  """
  found = {}
  hooks = {site: functools.partial(_keep, found, site) for site in where}
  residual(model, tokens_BL, hooks, 1 + max(site.layer for site in where))
  return tuple(found[site] for site in where)


def _keep(found, site, x_BLD):
  found[site] = x_BLD
  return x_BLD


def _rope_tables(model, x_BLD):
  """Returns cos and sin for each rotary table, or None."""
  ropes = model.architecture.ropes
  return rope.table(ropes, x_BLD.shape[1]) if ropes else None


def _apply(model, tables, layer, x_BLD, hooks=sites.NO_HOOKS):
  """Runs one block; `layer` is an int or, in a loop, a traced one."""
  architecture = model.architecture
  block = jax.tree.map(
    lambda p: jax.lax.dynamic_index_in_dim(p, layer, keepdims=False),
    model.blocks,
  )
  if tables is not None:
    rope_of_layer = jnp.asarray(architecture.rope_of_layer)[layer]
    tables = [t[rope_of_layer] for t in tables]
  length = x_BLD.shape[1]
  windows = [w or length for w in architecture.windows]
  # No window where it would hide nothing: masks cost time.
  window = jnp.asarray(windows)[layer] if min(windows) < length else None
  attend = functools.partial(_attention, architecture, block, tables, window)
  return _block(architecture, block, x_BLD, attend, hooks)


def _block(architecture, block, x_BLD, attend, hooks):
  """One transformer block; calls the hooks at its sites."""
  norm = layers.norm_of(architecture)
  at = functools.partial(sites.call, hooks)
  x_BLD = at('resid_pre', x_BLD)
  h_BLD = norm(x_BLD, block.attn_norm_D, block.attn_norm_bias_D)
  z_BLHK = at('attn_z', attend(h_BLD))
  h_BLD = products.einsum('BLHK,HKD->BLD', z_BLHK, block.W_o_HKD)
  h_BLD = layers.plus(h_BLD, block.b_o_D)
  if block.post_attn_norm_D is not None:
    h_BLD = norm(h_BLD, block.post_attn_norm_D, None)
  middle_BLD = x_BLD + at('attn_out', h_BLD)
  if not architecture.is_parallel:
    x_BLD = middle_BLD = at('resid_mid', middle_BLD)
  h_BLD = norm(x_BLD, block.mlp_norm_D, block.mlp_norm_bias_D)
  h_BLD = _mlp(architecture, block, at('mlp_in', h_BLD))
  if block.post_mlp_norm_D is not None:
    h_BLD = norm(h_BLD, block.post_mlp_norm_D, None)
  return at('resid_post', middle_BLD + at('mlp_out', h_BLD))


def _mlp(architecture, block, h_BLD):
  """MLP, gated where the block has a gate."""
  activation = layers.ACTIVATIONS[architecture.activation]
  up_BLF = layers.plus(products.matmul(h_BLD, block.W_up_DF), block.b_up_F)
  if block.W_gate_DF is None:
    hidden_BLF = activation(up_BLF)
  else:
    gate_BLF = layers.plus(
      products.matmul(h_BLD, block.W_gate_DF), block.b_gate_F
    )
    hidden_BLF = activation(gate_BLF) * up_BLF
  return layers.plus(
    products.matmul(hidden_BLF, block.W_down_FD), block.b_down_D
  )


def _attention(architecture, block, tables, window, h_BLD):
  """Causal grouped-query attention; returns the heads' outputs z_BLHK.

  Queries go in chunks, each against the keys up to its end: exact, and half of
  the work of all pairs.
  """
  q_BLHK, k_BLGK, v_BLGK = _queries_keys_values(
    architecture, block, tables, h_BLD
  )
  B, L, H, K = q_BLHK.shape
  G = k_BLGK.shape[2]
  # Heads first: batched products then read their operands in order.
  q_BGRLK = q_BLHK.reshape(B, L, G, H // G, K).transpose(0, 2, 3, 1, 4)
  k_BGLK, v_BGLK = (t.transpose(0, 2, 1, 3) for t in (k_BLGK, v_BLGK))
  size = max(_QUERIES_PER_CHUNK, -(-L // _MAX_CHUNKS))
  chunks = []
  for start in range(0, L, size):
    end = min(start + size, L)
    chunks.append(
      _attend(
        architecture,
        q_BGRLK[:, :, :, start:end],
        k_BGLK[:, :, :end],
        v_BGLK[:, :, :end],
        _sees(start, end, window),
      )
    )
  z_BGRLK = jnp.concatenate(chunks, axis=3)
  return z_BGRLK.transpose(0, 3, 1, 2, 4).reshape(B, L, H, K)


def _queries_keys_values(architecture, block, tables, h_BLD):
  """Projects to heads, normalises and rotates queries and keys."""
  q_BLHK = products.einsum('BLD,DHK->BLHK', h_BLD, block.W_q_DHK)
  k_BLGK = products.einsum('BLD,DGK->BLGK', h_BLD, block.W_k_DGK)
  v_BLGK = products.einsum('BLD,DGK->BLGK', h_BLD, block.W_v_DGK)
  q_BLHK = layers.plus(q_BLHK, block.b_q_HK)
  k_BLGK = layers.plus(k_BLGK, block.b_k_GK)
  v_BLGK = layers.plus(v_BLGK, block.b_v_GK)
  if block.q_norm_K is not None:
    norm = layers.norm_of(architecture)
    q_BLHK = norm(q_BLHK, block.q_norm_K, None)
    k_BLGK = norm(k_BLGK, block.k_norm_K, None)
  if tables is not None:
    q_BLHK, k_BLGK = (rope.rotate(t, *tables) for t in (q_BLHK, k_BLGK))
  return q_BLHK, k_BLGK, v_BLGK


def _sees(start, end, window):
  """Which of the keys [0, end) the queries [start, end) attend to."""
  distance_QS = jnp.arange(start, end)[:, None] - jnp.arange(end)[None]
  sees_QS = distance_QS >= 0
  return sees_QS if window is None else sees_QS & (distance_QS < window)


def _attend(architecture, q_BGRQK, k_BGSK, v_BGSK, sees_QS):
  """Softmax attention of some queries; the softmax is in float32."""
  scores_BGRQS = products.einsum('BGRQK,BGSK->BGRQS', q_BGRQK, k_BGSK)
  scores_BGRQS = layers.soft_cap(
    scores_BGRQS * architecture.attention_scale, architecture.attention_cap
  ).astype('float32')
  scores_BGRQS = jnp.where(sees_QS[None, None, None], scores_BGRQS, -jnp.inf)
  weights_BGRQS = jax.nn.softmax(scores_BGRQS, axis=-1).astype(v_BGSK.dtype)
  return products.einsum('BGRQS,BGSK->BGRQK', weights_BGRQS, v_BGSK)
