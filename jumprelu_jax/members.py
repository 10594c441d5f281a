"""SAEs in training: each one's folder, and the steps of those of a program."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
import contextlib
import os
import pathlib
from typing import NoReturn

import jax
import numpy as np

from jumprelu_jax import checkpoint
from jumprelu_jax import config as config_lib
from jumprelu_jax import curve as curve_lib
from jumprelu_jax import errors
from jumprelu_jax import health
from jumprelu_jax import hosts
from jumprelu_jax import identity
from jumprelu_jax import monitor
from jumprelu_jax import progress
from jumprelu_jax import seeds
from jumprelu_jax import sharding
from jumprelu_jax import together
from jumprelu_jax import train
from jumprelu_jax import writer
from jumprelu_jax.activations import batches as batches_lib
from jumprelu_jax.sae import biases

# What is to be done, by what was wrong with a step.
_CAUSES = {
  health.BATCH: (
    'the batch holds NaN or infinity',
    'check the rows (experiments.harvest --verify), and the language model '
    'that made them: run it in float32',
  ),
  health.WEIGHTS: (
    'the batch is finite, and a weight of the SAE is not, since the step '
    'before at the latest',
    'lower config.optimizer.learning_rate, or raise config.optimizer.epsilon',
  ),
  health.LOSS: (
    'the batch is finite, and the loss or a gradient is not',
    'lower config.optimizer.learning_rate, or set '
    'config.optimizer.max_gradient_norm',
  ),
}


class Member:
  """An SAE's folder in training: its curve, its warnings, its checkpoints."""

  def __init__(self, run: config_lib.RunConfig, folder: str | os.PathLike):
    self.run, self._folder = run, pathlib.Path(folder)
    self._curve, self._records = None, []
    self.checkpointer = checkpoint.Checkpointer(
      self._folder / 'checkpoints',
      keep=run.train.checkpoints_kept,
      identity=identity.of(run),
    )

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    if self._curve:
      self._curve.close()
    # What went wrong first is what is told.
    with contextlib.suppress(*[Exception] if kind else []):
      self.checkpointer.close()

  def open_curve(self, start: int) -> None:
    """Opens the curve from a step on; one of several processes writes it.

    Its records are those that were saved with that step: what the file holds
    is no input.
    """
    if start:
      self._records = self.checkpointer.notes(start)['records']
    if hosts.is_first():
      self._curve = writer.CurveWriter(self._folder, self._records, start)

  def write(
    self, step: int, means: dict[str, float], outlier_share: float
  ) -> None:
    """Writes a record, and warns of what it shows for the first time.

    Args:
      step: of the record.
      means: of the steps since the last record.
      outlier_share: of the rows (see `monitor.new`).
    """
    self._records.append({'step': step} | means)
    if not self._curve:
      return
    self._curve.write(step, means)
    for warning in monitor.new(self._records, self.run, outlier_share):
      progress.say(f'WARNING: {self._folder.name}, step {step:,}: {warning}')

  def save(
    self, step: int, state: train.TrainState, pending: list[dict[str, float]]
  ) -> None:
    """Saves a state, with the curve and with metrics since its last record."""
    # A copy: notes are written while training, and the curve, go on.
    notes = {'records': list(self._records), 'pending': pending}
    self.checkpointer.save(step, state, notes)

  def leave_out(self, step: int, fault: int, where: str, count: int) -> None:
    """Says that a step was left out; raises as `stop` at one too many.

    Args:
      step: from 0.
      fault: one of `health`'s.
      where: the rows of its batch.
      count: such steps so far, with this one.
    """
    most = self.run.train.max_bad_batches
    if count > most:
      self.stop(step, fault, where)
    cause, _ = _CAUSES[fault]
    progress.say(
      f'WARNING: {self._folder.name}, step {step + 1:,}: {cause} ({where}); '
      f'left out, {count} of at most {most}'
    )

  def stop(self, step: int, fault: int, where: str) -> NoReturn:
    """Raises NotFiniteError; arguments as `leave_out`."""
    cause, remedy = _CAUSES[fault]
    saved = self.checkpointer.steps()
    last = f'of step {saved[-1]:,}' if saved else 'none yet'
    raise errors.NotFiniteError(
      f'{self._folder.name}, step {step + 1:,}: {cause} ({where}). Nothing was '
      'updated from there on (config.train.max_bad_batches='
      f'{self.run.train.max_bad_batches}). Last good checkpoint: {last}, in '
      f'{self._folder / "checkpoints"}. To go on, {remedy}, in another '
      '--workdir.'
    )


