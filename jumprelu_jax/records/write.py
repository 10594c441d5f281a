"""A gathered state → the files of `schema`."""

from __future__ import annotations

from collections.abc import Iterable
import dataclasses
import os
import pathlib
from typing import Any

import jax
import numpy as np
import pyarrow as pa
from pyarrow import parquet

from jumprelu_jax import seals
from jumprelu_jax import whole
from jumprelu_jax.lm import sites
from jumprelu_jax.lm import transformer
from jumprelu_jax.records import columns
from jumprelu_jax.records import counts
from jumprelu_jax.records import schema
from jumprelu_jax.records import state as state_lib
from jumprelu_jax.text import pieces as pieces_lib

# A reader of one latent's examples reads those of as many.
_LATENTS_PER_GROUP = 256


def write(
  folder: str | os.PathLike,
  state: state_lib.State,
  source: schema.Source,
  *,
  model: transformer.Transformer,
  W_dec_ME: jax.Array,
  target: sites.Site,
  tokens_NL: np.ndarray,
  pieces: pieces_lib.Pieces,
) -> None:
  """Writes a folder of records; records.json, which makes it whole, last.

  Args:
    folder: is made if it is not there.
    state: of the whole text.
    source: from `describe`.
    model: with the layers up to the site.
    W_dec_ME: the SAE's decoder.
    target: what it predicts.
    tokens_NL: the text.
    pieces: the text of each token of the vocabulary.
  """
  folder, M = pathlib.Path(folder), len(W_dec_ME)
  state.settle()
  V = len(pieces.texts_V)
  cut = [pieces.cut.get(token) for token in range(V)]
  tokens = [np.arange(V, dtype=np.int32), pieces.texts_V, cut]
  _write(folder, 'tokens', [tokens])
  _write(folder, 'latents', [columns.latents(state, model, W_dec_ME, target)])
  blocks = np.split(
    np.arange(M), range(_LATENTS_PER_GROUP, M, _LATENTS_PER_GROUP)
  )
  _write(
    folder,
    'examples',
    (columns.examples(state, block, tokens_NL) for block in blocks),
  )
  _write(folder, 'background', [columns.background(state, tokens_NL)])
  about = dataclasses.asdict(source)
  seals.write(folder, about, [f'{name}.parquet' for name in schema.NAMES])
  whole.write_json(folder / schema.SOURCE, about)


def name_architecture(folder: str | os.PathLike, name: str) -> None:
  """Says what the architecture of the SAE of whole records is."""
  folder, source = pathlib.Path(folder), schema.read(folder).source
  about = dataclasses.asdict(dataclasses.replace(source, architecture=name))
  # Killed in between, records without a seal are left, and not damaged ones.
  (folder / seals.NAME).unlink(missing_ok=True)
  whole.write_json(folder / schema.SOURCE, about)
  seals.write(folder, about, [f'{name}.parquet' for name in schema.NAMES])


def describe(state: state_lib.State, **known: str | int) -> schema.Source:
  """Returns the source of a state's records.

  Args:
    state: of the whole text.
    **known: `sae`, `model`, `site`, `layer`, `architecture` and `text` of the
      source.
  """
  totals, settings = state.totals, state.settings
  positions = int(totals.positions[0])
  first, stop = columns.used_bins(totals)
  return schema.Source(
    l0=float(totals.count_M.sum() / max(positions, 1)),
    num_latents=len(totals.count_M),
    positions=positions,
    edges=tuple(counts.EDGES[first : stop + 1].tolist()),
    strata=settings.strata,
    token_count_error=state.tokens.error,
    seed=settings.seed,
    **known,
  )


def _write(folder, name, blocks: Iterable[list[Any]]):
  """Writes a file, a group of rows for each block of columns."""
  kind = schema.SCHEMAS[name]
  with (
    whole.replacing(folder / f'{name}.parquet') as file,
    parquet.ParquetWriter(file, kind, compression='zstd') as writer,
  ):
    for block in blocks:
      arrays = [
        pa.array(column, field.type)
        if not isinstance(column, pa.Array)
        else column
        for column, field in zip(block, kind, strict=True)
      ]
      writer.write_table(pa.Table.from_arrays(arrays, schema=kind))
