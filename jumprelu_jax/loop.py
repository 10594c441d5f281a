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
import time

import jax
import numpy as np
import xxhash

from jumprelu_jax import architectures
from jumprelu_jax import config as config_lib
from jumprelu_jax import hosts
from jumprelu_jax import members as members_lib
from jumprelu_jax import monitor
from jumprelu_jax import preemption
from jumprelu_jax import progress
from jumprelu_jax import sharding
from jumprelu_jax import together
from jumprelu_jax import train
from jumprelu_jax.activations import batches as batches_lib

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
    errors.InputError: a shard is damaged, or a checkpoint is of another run, or
      the processes do not run the same.
    errors.NotFiniteError: a loss, a gradient or a weight is not finite.
    errors.DiskFullError: no space is left for a checkpoint.
    preemption.PreemptedError: the process was asked to end; the states of the
      last step are saved.
  """
  if len(set(map(stream_of, runs))) != 1:
    raise ValueError('SAEs that are trained together need one stream of rows.')
  hosts.agree('training', lambda: _decisive(runs, shards, mesh))
  label = f'train {architectures.name(runs[0])}'
  if len(runs) > 1:
    label = f'train {len(runs)} SAEs'
  scale = members_lib.scale_of(shards)
  scale = jax.device_put(scale, sharding.replicated(mesh))
  steps, batch_size = runs[0].train.steps, runs[0].train.batch_size
  indices = together.groups(runs, shards.widths, mesh, GROUP_BYTES)
  with contextlib.ExitStack() as stack:
    batches = stack.enter_context(_batches(runs[0], shards, mesh))
    groups = []
    for some in indices:
      members = [
        stack.enter_context(members_lib.Member(runs[i], folders[i]))
        for i in some
      ]
      groups.append(members_lib.Group(members, shards, mesh, batches.where))
    begun = start = min(group.start for group in groups)
    began = time.perf_counter()
    bar = stack.enter_context(progress.track(label, steps, 'steps', start))
    depth = runs[0].activations.prefetch_batches
    ahead = stack.enter_context(
      batches_lib.prefetched(batches, start, steps, depth)
    )
    stack.enter_context(jax.transfer_guard('disallow'))
    for step, rows_BD in _until_preempted(ahead, groups, start, label):
      if step == begun:
        _warn_of_rows(label, runs[0], shards, rows_BD, groups)
      rows_BD = sharding.place_batch(mesh, rows_BD, batch_size)
      for group in groups:
        group.take_step(step, rows_BD, scale)
      if groups[0].has_logged:
        bar.advance(step + 1 - start, **_figures(groups))
        start = step + 1
    _report_waiting(label, ahead.wait_s, time.perf_counter() - began)
    states = {}
    for some, group in zip(indices, groups, strict=True):
      states |= dict(zip(some, group.states(), strict=True))
    return [states[i] for i in range(len(runs))]


def stream_of(run: config_lib.RunConfig) -> tuple[object, ...]:
  """Returns what decides which rows a run sees, and when it logs them."""
  return run.stream_seed, dataclasses.replace(run.train, stream_seed=-1)


def _decisive(runs, shards, mesh):
  """Returns what processes must have in common to train SAEs together."""
  rows = np.array(shards.rows_per_shard)
  configs = {str(i): run.to_dict() for i, run in enumerate(runs)}
  return {
    'mesh': dict(mesh.shape),
    'rows': int(rows.sum()),
    'rows by shard': xxhash.xxh3_64_hexdigest(rows.tobytes()),
    'sizes of rows': [int(width) for width in shards.widths],
    'scales of rows': [float(scale) for scale in shards.scales],
    **config_lib.flatten({'config of SAE': configs}),
    **hosts.software(),
  }


def _batches(run, shards, mesh):
  """Returns a context that gives this process's share of the run's batches."""
  return contextlib.closing(
    batches_lib.Batches(
      shards,
      run.train.batch_size,
      run.stream_seed,
      num_steps=run.train.steps,
      share=sharding.local_rows(mesh, run.train.batch_size),
    )
  )


def _until_preempted(ahead, groups, start, label):
  """Yields (step, rows); when asked to end, saves what was done and raises."""
  done = start
  try:
    for step, rows_BD in ahead:
      yield step, rows_BD
      done = step + 1
      if preemption.reached(done):
        raise preemption.PreemptedError
  except preemption.PreemptedError as error:  # also of rows that are made now
    for group in groups:
      group.save(done)
    raise preemption.PreemptedError(
      f'{label}: stopped on request after step {done:,}, which is saved; the '
      'same command goes on from there.'
    ) from error


def _warn_of_rows(label, run, shards, rows_BD, groups):
  """Warns of what the first batch shows of the rows."""
  share = monitor.outlier_share(rows_BD[:, : shards.widths[0]])
  for group in groups:
    group.outlier_share = share
  for warning in monitor.of_rows(run, sum(shards.rows_per_shard), share):
    progress.say(f'WARNING: {label}: {warning}')


def _figures(groups):
  """Returns what the progress shows: of one SAE, or the range of several."""
  means = [of_one for group in groups for of_one in group.means]
  l0s = [of_one['l0'] for of_one in means]
  if len(means) > 1:
    return {'l0_from': min(l0s), 'l0_to': max(l0s)}
  return {'loss': means[0]['loss'], 'l0': l0s[0]}


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
  last fifth with that in the last 2%; with at least one record each. An L0 at
  which hardly a latent fires has collapsed, not settled.

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
  if after < monitor.COLLAPSED_L0:
    return False
  return abs(after - before) < tolerance * before
