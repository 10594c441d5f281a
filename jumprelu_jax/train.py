"""Training of one SAE over a device mesh.

`train_step` is a pure function of a state and a batch; `fit` compiles it for a
mesh, feeds it, and keeps checkpoints and curves.
"""

from __future__ import annotations

from collections.abc import Callable
import contextlib
import dataclasses
import functools
import pathlib
import time

import flax.struct
import jax
from jax import numpy as jnp
import numpy as np
import optax

from jumprelu_jax import checkpoint
from jumprelu_jax import config as config_lib
from jumprelu_jax import errors
from jumprelu_jax import kernels
from jumprelu_jax import objectives
from jumprelu_jax import ops
from jumprelu_jax import optim
from jumprelu_jax import progress
from jumprelu_jax import sae as sae_lib
from jumprelu_jax import sharding
from jumprelu_jax import writer
from jumprelu_jax.activations import batches as batches_lib


@dataclasses.dataclass(frozen=True)
class Architecture:
  """How an architecture is begun and kept.

  Attributes:
    init: its initialiser.
    has_unit_decoder: decoder rows keep unit norm.
  """

  init: Callable
  has_unit_decoder: bool = True


#: Architectures by the names that configs and results.csv use.
ARCHITECTURES = {
  'jumprelu': Architecture(sae_lib.init_jumprelu),
  'jumprelu_raw_threshold': Architecture(sae_lib.init_raw_threshold_jumprelu),
  'jumprelu_free_norm': Architecture(
    sae_lib.init_free_norm_jumprelu, has_unit_decoder=False
  ),
}


@flax.struct.dataclass
class TrainState:
  """Everything that a training step changes.

  Attributes:
    step: steps taken, int32 scalar.
    sae: parameters, float32.
    opt_state: the optimizer's state.
  """

  step: jax.Array
  sae: sae_lib.JumpReLU
  opt_state: optax.OptState


def check_names(run: config_lib.RunConfig) -> None:
  """Raises InputError unless the config's names are known."""
  for key, name, table in (
    ('sae.architecture', run.sae.architecture, ARCHITECTURES),
    ('objective.name', run.objective.name, objectives.OBJECTIVES),
    ('objective.kernel', run.objective.kernel, kernels.KERNELS),
    ('objective.estimator', run.objective.estimator, ops.ESTIMATORS),
  ):
    if name not in table:
      raise errors.InputError(
        f'config.{key}={name!r} is not known; expected one of '
        f'{", ".join(table)}.'
      )


def init_state(
  run: config_lib.RunConfig, d_model: int, key: jax.Array
) -> TrainState:
  """Returns the state before the first step; `key` is consumed."""
  sae = ARCHITECTURES[run.sae.architecture].init(
    key,
    d_model,
    run.sae.num_latents,
    initial_threshold=run.sae.initial_threshold,
    use_pre_encoder_bias=run.sae.use_pre_encoder_bias,
    compute_dtype=run.sae.compute_dtype,
  )
  tx = _optimizer(run)
  return TrainState(jnp.zeros((), 'int32'), sae, tx.init(sae))


def _optimizer(run):
  architecture = ARCHITECTURES[run.sae.architecture]
  return optim.make(
    run.optimizer,
    run.train.steps,
    has_unit_decoder=architecture.has_unit_decoder,
  )


