"""Training loops: SAEs are fed from one stream, and checkpointed.

Several SAEs may be trained together: each batch is read, and copied to the
devices, once, and every SAE takes its step on it. They need have nothing in
common but the stream, and each ends as it would alone, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
import contextlib
import os
import pathlib
import time

import jax
import numpy as np

from jumprelu_jax import architectures
from jumprelu_jax import checkpoint
from jumprelu_jax import config as config_lib
from jumprelu_jax import hosts
from jumprelu_jax import progress
from jumprelu_jax import sharding
from jumprelu_jax import train
from jumprelu_jax import writer
from jumprelu_jax.activations import batches as batches_lib
from jumprelu_jax.sae import biases


def fit(
  run: config_lib.RunConfig,
  shards: batches_lib.Shards,
  mesh: jax.sharding.Mesh,
  folder: str | os.PathLike,
) -> train.TrainState:
  """Trains one SAE; see `fit_together`."""
  (state,) = fit_together([run], shards, mesh, [folder])
  return state


def fit_together(
  runs: Sequence[config_lib.RunConfig],
  shards: batches_lib.Shards,
  mesh: jax.sharding.Mesh,
  folders: Sequence[str | os.PathLike],
) -> list[train.TrainState]:
  """Trains SAEs on one stream, each from its last checkpoint if it has one.

  Args:
    runs: configs with equal `stream_of`; all states are on the devices at once.
    shards: rows to train on, and their scale.
    mesh: where to train.
    folders: of each SAE; gets `checkpoints/`, `metrics.jsonl` and
      `tensorboard/`.

  Returns:
    The states after the last step; `train.release` makes SAEs of them.

  Raises:
    ValueError: the configs ask for different streams.
    errors.InputError: a shard is damaged.
    FloatingPointError: a loss is not finite.
  """
  if len(set(map(stream_of, runs))) != 1:
    raise ValueError('SAEs that are trained together need one stream of rows.')
  label = f'train {architectures.name(runs[0])}'
  if len(runs) > 1:
    label = f'train {len(runs)} SAEs'
  scale = jax.device_put(scale_of(shards), sharding.replicated(mesh))
  steps, batch_size = runs[0].train.steps, runs[0].train.batch_size
  with contextlib.ExitStack() as stack:
    members = [
      stack.enter_context(_Member(run, shards, mesh, folder))
      for run, folder in zip(runs, folders, strict=True)
    ]
    start = min(member.start for member in members)
    began = time.perf_counter()
    bar = stack.enter_context(progress.track(label, steps, 'steps', start))
    batches = stack.enter_context(_prefetched(runs[0], shards, mesh, start))
    stack.enter_context(jax.transfer_guard('disallow'))
    for step, rows_BD in batches:
      rows_BD = sharding.place_batch(mesh, rows_BD, batch_size)
      for member in members:
        member.take_step(step, rows_BD, scale)
      if members[0].has_logged:
        bar.advance(step + 1 - start, **_figures(members))
        start = step + 1
    _report_waiting(label, batches.wait_s, time.perf_counter() - began)
    return [member.state for member in members]


def stream_of(run: config_lib.RunConfig) -> tuple[object, ...]:
  """Returns what decides which rows a run sees, and when it logs them."""
  return run.seed, run.train


class _Member:
  """An SAE in training: its state, curve and checkpoints."""

  def __init__(self, run, shards, mesh, folder):
    init, self._step_fn = train.compile_for(run, shards.widths, mesh)
    state = init(jax.random.key(run.seed))
    self._checkpointer = checkpoint.Checkpointer(
      pathlib.Path(folder) / 'checkpoints'
    )
    restored = self._checkpointer.restore_latest(state)
    self.start, self.state = restored or (0, _with_biases(state, run, shards))
    # One of several processes writes for all.
    self._curve = None
    if hosts.is_first():
      self._curve = writer.CurveWriter(folder, first_step=self.start)
    self._coefficients = jax.device_put(
      train.coefficients_of(run), sharding.replicated(mesh)
    )
    self._run, self._pending, self.means = run.train, [], {}

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self._curve:
      self._curve.close()
    self._checkpointer.close()

  @property
  def has_logged(self) -> bool:
    """True just after a record was written."""
    return bool(self.means) and not self._pending

  def take_step(self, step, rows_BD, scale):
    """Takes one step, unless the last checkpoint has it; logs and saves."""
    if step < self.start:
      return
    self.state, metrics = self._step_fn(
      self.state, rows_BD, scale, self._coefficients
    )
    self._pending.append(metrics)
    done, run = step + 1, self._run
    is_last = done == run.steps
    if done % run.steps_per_log == 0 or is_last:
      self.means = _means(self._pending, done)
      if self._curve:
        self._curve.write(done, self.means)
      self._pending.clear()
    if done % run.steps_per_checkpoint == 0 or is_last:
      self._checkpointer.save(done, self.state)


def _figures(members):
  """Returns what the progress shows: of one SAE, or the range of several."""
  l0s = [member.means['l0'] for member in members if member.means]
  if len(members) > 1:
    return {'l0_from': min(l0s), 'l0_to': max(l0s)}
  return {'loss': members[0].means['loss'], 'l0': l0s[0]}


def scale_of(shards):
  """Returns what rows are divided by: a float32 number, or [1, columns]."""
  scales = np.array(shards.scales, 'float32')
  if len(scales) == 1:
    return scales[0]
  return np.repeat(scales, shards.widths)[None]


# Rows from which initial biases are made.
_BIAS_ROWS = 8192


def _with_biases(state, run, shards):
  """Returns a first state with biases made from the first rows, if wanted."""
  if not biases.are_wanted(run.sae):
    return state
  size = run.train.batch_size
  count = -(-_BIAS_ROWS // size)
  with contextlib.closing(
    batches_lib.Batches(shards, size, run.seed, num_steps=count)
  ) as batches:
    rows_ND = np.concatenate([batches[step] for step in range(count)])
  rows_ND = rows_ND.astype('float32') / scale_of(shards)
  x_ND, y_ND = rows_ND[:, : shards.widths[0]], rows_ND[:, -shards.widths[-1] :]
  sae = biases.from_data(state.sae, x_ND, y_ND, run.sae)
  layout = jax.tree.map(lambda leaf: leaf.sharding, state.sae)
  return state.replace(sae=jax.device_put(sae, layout))


@contextlib.contextmanager
def _prefetched(run, shards, mesh, start):
  """Yields an iterator over the run's remaining (step, rows)."""
  steps, depth = run.train.steps, run.activations.prefetch_batches
  with (
    contextlib.closing(
      batches_lib.Batches(
        shards,
        run.train.batch_size,
        run.seed,
        num_steps=steps,
        share=sharding.local_rows(mesh, run.train.batch_size),
      )
    ) as batches,
    batches_lib.prefetched(batches, start, steps, depth) as ahead,
  ):
    yield ahead


