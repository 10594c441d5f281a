"""A training step over a device mesh.

`train_step` is a pure function of a state and a batch; `compile_for` jits it
for a mesh; `loop` feeds it.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools

import flax.struct
import jax
from jax import numpy as jnp
import numpy as np
import optax

from jumprelu_jax import architectures
from jumprelu_jax import components as components_lib
from jumprelu_jax import config as config_lib
from jumprelu_jax import errors
from jumprelu_jax import fused
from jumprelu_jax import health
from jumprelu_jax import kernels
from jumprelu_jax import objectives
from jumprelu_jax import ops
from jumprelu_jax import optim
from jumprelu_jax import sharding
from jumprelu_jax import sparse
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
    health: what steps were left out.
  """

  step: jax.Array
  sae: trained.Trained
  opt_state: optax.OptState
  components: dict[str, components_lib.State]
  health: health.Health


@flax.struct.dataclass
class Numbers:
  """What of a config is traced: runs that differ in it share one program.

  Attributes:
    coefficients: the objective's.
    rates: learning rates.
  """

  coefficients: objectives.Coefficients
  rates: optim.Rates


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
  _check_fused(run)


def _check_fused(run):
  """Raises InputError if the fused update is asked for what it does not do."""
  optimizer = run.optimizer
  is_plain = not (
    optimizer.beta1
    or optimizer.max_gradient_norm
    or optimizer.threshold_gradient_decay
  )
  if optimizer.is_fused and not (is_plain and _has_unit_decoder(run)):
    raise errors.InputError(
      'config.optimizer.is_fused=True is for unit decoder rows and beta1=0, '
      'max_gradient_norm=0, threshold_gradient_decay=0; got '
      f'{run.sae.architecture}, {optimizer.beta1}, '
      f'{optimizer.max_gradient_norm}, {optimizer.threshold_gradient_decay}. '
      'Set it to False.'
    )


def _has_unit_decoder(run):
  architecture = architectures.of(run)
  widths = (1,) * architecture.num_sites
  init = functools.partial(architecture.init, widths=widths, config=run.sae)
  return jax.eval_shape(init, jax.random.key(0)).has_unit_decoder


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
  optimizer = optim.make(run.optimizer, run.train.steps)
  states = {
    name: component.init(run.sae.num_latents)
    for name, component in components_of(run).items()
  }
  return TrainState(
    jnp.zeros((), 'int32'), sae, optimizer.init(sae), states, health.begin()
  )


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
  numbers: Numbers,
  *,
  gradients: Callable,
  components: Mapping[str, components_lib.Component],
  optimizer: optim.Optimizer,
  sparsity_warmup_steps: int,
  max_bad_batches: int,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Takes one step: loss, gradient, update, decoder rows back to unit norm.

  Where a number is not finite nothing changes but the count of steps, and of
  such steps; once there were too many of them, nothing does any more.

  Args:
    state: the state before.
    x_BD: activations of unit mean squared norm, float32.
    y_BD: what to predict: the same, or a transcoder's target.
    numbers: lambda (after its warm-up), bandwidth, learning rates and the rest.
    gradients: of a run's objective (see `gradients_of`).
    components: by the names of their states.
    optimizer: takes the step; returns decoder rows of unit norm.
    sparsity_warmup_steps: lambda rises linearly from 0 over these steps.
    max_bad_batches: steps that may be left out.

  Returns:
    The state after; and scalars to log, with 'fault', one of `health`'s.
  """
  warm = jnp.clip(state.step / max(sparsity_warmup_steps, 1), 0, 1)
  if not sparsity_warmup_steps:
    warm = jnp.ones(())
  coefficients = numbers.coefficients
  coefficients = coefficients.replace(
    sparsity_coeff=warm * coefficients.sparsity_coeff
  )
  for name, component in components.items():
    coefficients = component.before(state.components[name], coefficients)

  def observe(encoding):
    observed = {
      name: component.observe(encoding, coefficients)
      for name, component in components.items()
    }
    return observed, health.of_latents(encoding)

  (loss, (terms, (observed, latents_are_finite))), grads = gradients(
    observe, state.sae, x_BD, y_BD, coefficients
  )
  fault = health.fault(
    (x_BD, y_BD),
    latents_are_finite & health.is_finite(health.small(state.sae)),
    (loss, health.small(grads), optimizer.seen(grads, state.sae)),
  )
  after = state.health.after(state.step, fault, max_bad_batches)
  goes_on = (fault == 0) & ~state.health.is_stopped(max_bad_batches)
  sae, opt_state = optimizer.step(
    sharding.lie_by_rows(grads),
    state.opt_state,
    state.sae,
    numbers.rates,
    goes_on,
  )
  known = (terms['l0'], terms['squared_error'], terms['penalty'], warm)
  states = {
    name: component.after(
      state.components[name],
      components_lib.Seen(observed[name], coefficients, *known),
    )
    for name, component in components.items()
  }
  metrics = terms | {
    'loss': loss,
    'sparsity_coeff': coefficients.sparsity_coeff,
    'dead_fraction': jnp.mean(coefficients.dead_M, dtype='float32'),
    'bad_batches': after.bad_count.astype('float32'),
    'fault': fault.astype('float32'),
  }
  states = health.choose(goes_on, states, state.components)
  return TrainState(state.step + 1, sae, opt_state, states, after), metrics


def objective_of(run: config_lib.RunConfig) -> Callable:
  """Returns a run's objective: `objectives.evaluate` of the last arguments."""
  return functools.partial(
    objectives.evaluate,
    architectures.of(run).reconstruct,
    objectives.penalties(run.objective.name),
    _jump_of(run),
  )


