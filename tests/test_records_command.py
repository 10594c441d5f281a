"""Records and dashboards from their commands, on a small trained SAE."""

import dataclasses
import json
import pathlib
import subprocess
import sys

from jax import numpy as jnp
import numpy as np
import pytest

from experiments.records import make
import jumprelu_jax
from jumprelu_jax import config as config_lib
from jumprelu_jax import errors
from jumprelu_jax import export
from jumprelu_jax import lock
from jumprelu_jax.exchange import details
from jumprelu_jax.records import gather
from jumprelu_jax.records import schema
from jumprelu_jax.records import state
from jumprelu_jax.sae import maps
from jumprelu_jax.sae import released

pytestmark = pytest.mark.slow  # whole commands
ROOT = pathlib.Path(__file__).parent.parent
SETTINGS = state.Settings(top=3, sampled=5, width=6)
SMALL = [
  f'--{name}={value}' for name, value in dataclasses.asdict(SETTINGS).items()
]


def random_sae(num_latents=32):
  rng = np.random.default_rng(0)
  return released.SAE(
    W_enc=jnp.asarray(rng.normal(size=(16, num_latents)), 'float32'),
    b_enc=jnp.zeros(num_latents),
    W_dec=maps.unit_rows(
      jnp.asarray(rng.normal(size=(num_latents, 16)), 'float32')
    ),
    b_dec=jnp.zeros(16),
    threshold=jnp.full(num_latents, 2.0),
  )


@pytest.fixture(scope='module')
def trained(tiny_run, tmp_path_factory):
  """The folder that a run leaves of an SAE."""
  folder = tmp_path_factory.mktemp('run') / 'jumprelu_l0_0.001'
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(tiny_run.to_dict()))
  export.save_npz(random_sae(), folder / export.FILE_NAME)
  return folder


def make_records(sae, out, **wanted):
  make.make(make.Request(sae=str(sae), settings=SETTINGS, **wanted), out)
  return schema.read(out)


def run(launcher, *args):
  command = [sys.executable, '-m', f'experiments.{launcher}', *map(str, args)]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_a_dashboard_from_a_trained_sae(trained, tmp_path, tiny_run):
  done = run('dashboard', f'--sae={trained}', f'--out={tmp_path}', *SMALL)
  assert done.returncode == 0, done.stderr
  records = schema.read(tmp_path / 'records')
  source = records.source
  assert (source.site, source.layer) == ('resid_post', 1)
  assert (source.architecture, source.num_latents) == ('jumprelu', 32)
  assert source.text == tiny_run.text.heldout
  assert records.latents().column('count').to_numpy().sum() > 1000
  assert (tmp_path / 'index.html').is_file()
  assert sorted(p.name for p in (tmp_path / 'records').iterdir()) == [
    'background.parquet', 'examples.parquet', 'latents.parquet',
    'records.json', 'request.json', 'seal.json', 'tokens.parquet',
  ]  # fmt: skip
  # Again: the records are used as they are.
  before = (tmp_path / 'records/latents.parquet').stat().st_mtime_ns
  done = run('dashboard', f'--sae={trained}', f'--out={tmp_path}', *SMALL)
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'records/latents.parquet').stat().st_mtime_ns == before


def test_any_sae_with_a_model_and_a_text(trained, tiny_lm, tiny_text, tmp_path):
  ours = make_records(trained, tmp_path / 'ours')
  known = details.Details(site='resid_post', layer=1, context_length=16)
  jumprelu_jax.SAE(random_sae(), known).save(tmp_path / 'sae', 'saelens')
  args = [f'--sae={tmp_path / "sae"}', f'--out={tmp_path / "other"}']
  missing = run('records', *args)
  assert missing.returncode == 2
  assert '--lm, --text are missing' in missing.stderr
  done = run('records', *args, f'--lm={tiny_lm}', f'--text={tiny_text}', *SMALL)
  assert done.returncode == 0, done.stderr
  other = schema.read(tmp_path / 'other')
  assert other.latents().equals(ours.latents())
  assert other.examples(range(32)).equals(ours.examples(range(32)))


