"""What feeds a training step: a store that is read, a model that fills it."""

from __future__ import annotations

from collections.abc import Iterator
import pathlib
import tempfile

import jax
import numpy as np

from experiments.benchmark import shapes
from experiments.benchmark import timing
from jumprelu_jax.activations import batches as batches_lib
from jumprelu_jax.activations import buckets
from jumprelu_jax.activations import formats
from jumprelu_jax.lm import gemma2
from jumprelu_jax.lm import sites
from jumprelu_jax.lm import transformer

# Batches of a shard, and shards of the store.
_BATCHES, _SHARDS = 8, 2
_CONTEXT, _LAYERS, _VOCAB, _HEAD_DIM = 256, 4, 4096, 64
_SEQUENCES = 8


def store(shape: shapes.Shape) -> Iterator[timing.Line]:
  """A shuffled batch of bfloat16 rows, from the page cache, by each format."""
  with tempfile.TemporaryDirectory() as folder:
    readers = {
      name: batches_lib.Batches(
        _Stored(shape, pathlib.Path(folder), name), shape.batch, 0
      )
      for name in ('zarr3', 'npy')
    }
    works = {name: _Reads(batches) for name, batches in readers.items()}
    encoder_s, seconds = timing.beside_encoder(shape, works)
    for batches in readers.values():
      batches.close()
  for name in (*works, 'store'):
    of_one = seconds.get(name, seconds['npy'])
    num_bytes = 2 * shape.batch * shape.d_model
    yield {
      **timing.line(name, shape, of_one, encoder_s, saes=None),
      'gigabytes_per_s': round(num_bytes / np.median(of_one) / 1e9, 3),
    }


class _Stored:
  """Shards of random rows on disk; see `batches.Shards`."""

  def __init__(self, shape, folder, name):
    self._format = formats.get(name)
    self._dtype = formats.DTYPES['bfloat16']
    self._shape = (_BATCHES * shape.batch, shape.d_model)
    self.widths, self.scales = (shape.d_model,), (1.0,)
    self.rows_per_shard = (self._shape[0],) * _SHARDS
    self._paths = [folder / f'{i}{self._format.suffix}' for i in range(_SHARDS)]
    for i, path in enumerate(self._paths):
      rows_ND = np.tile(shape.rows(i), (_BATCHES, 1)).astype(self._dtype)
      self._format.write(path, rows_ND)

  def open(self, index):
    return self._format.open(self._paths[index], self._shape, self._dtype)


class _Reads:
  """Reads the next batch."""

  def __init__(self, batches):
    self._batches, self._step = batches, 0

  def __call__(self):
    self._step += 1
    return self._batches[self._step]


def harvest(shape: shapes.Shape) -> Iterator[timing.Line]:
  """As many rows as a batch through a small model, kept nowhere, and on disk.

  A random Gemma 2 of four layers with the d_model asked for, in the dtype asked
  for; read after the last layer, as bfloat16.
  """
  sequences = -(-shape.batch // (_CONTEXT - 1))
  rng = np.random.default_rng(0)
  tokens_NL = rng.integers(3, _VOCAB, (sequences, _CONTEXT)).astype('int32')
  tokens_NL[:, 0] = 2
  plan = buckets.Plan(
    tokens_NL=tokens_NL,
    special_ids=(0, 1, 2),
    pad_id=0,
    sequences_per_bucket=sequences,
    sequences_per_batch=min(_SEQUENCES, sequences),
    max_norm_multiple=0.0,
    seed=0,
  )
  tap = _tap(shape)
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'rows.npy'

    def forward():
      size = plan.sequences_per_batch
      whole = range(0, len(tokens_NL) - len(tokens_NL) % size, size)
      return [tap(tokens_NL[i : i + size]) for i in whole]

    def keep():
      formats.get('npy').write(path, buckets.make(plan, tap, 0).rows[0])

    works = {'forward': forward, 'harvest': keep}
    encoder_s, seconds = timing.beside_encoder(shape, works)
  for name, of_one in seconds.items():
    ratios = np.array(of_one) / np.array(seconds['forward'])
    yield {
      **timing.line(name, shape, of_one, encoder_s, saes=None),
      'ratio_to_forward': round(float(np.median(ratios)), 3),
    }


def _tap(shape):
  """Returns a jitted function of token ids: a random model's last residual."""
  heads = max(1, shape.d_model // _HEAD_DIM)
  architecture = gemma2.architecture(
    vocab_size=_VOCAB,
    hidden_size=shape.d_model,
    intermediate_size=4 * shape.d_model,
    num_hidden_layers=_LAYERS,
    num_attention_heads=heads,
    num_key_value_heads=heads,
    head_dim=_HEAD_DIM,
    max_position_embeddings=_CONTEXT,
    sliding_window=_CONTEXT,
    query_pre_attn_scalar=float(_HEAD_DIM),
    rms_norm_eps=1e-6,
  )
  model = transformer.init(architecture, jax.random.key(0))
  model = jax.tree.map(lambda leaf: leaf.astype(shape.dtype), model)
  where = (sites.Site('resid_post', _LAYERS - 1),)

  @jax.jit
  def tap(model, tokens_BL):
    found = transformer.tap(model, tokens_BL, where)
    return tuple(x_BLD.astype('bfloat16') for x_BLD in found)

  return lambda tokens_BL: tap(model, tokens_BL)
