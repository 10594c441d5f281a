"""Corrupted files of every kind that we read: told of, or of no consequence.

Each file is damaged many times over, in ways that are drawn; reading what it
belongs to must raise InputError, or give what it gave before. Files in other
libraries' formats have their own tests (`test_untrusted`).
"""

import functools
import gzip
import json
import lzma
import shutil

from helpers import corruption
from helpers import sealed
from helpers import small_store
from helpers import sweeping
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from jumprelu_jax import checkpoint
from jumprelu_jax import export
from jumprelu_jax import finished
from jumprelu_jax import inputs
from jumprelu_jax import run_folder
from jumprelu_jax import runs
from jumprelu_jax import sae_folders
from jumprelu_jax import sweeps
from jumprelu_jax.activations import store as store_lib
from jumprelu_jax.text import sources


def read_store(folder, description):
  store = store_lib.Store(folder)
  store.check_is_of(description)
  shards = range(len(store.rows_per_shard))
  rows = [store.open(i)[:].tobytes() for i in shards if i not in store.missing]
  origins = [
    store.origin(i).tobytes() for i in shards if i not in store.missing
  ]
  return rows, origins, store.scale, store.mean_D.tobytes(), store.missing


STORES = {
  'npy rows': ('npy', 'shard_00003.npy', 60),
  'npy rows of one': ('npy', 'shard_00002.npy', 20),
  'origins': ('npy', 'shard_00000.origin.npy', 40),
  'sidecar': ('npy', 'shard_00000.json', 80),
  'manifest': ('npy', 'manifest.json', 60),
  'zarr metadata': ('zarr3', 'shard_00003.zarr/zarr.json', 80),
  'zarr blocks': ('zarr3', 'shard_00003.zarr/c/0/0', 60),
}


@pytest.mark.parametrize('name', STORES)
def test_stores(name, tmp_path):
  form, file, times = STORES[name]
  description = small_store.describe(format=form)
  small_store.write(tmp_path, description)
  read = functools.partial(read_store, tmp_path, description)
  corruption.check(name, corruption.Kind(tmp_path / file, times, read))


@pytest.fixture(scope='module')
def whole(tiny_run, tiny_lm, tiny_text, tmp_path_factory):
  """(config, folder) of a finished sweep on a model and texts of its own."""
  folder = tmp_path_factory.mktemp('corrupted')
  shutil.copytree(tiny_lm, folder / 'lm')
  shutil.copy(tiny_text, folder / 'text.jsonl')
  run = tiny_run.with_values(
    {
      'lm.path': str(folder / 'lm'),
      'text.heldout': str(folder / 'text.jsonl'),
      'sweep.saes': ('jumprelu/l0/1e-2',),
    }
  )
  sweeping.run_sweep(run, folder / 'run')
  return run, folder


@pytest.fixture
def again(whole, monkeypatch):
  """A function that gives the command of the finished sweep again."""
  run, folder = whole
  swept = sweeps.expand(run)
  prepared = inputs.prepare(next(iter(swept.values())))

  def redo(*arguments):
    raise corruption.RedoneError

  monkeypatch.setattr(runs, '_train_all', redo)
  monkeypatch.setattr(sae_folders, 'evaluate', lambda to, _: map(redo, to))

  def read():
    with run_folder.claimed(folder / 'run', run):
      rows = runs.run_all(prepared, swept, folder / 'run')
    return rows, (folder / 'run' / 'results.csv').read_bytes()

  return read


SAE = 'jumprelu_l0_0.01'
SAE_FILES = {
  'config.json': 40,
  'params.npz': 40,
  'evaluation.json': 60,
  'latents.npz': 20,
  'metrics.jsonl': 40,
  'seal.json': 60,
}


@pytest.mark.parametrize('name', SAE_FILES)
def test_files_of_an_sae(name, whole, again):
  path = whole[1] / 'run' / SAE / name
  corruption.check(
    f'an SAE: {name}', corruption.Kind(path, SAE_FILES[name], again)
  )


SHARED = ('config.json', 'inputs.json')


def test_files_of_a_run(whole, again):
  workdir = whole[1] / 'run'
  corruption.check(
    'a run: config.json', corruption.Kind(workdir / 'config.json', 60, again)
  )
  corruption.check(
    'a run: inputs.json', corruption.Kind(workdir / 'inputs.json', 40, again)
  )


@pytest.mark.parametrize(
  'name', ['results.csv', f'{SAE}/evaluation.json', f'{SAE}/metrics.jsonl']
)
def test_what_figures_read(name, whole):
  workdir = whole[1] / 'run'
  read = functools.partial(read_rows, workdir)
  corruption.check(
    f'figures: {name}', corruption.Kind(workdir / name, 40, read)
  )


def read_rows(workdir):
  rows = finished.read([workdir])
  return [(*row.items(), finished.frequency_M(row).tobytes()) for row in rows]


def test_weights_without_their_folder(whole, tmp_path):
  path = tmp_path / 'params.npz'
  shutil.copy(whole[1] / 'run' / SAE / 'params.npz', path)

  def read():
    sae = export.load_npz(path)
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(sae)]

  corruption.check('params.npz alone', corruption.Kind(path, 80, read))


