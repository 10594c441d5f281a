"""Folders of latent records from tables that tests make up."""

import dataclasses
import json

import pyarrow as pa
from pyarrow import parquet

from jumprelu_jax.records import schema


def write(folder, tables, source):
  """Writes a folder.

  Args:
    folder: is made if it is not there.
    tables: rows, or a whole pyarrow table, of each of `schema.NAMES`.
    source: a `schema.Source`.
  """
  folder.mkdir(parents=True, exist_ok=True)
  for name in schema.NAMES:
    table = tables[name]
    if not isinstance(table, pa.Table):
      table = pa.Table.from_pylist(table, schema.SCHEMAS[name])
    parquet.write_table(table, folder / f'{name}.parquet')
  about = json.dumps(dataclasses.asdict(source))
  (folder / schema.SOURCE).write_text(about)
