"""Our training steps beside SAELens' on the same batch, in one process.

  pip install -e '.[saelens]'
  python -m experiments.benchmark.saelens --batch=2048 --d_model=576 \
      --num_latents=9216 --l0=40

One line of JSON a case: our dense step, our sparse one, `SAETrainer.step`.
Thresholds are where the L0 asked for is, in both, and hardly move.
"""

import itertools
import json

from absl import app
import numpy as np

from experiments.benchmark import shapes
from experiments.benchmark import steps
from experiments.benchmark import timing
from experiments.small_budget import trainers


class Trainer:
  """Takes SAELens' steps at an L0."""

  def __init__(self, shape: shapes.Shape):
    import torch

    run, rows_BD = shape.config(0), shape.rows()
    run = run.with_values(
      {
        'train.steps': 10_000,
        'objective.sparsity_warmup_steps': 0,
        'optimizer.warmup_steps': 0,
      }
    )
    rows = itertools.repeat(rows_BD)
    self._trainer = trainers.saelens_trainer(run, shape.d_model, rows)
    sae = self._trainer.sae
    with torch.no_grad():
      some = torch.from_numpy(rows_BD)
      pre = (some - sae.b_dec) @ sae.W_enc + sae.b_enc
      share = 1 - shape.l0 / shape.num_latents
      threshold = np.quantile(pre.numpy(), share, axis=0).astype('float32')
      sae.threshold.copy_(torch.from_numpy(threshold))

  def __call__(self):
    """Takes a step."""
    trainer = self._trainer
    self._out = trainer.step(next(trainer.data_provider))

  @property
  def l0(self):
    """Of the last step."""
    return (self._out.feature_acts > 0).float().sum(-1).mean().item()


def main(argv):
  del argv
  shape = shapes.of_flags()
  capacity = steps.capacity_at(shape.l0)
  works = {
    'step': steps.Stepper(shape, 0),
    'sparse': steps.Stepper(shape, capacity),
    'saelens': Trainer(shape),
  }
  encoder_s, seconds = timing.beside_encoder(shape, works)
  theirs = np.array(seconds['saelens'])
  for name, of_one in seconds.items():
    line = timing.line(name, shape, of_one, encoder_s)
    ratio = float(np.median(theirs / np.array(of_one)))
    line['saelens_over_this'] = round(ratio, 3)
    if name == 'saelens':
      line['measured_l0'] = works[name].l0
    print(json.dumps(line), flush=True)


if __name__ == '__main__':
  app.run(main)
