"""Training loops: SAEs are fed from one stream, and checkpointed.

Several SAEs may be trained together: each batch is read, and copied to the
devices, once, and every SAE takes its step on it. They need have nothing in
common but the stream, and each ends as it would alone, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
import contextlib
import dataclasses
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
from jumprelu_jax import together
from jumprelu_jax import train
from jumprelu_jax import writer
from jumprelu_jax.activations import batches as batches_lib
from jumprelu_jax.sae import biases

# Of the states and activations of SAEs that one program trains, a device.
GROUP_BYTES = 2**33


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
  indices = together.groups(runs, shards.widths, mesh, GROUP_BYTES)
  with contextlib.ExitStack() as stack:
    groups = []
    for some in indices:
      members = [
        stack.enter_context(_Member(runs[i], folders[i])) for i in some
      ]
      groups.append(_Group(members, shards, mesh))
    start = min(group.start for group in groups)
    began = time.perf_counter()
    bar = stack.enter_context(progress.track(label, steps, 'steps', start))
    batches = stack.enter_context(_prefetched(runs[0], shards, mesh, start))
    stack.enter_context(jax.transfer_guard('disallow'))
    for step, rows_BD in batches:
      rows_BD = sharding.place_batch(mesh, rows_BD, batch_size)
      for group in groups:
        group.take_step(step, rows_BD, scale)
      if groups[0].has_logged:
        bar.advance(step + 1 - start, **_figures(groups))
        start = step + 1
    _report_waiting(label, batches.wait_s, time.perf_counter() - began)
    states = {}
    for some, group in zip(indices, groups, strict=True):
      states |= dict(zip(some, group.states(), strict=True))
    return [states[i] for i in range(len(runs))]


def stream_of(run: config_lib.RunConfig) -> tuple[object, ...]:
  """Returns what decides which rows a run sees, and when it logs them."""
  return run.stream_seed, dataclasses.replace(run.train, stream_seed=-1)


class _Member:
  """An SAE's folder in training: its curve and its checkpoints."""

  def __init__(self, run, folder):
    self.run, self._folder, self._curve = run, folder, None
    self.checkpointer = checkpoint.Checkpointer(
      pathlib.Path(folder) / 'checkpoints'
    )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self._curve:
      self._curve.close()
    self.checkpointer.close()

  def open_curve(self, start):
    """Opens the curve from a step on; one of several processes writes it."""
    if hosts.is_first():
      self._curve = writer.CurveWriter(self._folder, first_step=start)

  def write(self, step, means):
    """Writes a record."""
    if self._curve:
      self._curve.write(step, means)


class _Group:
  """SAEs that one program trains, from the last step that all have saved."""

  def __init__(self, members, shards, mesh):
    runs = [member.run for member in members]
    self._program = together.compile_for(runs, shards.widths, mesh)
    self._numbers = jax.device_put(
      together.numbers_of(runs), sharding.replicated(mesh)
    )
    self._members, self._run = members, runs[0].train
    saved = [set(member.checkpointer.steps()) for member in members]
    self.start = max(set.intersection(*saved), default=0)
    self._state = self._program.join(
      [self._first(member, shards) for member in members]
    )
    for member in members:
      member.open_curve(self.start)
    self._pending, self.means = [], []

  def _first(self, member, shards):
    """Returns the state from which a member goes on, or begins."""
    state = self._program.init(jax.random.key(member.run.seed))
    if self.start:
      return member.checkpointer.restore(self.start, state)
    return _with_biases(state, member.run, shards)

  @property
  def has_logged(self) -> bool:
    """True just after records were written."""
    return bool(self.means) and not self._pending

  def states(self):
    """Returns the members' states."""
    return [
      self._program.member(self._state, i) for i in range(len(self._members))
    ]

  def take_step(self, step, rows_BD, scale):
    """Takes one step, unless the checkpoints have it; logs and saves."""
    if step < self.start:
      return
    self._state, metrics = self._program.step(
      self._state, rows_BD, scale, self._numbers
    )
    self._pending.append(metrics)
    done, run = step + 1, self._run
    is_last = done == run.steps
    if done % run.steps_per_log == 0 or is_last:
      self.means = _means(self._pending, done)
      self._pending.clear()
      for member, means in zip(self._members, self.means, strict=True):
        member.write(done, means)
    if done % run.steps_per_checkpoint == 0 or is_last:
      for member, state in zip(self._members, self.states(), strict=True):
        member.checkpointer.save(done, state)


def _figures(groups):
  """Returns what the progress shows: of one SAE, or the range of several."""
  means = [of_one for group in groups for of_one in group.means]
  l0s = [of_one['l0'] for of_one in means]
  if len(means) > 1:
    return {'l0_from': min(l0s), 'l0_to': max(l0s)}
  return {'loss': means[0]['loss'], 'l0': l0s[0]}


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
    batches_lib.Batches(shards, size, run.stream_seed, num_steps=count)
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
        run.stream_seed,
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
  """Returns each SAE's means over records; one fetch from the device."""
  fetched = jax.device_get(pending)
  means = {
    name: np.mean([np.atleast_1d(m[name]) for m in fetched], axis=0).tolist()
    for name in fetched[0]
  }
  for loss in means['loss']:
    if not np.isfinite(loss):
      raise FloatingPointError(
        f'The loss became {loss} in the {len(pending)} steps before step '
        f'{step}; the last checkpoint is from before. Lower '
        'config.optimizer.learning_rate or look at the data.'
      )
  return [dict(zip(means, values)) for values in zip(*means.values())]
