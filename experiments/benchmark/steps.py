"""Training steps: a dense one, a sparse one, those of a sweep."""

from __future__ import annotations

from collections.abc import Iterator

import jax
from jax import numpy as jnp
import numpy as np

from experiments.benchmark import shapes
from experiments.benchmark import timing
from jumprelu_jax import sharding
from jumprelu_jax import together
from jumprelu_jax import train
from jumprelu_jax.activations import batches as batches_lib

# SAEs of a sweep, and the range of their lambdas.
_SAES = 8
_COEFFS = (1e-4, 1e-2)


class Stepper:
  """Takes training steps at an L0."""

  def __init__(self, shape: shapes.Shape, capacity: int):
    run = shape.config(capacity)
    mesh = sharding.make_mesh(1, 1)
    init, step = train.compile_for(run, (shape.d_model,), mesh)
    rows_BD = shape.rows()
    self._inputs = jax.device_put(
      (rows_BD, np.float32(1), train.numbers_of(run)), sharding.replicated(mesh)
    )
    self._state = _at_l0(init(jax.random.key(0)), rows_BD, shape.l0)
    compiled = step.lower(self._state, *self._inputs).compile()
    self.peak_bytes = timing.peak_bytes(compiled)
    self._step = step
    self.metrics = {}

  def __call__(self) -> dict[str, jax.Array]:
    """Takes a step; returns what it logs."""
    self._state, self.metrics = self._step(self._state, *self._inputs)
    return self.metrics


def step(shape: shapes.Shape) -> Iterator[timing.Line]:
  """A whole dense step beside the encoder's product alone."""
  yield from _lines(shape, {'step': Stepper(shape, 0)})


def sparse(shape: shapes.Shape) -> Iterator[timing.Line]:
  """A sparse step beside a dense one."""
  capacity = capacity_at(shape.l0)
  steppers = {'step': Stepper(shape, 0), 'sparse': Stepper(shape, capacity)}
  for line in _lines(shape, steppers):
    yield line | ({'capacity': capacity} if line['case'] == 'sparse' else {})


def capacity_at(l0: float) -> int:
  """Returns latents of a row with room for rows much fuller than the mean."""
  return 16 * round((2 * l0 + 32) / 16)


def sweep(shape: shapes.Shape) -> Iterator[timing.Line]:
  """Eight SAEs on one batch: each alone, in turns, in one program, as chosen.

  A batch is read and copied to the device for each that is alone, and once for
  those that are together.
  """
  run = shape.config(0)
  runs = [
    run.with_values({'objective.sparsity_coeff': float(coeff)})
    for coeff in np.geomspace(*_COEFFS, _SAES)
  ]
  one_by_one, all_of_them = [[i] for i in range(_SAES)], [list(range(_SAES))]
  widths, mesh = (shape.d_model,), sharding.make_mesh(1, 1)
  chosen = together.groups(runs, widths, mesh, 2**33)
  works = {
    'alone': _Sweep(shape, runs, one_by_one, reads_once=False),
    'in_turns': _Sweep(shape, runs, one_by_one),
    'one_program': _Sweep(shape, runs, all_of_them),
    'sweep': _Sweep(shape, runs, chosen),
  }
  encoder_s, seconds = timing.beside_encoder(shape, works)
  for name, of_one in seconds.items():
    ratios = np.array(of_one) / np.array(seconds['alone'])
    yield {
      **timing.line(name, shape, of_one, encoder_s, saes=_SAES),
      'saes': _SAES,
      'programs': len(works[name].groups),
      'ratio_to_alone': round(float(np.median(ratios)), 3),
    }


class _Sweep:
  """Takes a step of each SAE on the next batch."""

  def __init__(self, shape, runs, groups, reads_once=True):
    self._mesh, widths = sharding.make_mesh(1, 1), (shape.d_model,)
    self.groups, self._reads_once = groups, reads_once
    self._batches = batches_lib.Batches(_Shards(shape), shape.batch, 0)
    self._size, self._count = shape.batch, 0
    replicated = sharding.replicated(self._mesh)
    self._scale = jax.device_put(np.float32(1), replicated)
    self._parts = []
    for indices in groups:
      some = [runs[i] for i in indices]
      program = together.compile_for(some, widths, self._mesh)
      state = program.join([program.init(jax.random.key(i)) for i in indices])
      numbers = jax.device_put(together.numbers_of(some), replicated)
      self._parts.append([program, state, numbers])

  def __call__(self):
    rows_BD = self._read()
    for part in self._parts:
      program, state, numbers = part
      part[1], _ = program.step(state, rows_BD, self._scale, numbers)
      if not self._reads_once:
        rows_BD = self._read()
    self._count += 1
    return [state for _, state, _ in self._parts]

  def _read(self):
    rows_BD = self._batches[self._count]
    return sharding.place_batch(self._mesh, rows_BD, self._size)


class _Shards:
  """Two shards in memory; see `batches.Shards`."""

  def __init__(self, shape):
    self._rows = [np.tile(shape.rows(i), (4, 1)) for i in range(2)]
    self.rows_per_shard = tuple(map(len, self._rows))
    self.widths, self.scales = (shape.d_model,), (1.0,)

  def open(self, index):
    return self._rows[index]


def _lines(shape, steppers):
  """Yields a line for each stepper, timed in turns with the encoder."""
  encoder_s, seconds = timing.beside_encoder(shape, steppers)
  for name, stepper in steppers.items():
    metrics = jax.device_get(stepper.metrics)
    yield {
      **timing.line(name, shape, seconds[name], encoder_s),
      'peak_bytes': stepper.peak_bytes,
      'measured_l0': round(float(metrics['l0']), 2),
      'is_sparse': float(metrics['is_sparse']),
    }


def _at_l0(state, rows_BD, l0):
  """Returns the state with thresholds that give an L0 on some rows."""
  sae = state.sae
  pre_BM = np.asarray(sae.linear(rows_BD))
  share = l0 / pre_BM.shape[1]
  threshold_M = np.quantile(pre_BM, 1 - share, axis=0).astype('float32')
  return state.replace(sae=sae.replace(log_threshold=jnp.log(threshold_M)))
