"""Files that commands of interpretability and exchange read, for damage.

Each function writes small ones and returns {name: (path, reader)}; a reader
gives all that a command would know of the file's folder.
"""

import asyncio
import dataclasses
import functools
import json

from jax import numpy as jnp
import numpy as np

from experiments.records import make
from helpers import corruption
from helpers import rated_records
from helpers import small_world
from jumprelu_jax import api
from jumprelu_jax import seals
from jumprelu_jax.autointerp import cache as cache_lib
from jumprelu_jax.autointerp import cases
from jumprelu_jax.autointerp import requests
from jumprelu_jax.autointerp import study
from jumprelu_jax.autointerp import table
from jumprelu_jax.exchange import details
from jumprelu_jax.exchange import formats
from jumprelu_jax.ratings import answers
from jumprelu_jax.ratings import study as ratings
from jumprelu_jax.records import schema
from jumprelu_jax.records import state as state_lib
from jumprelu_jax.sae import released


def all_of(folder):
  """Everything below, each in a folder of its own."""
  found = {}
  for write in (
    records, interrupted_records, scores, cache, rated_study, saved_saes,
  ):  # fmt: skip
    found |= write(folder / write.__name__)
  return found


def records(folder):
  world = small_world.make(folder, sequences=6, length=32, background=6)
  about = json.loads((folder / schema.SOURCE).read_text())
  names = [f'{name}.parquet' for name in schema.NAMES]
  seals.write(folder, about, names)

  def read():
    found = schema.read(folder)
    latents = range(world.source.num_latents)
    tables = found.latents(), found.examples(latents), found.background()
    rows = [table.to_pylist() for table in tables]
    return repr([found.source, found.texts.tolist(), *rows])

  files = (*names, schema.SOURCE, seals.NAME)
  return {f'records: {name}': (folder / name, read) for name in files}


class _Text:
  """What `make` asks of prepared inputs to pack a text."""

  def heldout_rows(self):
    yield from np.arange(96, dtype=np.int32).reshape(6, 16)


def interrupted_records(folder):
  wanted = {'version': 1, 'sae': 'x', 'settings': {'top': 20}, 'site': ['a', 1]}
  with make._claimed(folder, wanted):
    make._pack(folder, _Text())

  def new_state():
    settings = state_lib.Settings(top=2, sampled=5, width=4)
    return state_lib.State(settings, 3, 20, 16)

  state = new_state()
  totals = state.totals.arrays()
  state.totals.restore({k: np.full_like(v, 3) for k, v in totals.items()})
  state.save(folder / 'state.npz', 4)

  def read_claim():
    with make._claimed(folder, wanted):
      return 'ours'

  def read_text():
    if not seals.is_sealed(folder, 'sequences.npy'):
      raise corruption.RedoneError
    return make._pack(folder, _Text()).tobytes()

  def read_state():
    found = new_state()
    done = found.restore(folder / 'state.npz')
    arrays = [
      array.tobytes()
      for part in found._parts().values()
      for array in part.arrays().values()
    ]
    return done, arrays

  return {
    'records: request.json': (folder / 'request.json', read_claim),
    'records: sequences.npy': (folder / 'sequences.npy', read_text),
    'records: seal of the text': (folder / seals.NAME, read_text),
    'records: state.npz': (folder / 'state.npz', read_state),
  }


def scores(folder):
  world = small_world.make(folder / 'records', window=16)
  setting = study.Setting(study.LOOKUPS, world.pieces)
  rows = asyncio.run(
    study.run(cases.load(world, cases.Choice()), setting, None, total=6)
  )
  about = {'architecture': 'topk', 'l0': 2.5, 'settings': {'latents': 0}}
  table.write(folder, rows, setting.measures, about)

  def read():
    found = table.read(folder)
    return repr([found.about, found.rows])

  files = ('scores.parquet', 'scores.csv', 'summary.json', seals.NAME)
  return {f'scores: {name}': (folder / name, read) for name in files}


def cache(folder):
  path = folder / 'answers.sqlite'
  kept = cache_lib.Cache(path)
  for i in range(8):
    answer = requests.Answer(f'an answer {i}', tokens_in=10 * i, tokens_out=i)
    kept.put(f'key {i}', f'a question {i}', answer)
  kept.close()

  def read():
    opened = cache_lib.Cache(path)
    try:
      found = [opened.get(f'key {i}') for i in range(8)]
    finally:
      opened.close()
    if None in found:  # it is asked again
      raise corruption.RedoneError
    return found

  return {'scores: answers.sqlite': (path, read)}


def rated_study(folder):
  records = rated_records.write_six(folder / 'records')
  made = rated_records.prepare_small(folder / 'study', records)
  answers.create(made.answers)
  for i, (rater, names) in enumerate(made.orders.items()):
    for name in names:
      rating = answers.RATINGS[i % 3]
      answers.save(made.answers, rater, name, rating, f'it fires on {name}')

  def read():
    found = ratings.read(folder / 'study')
    return repr([found, found.shown])

  def read_answers():
    return answers.history(made.answers)

  files = ('study.json', 'items.jsonl', seals.NAME)
  found = {f'a study: {name}': (made.folder / name, read) for name in files}
  return found | {'a study: answers': (made.answers, read_answers)}


def saved_saes(folder):
  rng = np.random.default_rng(0)
  sae = released.SAE(
    W_enc=jnp.asarray(rng.normal(size=(6, 9)), 'float32'),
    b_enc=jnp.asarray(rng.normal(size=9), 'float32'),
    W_dec=jnp.asarray(rng.normal(size=(9, 6)), 'float32'),
    b_dec=jnp.asarray(rng.normal(size=6), 'float32'),
    threshold=jnp.asarray(rng.uniform(1, 2, size=9), 'float32'),
  )
  about = details.Details(model='tiny', site='resid_post', layer=1, l0=3.5)
  found = {}
  for name in formats.FORMATS:
    if name == 'sparsify':  # it has no thresholds
      continue
    here = folder / name
    api.SAE(sae, about).save(here, name)

    read = functools.partial(read_sae, here)
    for path in sorted(here.iterdir()):
      found[f'{name}: {path.name}'] = path, read
  return found


def read_sae(folder):
  sae = api.load_sae(folder)
  arrays = [
    np.asarray(getattr(sae.weights, field.name)).tobytes()
    for field in dataclasses.fields(sae.weights)
  ]
  return repr(sae.details), arrays