def _report_waiting(label, wait_s, total_s):
  """Says which share of the time the loop had no batch to work on."""
  progress.say(
    f'{label}: waited for data {wait_s / max(total_s, 1e-9):.1%} of '
    f'{total_s:.1f} s'
  )


def l0_is_settled(
  curve: list[dict[str, float]], steps: int, tolerance: float = 0.05
) -> bool:
  """True if L0 moved by less than 5% over the last fifth of training.

  Compares the mean L0 of the logged records in the 2% of the steps before the
  last fifth with that in the last 2%; with at least one record each.

  Args:
    curve: records with 'step' and 'l0', in order (`writer.read_curve`).
    steps: steps of the run.
    tolerance: relative change that still counts as settled.
  """

  def mean_l0(end):
    until = [r for r in curve if r['step'] <= end]
    window = [r['l0'] for r in until if r['step'] > end - 0.02 * steps]
    window = window or [r['l0'] for r in until[-1:]]
    return float(np.mean(window)) if window else float('nan')

  before, after = mean_l0(0.8 * steps), mean_l0(steps)
  return abs(after - before) < tolerance * before


def _means(pending, step):
  """Returns the records' means as floats; one fetch from the device."""
  fetched = jax.device_get(pending)
  means = {
    name: float(np.mean([metrics[name] for metrics in fetched]))
    for name in fetched[0]
  }
  if not np.isfinite(means['loss']):
    raise FloatingPointError(
      f'The loss became {means["loss"]} in the {len(pending)} steps before '
      f'step {step}; the last checkpoint is from before. Lower '
      'config.optimizer.learning_rate or look at the data.'
    )
  return means
