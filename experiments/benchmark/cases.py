"""What is measured: each case yields dicts, the one asked for last."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import functools
import time
from typing import Any

import jax
from jax import numpy as jnp
import numpy as np

from configs import defaults
from jumprelu_jax import config as config_lib
from jumprelu_jax import ops
from jumprelu_jax import sharding
from jumprelu_jax import train

Line = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Shape:
  """What is measured, and how often.

  Attributes:
    batch: rows.
    d_model: size of an activation.
    num_latents: M.
    l0: mean number of active latents, by the thresholds.
    dtype: of the inputs of matrix products.
    repeats: rounds.
  """

  batch: int
  d_model: int
  num_latents: int
  l0: float
  dtype: str
  repeats: int

  def config(self, capacity: int) -> config_lib.RunConfig:
    """Returns the paper's recipe in this shape, which hardly moves."""
    run = config_lib.RunConfig.from_config_dict(defaults.GEMMA_SCOPE)
    return run.with_values(
      {
        'sae.num_latents': self.num_latents,
        'sae.compute_dtype': self.dtype,
        'sae.capacity': capacity,
        'train.batch_size': self.batch,
        # Thresholds stay where the L0 asked for is.
        'optimizer.learning_rate': 1e-9,
        'optimizer.threshold_learning_rate': 1e-9,
        'objective.bandwidth': 1e-3,
        'mesh.data': 1,
        'mesh.latent': 1,
      }
    )

  def rows(self) -> np.ndarray:
    """Returns random activations of unit mean squared norm."""
    rng = np.random.default_rng(0)
    x_BD = rng.normal(size=(self.batch, self.d_model)) / self.d_model**0.5
    return x_BD.astype('float32')


class Stepper:
  """Takes training steps at an L0."""

  def __init__(self, shape: Shape, capacity: int):
    run = shape.config(capacity)
    mesh = sharding.make_mesh(1, 1)
    init, step = train.compile_for(run, (shape.d_model,), mesh)
    rows_BD = shape.rows()
    self._inputs = jax.device_put(
      (rows_BD, np.float32(1), train.numbers_of(run)),
      sharding.replicated(mesh),
    )
    self._state = _at_l0(init(jax.random.key(0)), rows_BD, shape.l0)
    self.memory = _memory(step.lower(self._state, *self._inputs).compile())
    self._step = step
    self.metrics = {}

  def __call__(self) -> dict[str, jax.Array]:
    """Takes a step; returns what it logs."""
    self._state, self.metrics = self._step(self._state, *self._inputs)
    return self.metrics


def step(shape: Shape) -> Iterator[Line]:
  """A whole dense step beside the encoder's product alone."""
  yield from _beside_encoder(shape, {'step': Stepper(shape, 0)})


def sparse(shape: Shape) -> Iterator[Line]:
  """A sparse step beside a dense one."""
  # Room for rows that are much fuller than the mean.
  capacity = 16 * round((2 * shape.l0 + 32) / 16)
  yield from _beside_encoder(
    shape,
    {'step': Stepper(shape, 0), 'sparse': Stepper(shape, capacity)},
    capacity=capacity,
  )


#: Cases by name.
CASES: dict[str, Callable[[Shape], Iterator[Line]]] = {
  'step': step,
  'sparse': sparse,
}


def _beside_encoder(shape, steppers, **also):
  """Yields a line for each stepper, timed in turns with the encoder."""
  encoder = jax.jit(functools.partial(ops.matmul, compute_dtype=shape.dtype))
  key = jax.random.key(1)
  W_DM = jax.random.normal(key, (shape.d_model, shape.num_latents))
  x_BD = jnp.asarray(shape.rows())
  # As a step has it: in the dtype of the product once, not at every call.
  timed = {'encoder': functools.partial(encoder, x_BD, W_DM), **steppers}
  seconds = in_turns(list(timed.values()), shape.repeats)
  encoder_s, *of_steps = seconds
  flops = 10 * shape.batch * shape.d_model * shape.num_latents
  for (name, stepper), s in zip(steppers.items(), of_steps, strict=True):
    metrics = jax.device_get(stepper.metrics)
    yield {
      'case': name,
      **dataclasses.asdict(shape),
      'device': jax.devices()[0].device_kind,
      'jax': jax.__version__,
      'median_ms': _ms(np.median(s)),
      'min_ms': _ms(min(s)),
      'max_ms': _ms(max(s)),
      'tokens_per_s': round(shape.batch / np.median(s)),
      'tflops': round(flops / np.median(s) / 1e12, 4),
      'encoder_matmul_ms': _ms(np.median(encoder_s)),
      'ratio_to_encoder_matmul': round(
        float(np.median(np.array(s) / np.array(encoder_s))), 3
      ),
      'peak_bytes': stepper.memory,
      'measured_l0': round(float(metrics['l0']), 2),
      'is_sparse': float(metrics['is_sparse']),
      **(also if name == 'sparse' else {}),
    }


def in_turns(
  fns: Sequence[Callable[[], Any]], repeats: int
) -> list[list[float]]:
  """Returns each function's times in seconds, all measured in every round."""
  for fn in fns:
    jax.block_until_ready(fn())
    jax.block_until_ready(fn())
  seconds = [[] for _ in fns]
  for _ in range(repeats):
    for fn, of_one in zip(fns, seconds, strict=True):
      began = time.perf_counter()
      jax.block_until_ready(fn())
      of_one.append(time.perf_counter() - began)
  return seconds


def _at_l0(state, rows_BD, l0):
  """Returns the state with thresholds that give an L0 on some rows."""
  sae = state.sae
  pre_BM = np.asarray(sae.linear(rows_BD[:512]))
  share = l0 / pre_BM.shape[1]
  threshold_M = np.quantile(pre_BM, 1 - share, axis=0).astype('float32')
  return state.replace(sae=sae.replace(log_threshold=jnp.log(threshold_M)))


def _memory(compiled):
  """Returns the bytes that a program takes at its peak, as XLA plans them."""
  analysis = compiled.memory_analysis()
  return int(
    analysis.argument_size_in_bytes
    + analysis.output_size_in_bytes
    - analysis.alias_size_in_bytes
    + analysis.temp_size_in_bytes
  )


def _ms(seconds):
  return round(1e3 * float(seconds), 3)
