"""The small-budget study: one-factor ablations, and a yardstick from outside.

  python -m experiments.small_budget --config=configs/quickstart.py \
      --workdir=DIR --study=ablation --out=docs/small_budget_ablation.csv

Trains variants of a recipe on one store of activations, each at several
sparsity coefficients, and writes a row for each SAE. `--study=grid` trains the
recipe over a grid of learning rates; `--study=saelens` trains SAELens' JumpReLU
over the same grid on the same batches in the same order (in an environment that
has `pip install torch==2.13.0 sae-lens==6.54.12` beside this package). A
finished SAE in the workdir is not trained again. With `--against=OTHER.csv`,
each of that table's SAEs is then held against this study's, interpolated to its
L0.
"""

import csv
import itertools
import json
import pathlib
import time

from absl import flags
import jax.numpy as jnp
import numpy as np

from experiments import launch
from jumprelu_jax import evaluation
from jumprelu_jax import export
from jumprelu_jax import inputs as inputs_lib
from jumprelu_jax import progress
from jumprelu_jax import runs
from jumprelu_jax import train
from jumprelu_jax import writer
from jumprelu_jax.activations import batches as batches_lib
from jumprelu_jax.sae import released

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder.', required=True)
_STUDY = flags.DEFINE_enum(
  'study', 'ablation', ['ablation', 'grid', 'saelens'], 'What to train.'
)
_OUT = flags.DEFINE_string('out', None, 'CSV to write.', required=True)
_AGAINST = flags.DEFINE_string('against', None, 'CSV of another study.')

COEFFS = (1e-3, 2e-3, 4e-3)
ABLATION_COEFFS = (1.5e-3,)
LEARNING_RATES = (1e-3, 3e-3, 1e-2)

#: SAELens' decoder, and with it its encoder, starts at norm 0.1, so its
#: pre-activations are ten times smaller than ours at first. Adam's beta2 is its
#: default.
SAELENS = {
  'sae.initial_threshold': 0.02,
  'objective.bandwidth': 0.004,
  'optimizer.beta2': 0.999,
}

_RAW = {'sae.architecture': 'jumprelu_raw_threshold'}
#: One factor at a time away from the recipe: name → overrides.
ABLATION = {
  'recipe': {},
  'beta2=0.999': {'optimizer.beta2': 0.999},
  'decay_fraction=0': {'optimizer.decay_fraction': 0.0},
  'threshold_lr=7e-3': {'optimizer.threshold_learning_rate': 7e-3},
  'initial_threshold=0.001': {'sae.initial_threshold': 1e-3},
  'bandwidth=0.001': {'objective.bandwidth': 1e-3},
  'bandwidth=0.005': {'objective.bandwidth': 5e-3},
  'raw_threshold,lr=1e-3': _RAW | {'optimizer.threshold_learning_rate': 1e-3},
  'gemma_scope': {
    'optimizer.learning_rate': 7e-5,
    'optimizer.threshold_learning_rate': 7e-5,
    'optimizer.beta2': 0.999,
    'optimizer.decay_fraction': 0.0,
    'sae.initial_threshold': 1e-3,
    'objective.bandwidth': 1e-3,
  },
}


def train_ours(run, inputs, store, folder):
  """Trains one of our SAEs; returns it folded."""
  state = train.fit(run, store, inputs.mesh, folder)
  return train.release(run, state, store.scales)


def train_saelens(run, inputs, store, folder):
  """Trains SAELens' JumpReLU on the same batches; returns it folded.

  Its own defaults where the study does not set a value: raw thresholds, a free
  decoder norm that starts at 0.1, b_dec subtracted from the input, gradients
  clipped at global norm 1.
  """
  del inputs
  import sae_lens
  from sae_lens import config as sae_lens_config
  import torch

  d_model, num_latents = store.d_model, run.sae.num_latents
  batches = batches_lib.Batches(store, run.train.batch_size, run.seed)
  steps = run.train.steps
  torch.manual_seed(run.seed)
  sae = sae_lens.JumpReLUTrainingSAE(
    sae_lens.JumpReLUTrainingSAEConfig(
      d_in=d_model,
      d_sae=num_latents,
      l0_coefficient=run.objective.sparsity_coeff,
      l0_warm_up_steps=run.objective.sparsity_warmup_steps,
      jumprelu_bandwidth=run.objective.bandwidth,
      jumprelu_init_threshold=run.sae.initial_threshold,
    )
  )
  trainer = sae_lens.SAETrainer(
    cfg=sae_lens_config.SAETrainerConfig(
      total_training_samples=steps * run.train.batch_size,
      train_batch_size_samples=run.train.batch_size,
      lr=run.optimizer.learning_rate,
      lr_end=run.optimizer.learning_rate / 100,
      lr_warm_up_steps=run.optimizer.warmup_steps,
      lr_scheduler_name='cosineannealing',
      adam_beta1=run.optimizer.beta1,
      adam_beta2=run.optimizer.beta2,
      device='cpu',
      logger=sae_lens.LoggingConfig(log_to_wandb=False),
    ),
    sae=sae,
    data_provider=(
      torch.from_numpy(batches[i].astype('float32') / store.scale)
      for i in range(steps)
    ),
  )
  with (folder / 'metrics.jsonl').open('w') as curve:
    window = []
    with progress.track('SAELens', steps, 'steps') as bar:
      for step in range(1, steps + 1):
        out = trainer.step(next(trainer.data_provider))
        window.append((out.feature_acts > 0).float().sum(-1).mean().item())
        if step % run.train.steps_per_log == 0:
          l0 = sum(window) / len(window)
          curve.write(json.dumps({'step': step, 'l0': l0}) + '\n')
          bar.advance(len(window), l0=l0)
          window.clear()
  state = {k: jnp.asarray(v.numpy()) for k, v in sae.state_dict().items()}
  b_enc = state['b_enc']
  if sae.cfg.apply_b_dec_to_input:
    b_enc = b_enc - state['b_dec'] @ state['W_enc']
  return released.SAE(
    W_enc=state['W_enc'],
    b_enc=store.scale * b_enc,
    W_dec=state['W_dec'],
    b_dec=store.scale * state['b_dec'],
    threshold=store.scale * jnp.maximum(state['threshold'], 0),
  )