def train_step(
  state: TrainState,
  x_BD: jax.Array,
  coefficients: objectives.Coefficients,
  *,
  objective: Callable,
  jump: objectives.Jump,
  tx: optax.GradientTransformation,
  sparsity_warmup_steps: int,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Takes one step: loss, gradient, update, decoder rows back to unit norm.

  Args:
    state: the state before.
    x_BD: activations of unit mean squared norm, float32.
    coefficients: lambda (after its warm-up) and bandwidth.
    objective: one of `objectives`.
    jump: how jumps are differentiated.
    tx: the optimizer.
    sparsity_warmup_steps: lambda rises linearly from 0 over these steps.

  Returns:
    The state after, and scalars to log.
  """
  warm = jnp.clip(state.step / max(sparsity_warmup_steps, 1), 0, 1)
  if not sparsity_warmup_steps:
    warm = jnp.ones(())
  coefficients = coefficients.replace(
    sparsity_coeff=warm * coefficients.sparsity_coeff
  )

  def loss_fn(sae):
    return objective(sae, x_BD, coefficients, jump)

  (loss, terms), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.sae)
  updates, opt_state = tx.update(grads, state.opt_state, state.sae)
  sae = optax.apply_updates(state.sae, updates).constrain()
  metrics = terms | {
    'loss': loss,
    'sparsity_coeff': coefficients.sparsity_coeff,
    'mean_threshold': jnp.mean(sae.threshold),
  }
  return TrainState(state.step + 1, sae, opt_state), metrics


@functools.lru_cache(maxsize=8)
def _compile(run, d_model, mesh):
  """Returns (init, step) jitted for a mesh; shared by runs alike but lambda."""
  init = functools.partial(init_state, run, d_model)
  shardings = sharding.of_tree(mesh, jax.eval_shape(init, jax.random.key(0)))
  step = functools.partial(
    train_step,
    objective=objectives.OBJECTIVES[run.objective.name],
    jump=objectives.Jump(
      ops.ESTIMATORS[run.objective.estimator],
      kernels.KERNELS[run.objective.kernel],
    ),
    tx=_optimizer(run),
    sparsity_warmup_steps=run.objective.sparsity_warmup_steps,
  )

  def step_on_rows(state, rows_BD, scale, coefficients):
    return step(state, rows_BD.astype('float32') / scale, coefficients)

  jitted_step = jax.jit(
    step_on_rows,
    in_shardings=(shardings, sharding.of_batch(mesh), None, None),
    out_shardings=(shardings, None),
    donate_argnums=0,
  )
  return jax.jit(init, out_shardings=shardings), jitted_step


def compile_for(
  run: config_lib.RunConfig, d_model: int, mesh: jax.sharding.Mesh
) -> tuple[Callable, Callable]:
  """Returns (init, step): `init_state` of a key and `train_step`, jitted.

  The step takes rows as they are stored and their scale (state, rows_BD, scale,
  coefficients), so that what is copied to the device is no wider than the
  store. The state is born sharded and is donated by each step. Runs that differ
  only in the objective's coefficients share one program.
  """
  shared = run.with_values({'objective.sparsity_coeff': 0.0})
  return _compile(shared, d_model, mesh)


def fit(
  run: config_lib.RunConfig,
  shards: batches_lib.Shards,
  mesh: jax.sharding.Mesh,
  folder: str | pathlib.Path,
) -> sae_lib.JumpReLU:
  """Trains one SAE, from its last checkpoint if the folder has one.

  Args:
    run: the config.
    shards: rows to train on, and their scale.
    mesh: where to train.
    folder: gets `checkpoints/`, `metrics.jsonl` and `tensorboard/`.

  Returns:
    The trained parameters.

  Raises:
    errors.InputError: a shard is damaged.
    FloatingPointError: the loss is not finite.
  """
  init, step_fn = compile_for(run, shards.d_model, mesh)
  state = init(jax.random.key(run.seed))
  checkpointer = checkpoint.Checkpointer(pathlib.Path(folder) / 'checkpoints')
  start, state = checkpointer.restore_latest(state) or (0, state)
  curve = writer.CurveWriter(folder, first_step=start)
  scale, coefficients = jax.device_put(
    (np.float32(shards.scale), coefficients_of(run)), sharding.replicated(mesh)
  )
  label = f'train {run.objective.sparsity_coeff:g}'
  began, pending = time.perf_counter(), []
  with (
    progress.track(label, run.train.steps, 'steps', start) as bar,
    _prefetched(run, shards, start) as batches,
    jax.transfer_guard('disallow'),
  ):
    for step, rows_BD in batches:
      rows_BD = jax.device_put(rows_BD, sharding.of_batch(mesh))
      state, metrics = step_fn(state, rows_BD, scale, coefficients)
      pending.append(metrics)
      done = step + 1
      is_last = done == run.train.steps
      if done % run.train.steps_per_log == 0 or is_last:
        means = _means(pending, done)
        curve.write(done, means)
        bar.advance(len(pending), loss=means['loss'], l0=means['l0'])
        pending.clear()
      if done % run.train.steps_per_checkpoint == 0 or is_last:
        checkpointer.save(done, state)
    _report_waiting(label, batches.wait_s, time.perf_counter() - began)
  curve.close()
  checkpointer.close()
  return state.sae


@contextlib.contextmanager
def _prefetched(run, shards, start):
  """Yields an iterator over the run's remaining (step, rows)."""
  steps, depth = run.train.steps, run.activations.prefetch_batches
  with (
    contextlib.closing(
      batches_lib.Batches(
        shards, run.train.batch_size, run.seed, num_steps=steps
      )
    ) as batches,
    batches_lib.prefetched(batches, start, steps, depth) as ahead,
  ):
    yield ahead


def coefficients_of(run: config_lib.RunConfig) -> objectives.Coefficients:
  """Returns the numbers of a run's objective, float32."""
  names = [f.name for f in dataclasses.fields(objectives.Coefficients)]
  values = {name: np.float32(getattr(run.objective, name)) for name in names}
  return objectives.Coefficients(**values)


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
