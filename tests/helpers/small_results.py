"""Rows of results, and run folders, as experiments.sweep leaves them."""

import json

import numpy as np

from jumprelu_jax import results

DEFAULTS = {
    'architecture': 'jumprelu', 'objective': 'l0', 'sparsity_coeff': 1e-3,
    'k': None, 'seed': 0, 'model': 'embedded', 'site': 'resid_post', 'layer': 2,
    'd_model': 8, 'num_latents': 64, 'tokens': 6400, 'steps': 100, 'l0': 10.0,
    'fvu': 0.2, 'delta_lm_loss': 0.1, 'loss_clean': 3.0, 'loss_spliced': 3.1,
    'loss_mean_ablated': 8.0, 'loss_recovered': 0.98, 'dead_fraction': 0.0,
    'frac_over_1pct': 0.5, 'frac_over_10pct': 0.1,
    'relative_reconstruction_bias': 0.99, 'l0_settled': True,
    'loss_zero_ablated': 9.0, 'loss_recovered_zero': 0.98, 'kl': 0.1,
    'cosine': 0.9, 'explained_variance': 0.8, 'explained_variance_legacy': 0.7,
    'importance_uniformity': None, 'folder': None,
}  # fmt: skip


def row(**values):
  return DEFAULTS | values


def front(metric, points, **values):
  """Rows of one architecture and seed, at (L0, value of the metric)."""
  return [
    row(**{'sparsity_coeff': 1 / (1 + l0), 'l0': l0, metric: value}, **values)
    for l0, value in points
  ]


def write_run(folder, rows, **extra):
  """Writes a run's folder: its table, and a folder for each SAE.

  With `extra`, each evaluation.json has these metrics too.
  """
  folder.mkdir(parents=True, exist_ok=True)
  results.write(rows, folder / 'results.csv')
  for number, one in enumerate(rows):
    sae = folder / f'sae_{number}'
    sae.mkdir()
    named = {name: one[name] for name in results.COLUMNS}
    (sae / 'evaluation.json').write_text(json.dumps(named | extra))
    write_curve(sae, one)
    frequency_M = np.geomspace(1e-4, 0.5, one['num_latents'])
    frequency_M[:3] = 0
    np.savez(sae / 'latents.npz', frequency_M=frequency_M.astype('float32'))
  return folder


def write_curve(folder, one):
  records = [
    {
      'step': step,
      'l0': one['l0'] * (1 + 9 * 0.9**step),
      'squared_error': one['fvu'] * (1 + 0.95**step),
    }
    for step in range(10, one['steps'] + 1, 10)
  ]
  text = ''.join(json.dumps(record) + '\n' for record in records)
  (folder / 'metrics.jsonl').write_text(text)
