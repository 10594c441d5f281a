"""The commands themselves, as separate processes."""

from helpers import commands
import pytest

pytestmark = pytest.mark.slow  # whole commands


def test_sweep_and_evaluate(overrides, tmp_path):
  workdir = tmp_path / 'sweep'
  done = commands.run('sweep', *overrides, f'--workdir={workdir}')
  assert done.returncode == 0, done.stderr
  assert 'train 2 SAEs: ' in done.stderr
  assert 'pareto.png' in done.stderr
  assert 'sparsity_coeff' in done.stdout
  assert (workdir / 'pareto.png').is_file()
  assert (workdir / 'pareto.pdf').is_file()
  table, arrays = commands.outcome(workdir)
  assert len(arrays) == 10

  # What was trained can be evaluated by itself, with the same result.
  again = tmp_path / 'again.csv'
  sae = workdir / 'jumprelu_l0_0.001'
  done = commands.run('evaluate', f'--sae={sae}', f'--out={again}')
  assert done.returncode == 0, done.stderr
  assert again.read_text().splitlines() == table.decode().splitlines()[:2]


def test_train_makes_one_sae(overrides, tmp_path):
  workdir = tmp_path / 'one'
  flags = [*overrides, '--config.train.steps=100', f'--workdir={workdir}']
  done = commands.run('train', *flags, '--config.objective.sparsity_coeff=0.02')
  assert done.returncode == 0, done.stderr
  header, row = (workdir / 'results.csv').read_text().splitlines()
  found = dict(zip(header.split(','), row.split(','), strict=True))
  assert found['sparsity_coeff'] == '0.02'
  assert (workdir / 'jumprelu_l0_0.02' / 'params.npz').is_file()


@pytest.mark.parametrize(
  ('launcher', 'extra', 'message'),
  [
    (
      'sweep',
      ['--config.sae.num_latent=3'],
      'Did you mean "num_latents" instead of "num_latent"?',
    ),
    ('sweep', ['--config.sae.num_latents=many'], 'invalid literal for int'),
    (
      'sweep',
      ['--config.sweep.saes=jumprelu/l0/1e-3,topk/aux_k/1.5'],
      "'topk/aux_k/1.5' is not of the form",
    ),
    ('train', ['--config.lm.layer=7'], 'it has layers 0 to 1'),
    ('train', ['stray'], 'are not flags'),
    ('sweep', ['--config=configs/none.py'], 'none.py'),
    ('sweep', ['--config=configs/quickstart.py:fast'], 'quick'),
  ],
  ids=['key', 'type', 'saes', 'layer', 'stray', 'recipe', 'argument'],
)
def test_bad_input_is_one_line_and_harms_nothing(
  overrides, tmp_path, launcher, extra, message
):
  workdir = tmp_path / 'run'
  done = commands.run(launcher, *overrides, f'--workdir={workdir}', *extra)
  assert done.returncode == 2, done.stderr
  (line,) = done.stderr.strip().splitlines()
  assert line.startswith('error: ')
  assert message in line
  assert not workdir.exists()


@pytest.mark.parametrize('flag', ['--config', '--workdir'])
def test_missing_flag_is_named(overrides, tmp_path, flag):
  args = [*overrides, f'--workdir={tmp_path / "run"}']
  done = commands.run('sweep', *[a for a in args if not a.startswith(flag)])
  assert done.returncode == 2
  assert flag.lstrip('-') in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1


def test_evaluate_refuses_a_folder_without_an_sae(tmp_path):
  done = commands.run('evaluate', f'--sae={tmp_path}')
  assert done.returncode == 2
  assert 'config.json does not exist' in done.stderr