class Group:
  """SAEs that one program trains, from the last step that all have saved.

  Attributes:
    start: the step.
    means: of the last records.
    outlier_share: of the rows (`monitor.outlier_share`), once it is known.
  """

  def __init__(
    self,
    members: Sequence[Member],
    shards: batches_lib.Shards,
    mesh: jax.sharding.Mesh,
    where: Callable[[int], str],
  ):
    """Compiles, and restores what was saved.

    Args:
      members: of runs that are equal `train.untraced`.
      shards: rows to train on.
      mesh: where to train.
      where: says of a step which rows its batch has.
    """
    runs = [member.run for member in members]
    self._program = together.compile_for(runs, shards.widths, mesh)
    self._numbers = jax.device_put(
      together.numbers_of(runs), sharding.replicated(mesh)
    )
    self._members, self._run, self._where = members, runs[0].train, where
    saved = [set(member.checkpointer.steps()) for member in members]
    self.start = self._saved = max(set.intersection(*saved), default=0)
    self._state = self._program.join(
      [self._first(member, shards) for member in members]
    )
    self._pending, self.means = self._restore_pending(), []
    self.outlier_share = 0.0
    for member in members:
      member.open_curve(self.start)

  def _first(self, member, shards):
    """Returns the state from which a member goes on, or begins."""
    state = self._program.init(seeds.key(member.run.seed))
    if self.start:
      return member.checkpointer.restore(self.start, state)
    return _with_biases(state, member.run, shards)

  def _restore_pending(self):
    """Returns metrics of the steps since the last record."""
    if not self.start:
      return []
    of_members = [
      member.checkpointer.notes(self.start)['pending']
      for member in self._members
    ]
    return [curve_lib.stacked(some) for some in zip(*of_members, strict=True)]

  @property
  def has_logged(self) -> bool:
    """True just after records were written."""
    return bool(self.means) and not self._pending

  def states(self) -> list[train.TrainState]:
    """Returns the members' states."""
    return [
      self._program.member(self._state, i) for i in range(len(self._members))
    ]

  def take_step(self, step: int, rows_BD: jax.Array, scale: jax.Array) -> None:
    """Takes one step, unless the checkpoints have it; logs and saves.

    Raises:
      errors.NotFiniteError: a number was not, since the last record.
      errors.DiskFullError: no space is left for a checkpoint.
    """
    if step < self.start:
      return
    self._state, metrics = self._program.step(
      self._state, rows_BD, scale, self._numbers
    )
    self._pending.append(metrics)
    done, run = step + 1, self._run
    is_last = done == run.steps
    if done % run.steps_per_log == 0 or is_last:
      self._log(done)
    if done % run.steps_per_checkpoint == 0 or is_last:
      self.save(done)

  def save(self, done: int) -> None:
    """Saves checkpoints after a step, unless they are there.

    With the metrics of the steps since the last record, so that a run may stop
    at any step and still write the records that it would have written.

    Raises:
      errors.NotFiniteError: a number of a state is not finite.
      errors.DiskFullError: no space is left.
    """
    if done <= self._saved:
      return
    self._saved = done
    fetched = jax.device_get(self._pending)
    self._refuse(fetched, done)
    for i, (member, state) in enumerate(
      zip(self._members, self.states(), strict=True)
    ):
      if not jax.device_get(_is_finite(state)):
        where = 'found when it was to be saved'
        member.stop(done - 1, health.WEIGHTS, where)
      member.save(done, state, curve_lib.of_one(fetched, i))

  def _log(self, done):
    """Writes a record of each member; one fetch from the device."""
    fetched = jax.device_get(self._pending)
    self._refuse(fetched, done)
    self.means = curve_lib.means(fetched)
    self._pending.clear()
    for member, means in zip(self._members, self.means, strict=True):
      member.write(done, means, self.outlier_share)

  def _refuse(self, fetched, done):
    """Tells of the steps that were left out; NotFiniteError if too many."""
    first = done - len(fetched)
    for step, metrics in enumerate(fetched, start=first):
      for i, fault in enumerate(np.atleast_1d(metrics['fault'])):
        if fault:
          count = int(np.atleast_1d(metrics['bad_batches'])[i])
          where = self._where(step)
          self._members[i].leave_out(step, int(fault), where, count)


_is_finite = jax.jit(health.is_finite)


def scale_of(shards: batches_lib.Shards) -> np.ndarray:
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