@pytest.mark.parametrize('name', ['sequences.npy', 'sequences.json'])
def test_packed_tokens(name, whole, tmp_path):
  run, folder = whole
  for file in ('sequences.npy', 'sequences.json'):
    shutil.copy(folder / 'run' / 'activations' / file, tmp_path / file)
  prepared = inputs.prepare(run)

  def read():
    return prepared.plan(tmp_path / 'sequences.npy').tokens_NL.tobytes()

  corruption.check(name, corruption.Kind(tmp_path / name, 60, read))


@pytest.mark.parametrize(
  'name', ['model.safetensors', 'config.json', 'tokenizer.json']
)
def test_models(name, whole):
  """Whatever can still be read is not what the run began with."""
  run, folder = whole

  def read():
    prepared = inputs.prepare(run)
    digests = {'model': prepared.model_digests}
    run_folder.check_unchanged(folder / 'run', digests)
    return digests

  corruption.check(
    f'a model: {name}', corruption.Kind(folder / 'lm' / name, 20, read)
  )


def test_texts(whole, tmp_path):
  """Compressed ones have checksums; of others the run keeps one."""
  run, folder = whole
  plain = (folder / 'text.jsonl').read_bytes()

  def read_from(path):
    return lambda: list(sources.read(sources.Source(str(path))))

  for name, content in (
    ('text.jsonl.gz', gzip.compress(plain)),
    ('text.jsonl.xz', lzma.compress(plain)),
  ):
    path = tmp_path / name
    path.write_bytes(content)
    corruption.check(name, corruption.Kind(path, 14, read_from(path)))

  def read_heldout():
    prepared = inputs.prepare(run)
    digest = {'held-out tokens': prepared.heldout_digest}
    run_folder.check_unchanged(folder / 'run', digest)
    return digest

  corruption.check(
    'text.jsonl', corruption.Kind(folder / 'text.jsonl', 14, read_heldout)
  )


def test_checkpoints(tmp_path):
  """A damaged one is passed over; the one before is as it was."""
  folder = tmp_path / 'checkpoints'
  saves = checkpoint.Checkpointer(folder)
  for step in (2, 4):
    saves.save(step, {'a': jnp.full((9, 9), float(step))}, {'at': step / 3})
  saves.close()
  kept, names = tmp_path / 'kept', []
  shutil.copytree(folder, kept)
  names = sorted(p.relative_to(kept) for p in (kept / '4').rglob('*'))
  names = [name for name in names if (kept / name).is_file()]
  rng = np.random.default_rng(0)
  told = harmless = 0
  for i in range(40):
    shutil.rmtree(folder)
    shutil.copytree(kept, folder)
    path = folder / names[i % len(names)]
    path.write_bytes(
      corruption.DAMAGES[i % len(corruption.DAMAGES)](path.read_bytes(), rng)
    )
    saves = checkpoint.Checkpointer(folder)
    (*_, last) = saves.steps()
    found = saves.restore(last, {'a': jnp.zeros((9, 9))})['a']
    np.testing.assert_array_equal(found, np.full((9, 9), float(last)))
    assert saves.notes(last) == {'at': last / 3}
    saves.close()
    told, harmless = told + (last == 2), harmless + (last == 4)
  corruption.FOUND['checkpoints'] = (told, harmless)
  assert told > 20


def test_interpretability_and_saved_saes(tmp_path):
  for name, (path, read) in sealed.all_of(tmp_path).items():
    times = 56 if path.suffix == '.sqlite' else 7  # much of it is empty
    corruption.check(name, corruption.Kind(path, times, read))


@pytest.mark.slow  # trains and evaluates, and then opens a run 500 times
def test_two_thousand_flips(whole, again, tmp_path):
  """One bit at a time, in every file that a command reads."""
  workdir = whole[1] / 'run'
  read_sae = functools.partial(sealed.read_sae, workdir / SAE)
  files = {f'a run: {n}': (workdir / n, again, 30) for n in SHARED}
  for name in SAE_FILES:
    files[f'an SAE: {name}'] = workdir / SAE / name, again, 30
    files[f'load_sae: {name}'] = workdir / SAE / name, read_sae, 30
  files['figures: results.csv'] = (
    workdir / 'results.csv',
    functools.partial(read_rows, workdir),
    60,
  )
  for name, (path, read) in sealed.all_of(tmp_path).items():
    files[name] = path, read, 400 if path.suffix == '.sqlite' else 30
  for name, (form, file, _) in STORES.items():
    folder = tmp_path / name.replace(' ', '_')
    description = small_store.describe(format=form)
    small_store.write(folder, description)
    read = functools.partial(read_store, folder, description)
    files[f'a store: {name}'] = folder / file, read, 30
  rng, found = np.random.default_rng(0), {}
  for name, (path, read, times) in files.items():
    kind = corruption.Kind(path, times, read)
    found[name] = corruption.count_flips(kind, rng)
  print(json.dumps(found))
  told, harmless = np.sum(list(found.values()), axis=0)
  print(f'{told} told, {harmless} harmless, 0 silent')
  assert told + harmless >= 2000


def test_there_were_enough(request):
  """The figures of docs/reliability.md, if this file ran as a whole."""
  told, harmless = np.sum(list(corruption.FOUND.values()), axis=0)
  print(json.dumps({k: list(map(int, v)) for k, v in corruption.FOUND.items()}))
  print(f'{told} told of, {harmless} of no consequence')
  if len(corruption.FOUND) >= 26:
    assert told + harmless >= 500
