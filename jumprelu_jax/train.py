"""Training of one SAE over a device mesh.

`train_step` is a pure function of a state and a batch; `fit` compiles it for a
mesh, feeds it, and keeps checkpoints and curves.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
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

from jumprelu_jax import architectures
from jumprelu_jax import checkpoint
from jumprelu_jax import components as components_lib
from jumprelu_jax import config as config_lib
from jumprelu_jax import errors
from jumprelu_jax import kernels
from jumprelu_jax import objectives
from jumprelu_jax import ops
from jumprelu_jax import optim
from jumprelu_jax import progress
from jumprelu_jax import sharding
from jumprelu_jax import writer
from jumprelu_jax.activations import batches as batches_lib
from jumprelu_jax.sae import biases
from jumprelu_jax.sae import released
from jumprelu_jax.sae import trained


@flax.struct.dataclass
class TrainState:
  """Everything that a training step changes.

  Attributes:
    step: steps taken, int32 scalar.
    sae: parameters, float32.
    opt_state: the optimizer's state.
    components: name → state of each component.
  """

  step: jax.Array
  sae: trained.Trained
  opt_state: optax.OptState
  components: dict[str, components_lib.State]


def check(run: config_lib.RunConfig) -> None:
  """Raises InputError unless the config's names are known and fit together."""
  for key, names, table in (
    ('kernel', [run.objective.kernel], kernels.KERNELS),
    ('estimator', [run.objective.estimator], ops.ESTIMATORS),
    ('components', run.objective.components, components_lib.OPTIONAL),
  ):
    for name in names:
      if name not in table:
        raise errors.InputError(
          f'config.objective.{key}={name!r} is not known; expected one of '
          f'{", ".join(table)}.'
        )
  architectures.check(run)


def init_state(
  run: config_lib.RunConfig, widths: tuple[int, ...], key: jax.Array
) -> TrainState:
  """Returns the state before the first step; `key` is consumed.

  Args:
    run: the config.
    widths: sizes of an activation: the input's, and a transcoder's target's.
    key: a JAX random key.
  """
  sae = architectures.of(run).init(key, widths, run.sae)
  tx = optim.make(run.optimizer, run.train.steps)
  states = {
    name: component.init(run.sae.num_latents)
    for name, component in components_of(run).items()
  }
  return TrainState(jnp.zeros((), 'int32'), sae, tx.init(sae), states)


def components_of(
  run: config_lib.RunConfig,
) -> dict[str, components_lib.Component]:
  """Returns a run's components by name, in the order in which they act."""
  names = (
    'tokens_since_fired',
    *architectures.of(run).components,
    *run.objective.components,
  )
  return {
    name: components_lib.COMPONENTS[name](run.objective) for name in names
  }