def gradients_of(run: config_lib.RunConfig) -> Callable:
  """Returns (observe, sae, x_BD, y_BD, c) → as `objectives.gradients`."""
  objective, jump = objective_of(run), _jump_of(run)

  def gradients(observe, sae, x_BD, y_BD, c):
    return objectives.gradients(objective, observe, jump, sae, x_BD, y_BD, c)

  return gradients


def _jump_of(run):
  return ops.Jump(
    ops.ESTIMATORS[run.objective.estimator],
    kernels.KERNELS[run.objective.kernel],
  )


def optimizer_of(
  run: config_lib.RunConfig, mesh: jax.sharding.Mesh
) -> optim.Optimizer:
  """Returns a run's optimizer for a mesh's devices."""
  if not run.optimizer.is_fused:
    return optim.make(run.optimizer, run.train.steps)
  interpret = mesh.devices.flat[0].platform != 'tpu'
  return fused.make(run.optimizer, run.train.steps, interpret=interpret)


def step_of(
  run: config_lib.RunConfig, widths: tuple[int, ...], mesh: jax.sharding.Mesh
) -> Callable:
  """Returns `train_step` of a run on rows as they are stored.

  (state, rows_BD, scale, numbers) → (state, metrics). What is copied to the
  device is no wider than the store; a transcoder's rows are input and target
  side by side.
  """
  step = functools.partial(
    train_step,
    gradients=gradients_of(run),
    components=components_of(run),
    optimizer=optimizer_of(run, mesh),
    sparsity_warmup_steps=run.objective.sparsity_warmup_steps,
    max_bad_batches=run.train.max_bad_batches,
  )

  def step_on_rows(state, rows_BD, scale, numbers):
    rows_BD = rows_BD.astype('float32') / scale
    x_BD, y_BD = rows_BD, rows_BD
    if len(widths) == 2:
      x_BD, y_BD = jnp.split(rows_BD, widths[:1], axis=1)
    return step(state, x_BD, y_BD, numbers)

  return step_on_rows


@functools.lru_cache(maxsize=8)
def _compile(run, widths, mesh):
  """Returns (init, step) jitted for a mesh."""
  init = functools.partial(init_state, run, widths)
  shardings = layout_of(run, widths, mesh)
  step = jax.jit(
    sharding.on(mesh, step_of(run, widths, mesh)),
    in_shardings=(shardings, sharding.of_batch(mesh), None, None),
    out_shardings=(shardings, None),
    donate_argnums=0,
  )
  return jax.jit(init, out_shardings=shardings), step


def layout_of(
  run: config_lib.RunConfig, widths: tuple[int, ...], mesh: jax.sharding.Mesh
) -> TrainState:
  """Returns how a run's state lies on a mesh; arguments as `compile_for`."""
  init = functools.partial(init_state, run, widths)
  state = jax.eval_shape(init, jax.random.key(0))
  return sharding.of_tree(
    mesh, state, divides_optimizer=run.mesh.divides_optimizer
  )


def compile_for(
  run: config_lib.RunConfig, widths: tuple[int, ...], mesh: jax.sharding.Mesh
) -> tuple[Callable, Callable]:
  """Returns (init, step): `init_state` of a key and `step_of`, jitted.

  The state is born sharded and is donated by each step. Runs that differ in
  what is traced alone share one program.
  """
  return _compile(untraced(run, mesh), widths, mesh)


def untraced(
  run: config_lib.RunConfig, mesh: jax.sharding.Mesh
) -> config_lib.RunConfig:
  """Returns the config with 1 wherever a number is traced, and seed 0.

  Runs for which it is the same are trained by the same program.
  """
  ones = dict.fromkeys(map('objective.{}'.format, _traced()), 1.0)
  rates = [field.name for field in dataclasses.fields(optim.Rates)]
  ones |= dict.fromkeys(map('optimizer.{}'.format, rates), 1.0)
  return run.with_values(
    {**ones, 'seed': 0, 'sae.capacity': capacity_of(run, mesh)}
  )


def capacity_of(run: config_lib.RunConfig, mesh: jax.sharding.Mesh) -> int:
  """Returns the latents of a row that a run's steps have room for.

  Over a mesh steps are dense: a support would have to be gathered.
  """
  if mesh.size > 1:
    return 0
  if run.sae.capacity < 0:
    return sparse.suggested(run.sae.num_latents)
  return run.sae.capacity


def num_bytes(run: config_lib.RunConfig, widths: tuple[int, ...]) -> int:
  """Returns the size of a run's state; arguments as `init_state`."""
  state = jax.eval_shape(
    functools.partial(init_state, run, widths), jax.random.key(0)
  )
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def release(
  run: config_lib.RunConfig, state: TrainState, scales: tuple[float, ...]
) -> released.Released:
  """Returns the SAE of a state, folded: raw activations in and out."""
  architecture = architectures.of(run)
  return architecture.release(state.sae, state.components, scales)


def numbers_of(run: config_lib.RunConfig) -> Numbers:
  """Returns what of a run's config is traced, float32."""
  objective, optimizer = run.objective, run.optimizer
  values = {name: np.float32(getattr(objective, name)) for name in _traced()}
  return Numbers(
    objectives.Coefficients(
      aux_k=objective.aux_k, prefixes=objective.prefixes, **values
    ),
    optim.Rates(
      np.float32(optimizer.learning_rate),
      np.float32(optimizer.threshold_learning_rate),
    ),
  )


def _traced():
  """Returns the names of the objective's numbers that are traced."""
  known = {f.name for f in dataclasses.fields(config_lib.ObjectiveConfig)}
  return [
    field.name
    for field in dataclasses.fields(objectives.Coefficients)
    if field.name in known and field.metadata.get('pytree_node', True)
  ]