def test_fewer_tokens_and_the_text_of_training(
  trained, tiny_text, tmp_path, tiny_run
):
  few = make_records(trained, tmp_path / 'few', tokens=100)
  # Seven sequences of 16, of which the first token is BOS.
  assert few.source.positions <= 7 * 15
  assert few.source.positions > 6 * 15 - 20
  again = make_records(trained, tmp_path / 'all', text='harvest')
  assert again.source.text == tiny_run.text.harvest


def test_the_text_of_training_may_be_what_is_shipped(trained, tmp_path):
  values = {'text.harvest': config_lib.EMBEDDED}
  config = json.loads((trained / 'config.json').read_text())
  run = config_lib.RunConfig.from_config_dict(config).with_values(values)
  folder = tmp_path / 'sae'
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(run.to_dict()))
  (folder / 'params.npz').write_bytes((trained / 'params.npz').read_bytes())
  request = make.Request(sae=str(folder), text='harvest')
  found = make.run_of(request, make.load_sae(request))
  assert pathlib.Path(found.text.heldout).name == 'harvest.jsonl.xz'


def test_a_killed_command_goes_on(trained, tmp_path, monkeypatch):
  monkeypatch.setattr(gather, '_TOKENS_PER_SETTLING', 64)
  monkeypatch.setattr(gather, '_SECONDS_PER_CHECKPOINT', 0.0)
  whole = make_records(trained, tmp_path / 'whole')
  with monkeypatch.context() as patch:
    patch.setattr(make.write, 'write', lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      make_records(trained, tmp_path / 'killed')
  with pytest.raises(errors.InputError, match='holds no records.json'):
    schema.read(tmp_path / 'killed')
  with monkeypatch.context() as patch:
    patch.setattr(state.State, 'add', None)  # all of the text has been read
    killed = make_records(trained, tmp_path / 'killed')
  for name in ('latents', 'examples', 'background', 'tokens'):
    path = f'{name}.parquet'
    want = (whole.folder / path).read_bytes()
    assert (killed.folder / path).read_bytes() == want


def test_what_a_killed_command_was_writing_is_no_matter(trained, tmp_path):
  """Also the very file that makes the folder its own."""
  whole = make_records(trained, tmp_path / 'whole')
  killed = tmp_path / 'killed'
  killed.mkdir()
  (killed / 'request.json.host-1.partial').write_text('{"version": ')
  (killed / 'records.lock').write_text('{"pid": 1}')
  found = make_records(trained, killed)
  assert found.latents().equals(whole.latents())
  (killed / 'records.json').unlink()
  (killed / 'examples.parquet.host-2.partial').write_bytes(b'PAR1')
  make_records(trained, killed)
  names = {path.name for path in killed.iterdir()}
  assert names == {path.name for path in whole.folder.iterdir()}


def test_a_folder_is_one_command_s_at_a_time(trained, tmp_path):
  out = tmp_path / 'records'
  out.mkdir()
  with (
    lock.held(out / 'records.lock'),
    pytest.raises(errors.InputError, match='in use by another run'),
  ):
    make_records(trained, out)
  make_records(trained, out)


def test_a_folder_belongs_to_one_request(trained, tmp_path):
  make_records(trained, tmp_path)
  with pytest.raises(errors.InputError, match='sequences: 0 there, 7 wanted'):
    make_records(trained, tmp_path, tokens=100)
  (tmp_path / 'else').mkdir()
  (tmp_path / 'else/thesis.txt').write_text('years of work')
  with pytest.raises(errors.InputError, match='holds no records'):
    make_records(trained, tmp_path / 'else')


def test_an_sae_of_another_width_is_refused(trained, tmp_path):
  with pytest.raises(errors.InputError, match='has size 12'):
    make_records(trained, tmp_path / 'out', site='attn_z/1')
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['--mesh=2'], '--mesh=2: expected DATA,LATENT'),
    (['--tokens=-1'], '--tokens=-1: expected 0 or more'),
    (['--records=somewhere'], 'either --records'),
  ],
  ids=str,
)
def test_flags_that_make_no_sense(trained, tmp_path, args, message):
  done = run('dashboard', f'--sae={trained}', f'--out={tmp_path}', *args)
  assert done.returncode == 2
  assert message in done.stderr