def cases(run):
  """Yields (variant, config, trainer) of the study."""
  variants = {f'lr={lr:g}': at_learning_rate(run, lr) for lr in LEARNING_RATES}
  coeffs, trainer = COEFFS, train_ours
  if _STUDY.value == 'ablation':
    variants, coeffs = ABLATION, ABLATION_COEFFS
  if _STUDY.value == 'saelens':
    trainer, run = train_saelens, run.with_values(SAELENS)
  for (name, values), coeff in itertools.product(variants.items(), coeffs):
    values = values | {'objective.sparsity_coeff': coeff}
    yield name, run.with_values(values), trainer


def at_learning_rate(run, learning_rate):
  """Returns overrides that scale both learning rates of the recipe."""
  ratio = learning_rate / run.optimizer.learning_rate
  return {
    'optimizer.learning_rate': learning_rate,
    'optimizer.threshold_learning_rate': (
      ratio * run.optimizer.threshold_learning_rate
    ),
  }


def row_of(variant, run, trainer, inputs, store, folder):
  """Trains and evaluates one SAE, unless its folder holds its row."""
  path = folder / 'row.json'
  if path.exists():
    return json.loads(path.read_text())
  folder.mkdir(parents=True, exist_ok=True)
  began = time.monotonic()
  sae = trainer(run, inputs, store, folder)
  seconds = time.monotonic() - began
  export.save_npz(sae, folder / export.FILE_NAME)
  metrics = evaluation.evaluate(
    sae,
    inputs.model,
    inputs.heldout_NL,
    inputs.where,
    run.evaluation.sequences_per_batch,
    inputs.baseline,
  )
  row = {
      'study': _STUDY.value,
      'variant': variant,
      'sparsity_coeff': run.objective.sparsity_coeff,
      **{key: metrics[key] for key in
         ('l0', 'fvu', 'delta_lm_loss', 'dead_fraction')},
      'l0_settled': train.l0_is_settled(
          writer.read_curve(folder), run.train.steps
      ),
      'seconds': round(seconds),
  }  # fmt: skip
  path.write_text(json.dumps(row) + '\n')
  return row


def fvu_at(l0, rows):
  """Interpolates FVU on log L0 along a Pareto front of rows.

  Returns:
    FVU at l0, or None outside the rows' range.
  """
  front = []
  for row in sorted(rows, key=lambda row: row['l0']):
    if not front or row['fvu'] < front[-1]['fvu']:
      front.append(row)
  l0s = [row['l0'] for row in front]
  if not l0s[0] <= l0 <= l0s[-1]:
    return None
  return float(np.interp(np.log(l0), np.log(l0s), [r['fvu'] for r in front]))


def compare(ours, theirs):
  """Prints each of their SAEs beside our fronts, by variant, at its L0."""
  variants = sorted({row['variant'] for row in ours})
  print('variant,l0,fvu,dead_fraction,' + ','.join(variants) + ',all')
  for row in theirs:
    fronts = [[o for o in ours if o['variant'] == v] for v in variants] + [ours]
    cells = [fvu_at(row['l0'], front) for front in fronts]
    shown = ['' if cell is None else f'{cell:.4f}' for cell in cells]
    figures = f'{row["l0"]:.2f},{row["fvu"]:.4f},{row["dead_fraction"]:.4f}'
    print(f'{row["variant"]},{figures},{",".join(shown)}')


def read_table(path):
  """Returns a study's CSV with its numbers as numbers."""
  with open(path) as file:
    rows = list(csv.DictReader(file))
  numbers = ('sparsity_coeff', 'l0', 'fvu', 'delta_lm_loss', 'dead_fraction')
  return [row | {name: float(row[name]) for name in numbers} for row in rows]


def main():
  run = launch.run_config()
  prepared = inputs_lib.prepare(run)
  workdir = pathlib.Path(_WORKDIR.value)
  runs.claim(workdir, run)
  store = runs.open_shards(prepared, workdir)
  rows = []
  for variant, case, trainer in cases(run):
    name = f'{_STUDY.value}_{variant}_{case.objective.sparsity_coeff:g}'
    rows.append(row_of(variant, case, trainer, prepared, store, workdir / name))
    with open(_OUT.value, 'w', newline='') as file:
      table = csv.DictWriter(file, rows[0], lineterminator='\n')
      table.writeheader()
      table.writerows(rows)
    progress.say(str(rows[-1]))
  if _AGAINST.value:
    compare(rows, read_table(_AGAINST.value))


if __name__ == '__main__':
  launch.run(main)