def train_step(
  state: TrainState,
  x_BD: jax.Array,
  y_BD: jax.Array,
  coefficients: objectives.Coefficients,
  *,
  objective: Callable,
  components: Mapping[str, components_lib.Component],
  tx: optax.GradientTransformation,
  sparsity_warmup_steps: int,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Takes one step: loss, gradient, update, decoder rows back to unit norm.

  Args:
    state: the state before.
    x_BD: activations of unit mean squared norm, float32.
    y_BD: what to predict: the same, or a transcoder's target.
    coefficients: lambda (after its warm-up), bandwidth and the rest.
    objective: (sae, x_BD, y_BD, coefficients) → as `objectives.evaluate`.
    components: by the names of their states.
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
  for name, component in components.items():
    coefficients = component.before(state.components[name], coefficients)

  def loss_fn(sae):
    return objective(sae, x_BD, y_BD, coefficients)

  (loss, (terms, encoding)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
    state.sae
  )
  updates, opt_state = tx.update(grads, state.opt_state, state.sae)
  sae = optax.apply_updates(state.sae, updates).constrain()
  seen = components_lib.Seen(
    encoding, coefficients, terms['squared_error'], terms['penalty'], warm
  )
  states = {
    name: component.after(state.components[name], seen)
    for name, component in components.items()
  }
  metrics = terms | {
    'loss': loss,
    'sparsity_coeff': coefficients.sparsity_coeff,
    'mean_threshold': jnp.mean(encoding.threshold),
    'dead_fraction': jnp.mean(coefficients.dead_M, dtype='float32'),
  }
  return TrainState(state.step + 1, sae, opt_state, states), metrics


def objective_of(run: config_lib.RunConfig) -> Callable:
  """Returns a run's objective: `objectives.evaluate` of the last arguments."""
  jump = ops.Jump(
    ops.ESTIMATORS[run.objective.estimator],
    kernels.KERNELS[run.objective.kernel],
  )
  return functools.partial(
    objectives.evaluate,
    architectures.of(run).reconstruct,
    objectives.penalties(run.objective.name),
    jump,
  )


@functools.lru_cache(maxsize=8)
def _compile(run, widths, mesh):
  """Returns (init, step) jitted for a mesh; shared by runs alike but lambda."""
  init = functools.partial(init_state, run, widths)
  shardings = sharding.of_tree(mesh, jax.eval_shape(init, jax.random.key(0)))
  step = functools.partial(
    train_step,
    objective=objective_of(run),
    components=components_of(run),
    tx=optim.make(run.optimizer, run.train.steps),
    sparsity_warmup_steps=run.objective.sparsity_warmup_steps,
  )

  def step_on_rows(state, rows_BD, scale, coefficients):
    rows_BD = rows_BD.astype('float32') / scale
    x_BD, y_BD = rows_BD, rows_BD
    if len(widths) == 2:
      x_BD, y_BD = jnp.split(rows_BD, widths[:1], axis=1)
    return step(state, x_BD, y_BD, coefficients)

  jitted_step = jax.jit(
    step_on_rows,
    in_shardings=(shardings, sharding.of_batch(mesh), None, None),
    out_shardings=(shardings, None),
    donate_argnums=0,
  )
  return jax.jit(init, out_shardings=shardings), jitted_step


def compile_for(
  run: config_lib.RunConfig, widths: tuple[int, ...], mesh: jax.sharding.Mesh
) -> tuple[Callable, Callable]:
  """Returns (init, step): `init_state` of a key and `train_step`, jitted.

  The step takes rows as they are stored and their scale (state, rows_BD, scale,
  coefficients), so that what is copied to the device is no wider than the
  store; a transcoder's rows are input and target side by side. The state is
  born sharded and is donated by each step. Runs that differ only in the
  objective's coefficients share one program.
  """
  shared = run.with_values({'objective.sparsity_coeff': 0.0})
  return _compile(shared, widths, mesh)


def fit(
  run: config_lib.RunConfig,
  shards: batches_lib.Shards,
  mesh: jax.sharding.Mesh,
  folder: str | pathlib.Path,
) -> TrainState:
  """Trains one SAE, from its last checkpoint if the folder has one.

  Args:
    run: the config.
    shards: rows to train on, and their scale.
    mesh: where to train.
    folder: gets `checkpoints/`, `metrics.jsonl` and `tensorboard/`.

  Returns:
    The state after the last step; `release` makes an SAE of it.

  Raises:
    errors.InputError: a shard is damaged.
    FloatingPointError: the loss is not finite.
  """
  init, step_fn = compile_for(run, shards.widths, mesh)
  state = init(jax.random.key(run.seed))
  checkpointer = checkpoint.Checkpointer(pathlib.Path(folder) / 'checkpoints')
  restored = checkpointer.restore_latest(state)
  start, state = restored or (0, _with_biases(state, run, shards))
  curve = writer.CurveWriter(folder, first_step=start)
  scale, coefficients = jax.device_put(
    (_scale(shards), coefficients_of(run)), sharding.replicated(mesh)
  )
  label = f'train {architectures.name(run)}'
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
  return state


def release(
  run: config_lib.RunConfig, state: TrainState, scales: tuple[float, ...]
) -> released.Released:
  """Returns the SAE of a state, folded: raw activations in and out."""
  architecture = architectures.of(run)
  return architecture.release(state.sae, state.components, scales)


def _scale(shards):
  """Returns what rows are divided by: a number, or one for each column."""
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
  rows_ND = rows_ND.astype('float32') / _scale(shards)
  x_ND, y_ND = rows_ND[:, : shards.widths[0]], rows_ND[:, -shards.widths[-1] :]
  sae = biases.from_data(state.sae, x_ND, y_ND, run.sae)
  layout = jax.tree.map(lambda leaf: leaf.sharding, state.sae)
  return state.replace(sae=jax.device_put(sae, layout))


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
  values = {}
  for field in dataclasses.fields(objectives.Coefficients):
    if hasattr(run.objective, field.name):
      value = getattr(run.objective, field.name)
      is_traced = field.metadata.get('pytree_node', True)
      values[field.name] = np.float32(value) if is_traced else value
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
