"""Our losses and gradients against SAELens' training classes (6.54.12).

An optional group: `pytest -m saelens`, in an environment with the package's
extra of that name. Nothing is skipped in it: without SAELens it fails.

One random set of parameters goes into SAELens' class, in float64, and into
ours; loss terms and the gradients of all parameters agree to 1e-5 of the
largest. SAELens → here:

JumpReLU
  trains thresholds themselves → architecture 'jumprelu_raw_threshold'
  clamps them at zero before a step → `constrain` does so after it
  decoder rows of any norm → no matter to a loss or its gradient;
    'jumprelu_raw_threshold' scales them back to unit norm after each update
  no ReLU before the jump → ours has one, which shows once a threshold is below
    half a bandwidth: test_relu_before_the_jump_shows_below_half_a_bandwidth
  apply_b_dec_to_input → sae.use_pre_encoder_bias
  jumprelu_ste_to_input → estimator 'threshold_and_encoder'
  'step' → objective 'l0' of the same lambda
  'quadratic', 2 lambda / T (L0 - T)^2 of each row → 'target_l0' of 2 lambda T
  'tanh' → 'tanh' of the same lambda and scale
  pre_act_loss, of dead latents alone → 'pre_activation' is of all latents:
    test_pre_activation_loss_is_of_dead_latents_alone
Gated
  L1 weighed by decoder norms, decoder not frozen → 'gated_ri_l1'; SAELens has
    no 'gated'
Standard
  l1_loss, weighed by decoder norms → architecture 'relu', objective 'ri_l1'
TopK
  rescale_acts_by_decoder_norm, by default → ours has rows of unit norm
  AuxK: E||e - e_hat||^2 → ours is a share of E||e||^2; aux_k_coeff is
    aux_loss_coefficient times that: test_top_k_with_aux_k_equals_saelens
  AuxK of half of the input size → aux_k
  AuxK times min(dead / k_aux, 1) → no such factor:
    test_aux_k_of_few_dead_latents_is_scaled_down
  AuxK has no ReLU → ours has one:
    test_aux_k_lets_negative_pre_activations_through
BatchTopK, Matryoshka
  threshold averaged from 0 on → ours from the first batch's on:
    test_batch_top_k_threshold_starts_at_its_first_value
"""

from helpers.random_saes import assert_near
from helpers.random_saes import float64_params
from helpers.random_saes import loss_and_gradients_of
from helpers.random_saes import loss_of
from helpers.random_saes import random_of
from helpers.random_saes import random_rows
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from jumprelu_jax import components
from jumprelu_jax import objectives
from jumprelu_jax import ops
from jumprelu_jax.sae import gated
from jumprelu_jax.sae import jumprelu
from jumprelu_jax.sae import relu
from jumprelu_jax.sae import topk

pytestmark = pytest.mark.saelens

NUMBERS = {
  'sparsity_coeff': 0.3,
  'bandwidth': 0.2,
  'target_l0': 3.0,
  'tanh_scale': 1.5,
  'pre_activation_coeff': 0.4,
}
WIDTHS = {'d_in': 6, 'd_sae': 16}


@pytest.fixture(scope='module', autouse=True)
def sae_lens_is_there():
  """Fails without it; a fixture, so that collecting the tests needs none."""
  import sae_lens  # noqa: F401


def theirs(cls, config_cls, sae, **options):
  """SAELens' class with our parameters, in float64."""
  import torch

  config = config_cls(
    **WIDTHS,
    dtype='float64',
    apply_b_dec_to_input=sae.use_pre_encoder_bias,
    **options,
  )
  module = cls(config)
  with torch.no_grad():
    for name, value in float64_params(sae).items():
      getattr(module, name).copy_(torch.from_numpy(value))
  return module


def step_of(module, x_BD, coefficients=None, dead=None):
  """SAELens' forward pass, and the gradients of its loss."""
  from sae_lens.saes import sae as base
  import torch

  output = module.training_forward_pass(
    base.TrainStepInput(
      sae_in=torch.from_numpy(np.asarray(x_BD, np.float64)),
      coefficients=coefficients or {},
      dead_neuron_mask=None if dead is None else torch.from_numpy(dead),
      n_training_steps=0,
      is_logging_step=False,
    )
  )
  output.loss.backward()
  gradients = {
    name: parameter.grad.numpy()
    for name, parameter in module.named_parameters()
  }
  return output, gradients


def assert_equal(ours, theirs, terms):
  """Asserts losses, named terms {ours: theirs} and gradients.

  Args:
    ours: of `loss_and_gradients_of`.
    theirs: of `step_of`.
    terms: metrics of ours to losses of theirs.
  """
  (loss, (metrics, encoding)), gradients = ours
  output, want_gradients = theirs
  np.testing.assert_allclose(loss, output.loss.item(), rtol=1e-5)
  assert set(terms.values()) == set(output.losses)
  for name, want in terms.items():
    assert output.losses[want].item() != 0, want
    np.testing.assert_allclose(
      metrics[name], output.losses[want].item(), rtol=1e-5, err_msg=name
    )
  f = output.feature_acts.detach().numpy()
  np.testing.assert_array_equal(encoding.f > 0, f > 0)
  for name, want in want_gradients.items():
    assert_near(getattr(gradients, name), want, name)


# mode → our objective, our lambda as a multiple of theirs, the terms' names.
_SPARSITY = {'squared_error': 'mse_loss'}
MODES = {
  'step': ('l0', 1.0, _SPARSITY | {'loss/l0': 'l0_loss'}),
  'quadratic': (
    'target_l0',
    2 * NUMBERS['target_l0'],
    _SPARSITY | {'loss/target_l0': 'l0_loss'},
  ),
  'tanh': (
    'tanh+pre_activation',
    1.0,
    _SPARSITY | {'loss/tanh': 'l0_loss', 'loss/pre_activation': 'pre_act_loss'},
  ),
}


def jumprelu_of(sae, mode, *, reaches_encoder=False):
  from sae_lens.saes import jumprelu_sae

  module = theirs(
    jumprelu_sae.JumpReLUTrainingSAE,
    jumprelu_sae.JumpReLUTrainingSAEConfig,
    sae,
    jumprelu_bandwidth=NUMBERS['bandwidth'],
    jumprelu_sparsity_loss_mode=mode,
    jumprelu_tanh_scale=NUMBERS['tanh_scale'],
    jumprelu_ste_to_input=reaches_encoder,
    target_l0=NUMBERS['target_l0'],
    pre_act_loss_coefficient=(
      NUMBERS['pre_activation_coeff'] if mode == 'tanh' else None
    ),
  )
  assert str(module.threshold.dtype) == 'torch.float32'
  return module


@pytest.mark.parametrize('uses_b_dec', [True, False])
@pytest.mark.parametrize('reaches_encoder', [False, True])
@pytest.mark.parametrize('mode', MODES)
def test_jumprelu_equals_saelens(mode, reaches_encoder, uses_b_dec):
  """'quadratic' at 2 lambda T; in 'tanh' all latents count as dead."""
  objective, factor, terms = MODES[mode]
  sae = random_of(
    jumprelu.RawThresholdJumpReLU, use_pre_encoder_bias=uses_b_dec
  )
  assert sae.threshold.min() > NUMBERS['bandwidth'] / 2
  x_BD = random_rows()
  estimator = 'threshold_and_encoder' if reaches_encoder else 'threshold'
  ours = loss_and_gradients_of(
    objective,
    sae,
    x_BD,
    NUMBERS | {'sparsity_coeff': factor * NUMBERS['sparsity_coeff']},
    jump=ops.Jump(ops.ESTIMATORS[estimator]),
  )
  module = jumprelu_of(sae, mode, reaches_encoder=reaches_encoder)
  coefficients = {'l0': NUMBERS['sparsity_coeff']}
  assert_equal(
    ours, step_of(module, x_BD, coefficients, np.ones(16, bool)), terms
  )


def test_relu_before_the_jump_shows_below_half_a_bandwidth():
  """SAELens' window sees pre-activations as they are, ours their ReLU.

  With thresholds of a twentieth and windows half of 0.2 wide to either side,
  ours counts each negative pre-activation, as it becomes 0, and SAELens only
  those above -0.05: in training ours pushes thresholds up, SAELens' does not.
  """
  sae = random_of(jumprelu.RawThresholdJumpReLU)
  sae = sae.replace(threshold=jnp.full(16, 0.05))
  x_BD = random_rows()
  (loss, (_, encoding)), ours = loss_and_gradients_of('l0', sae, x_BD, NUMBERS)
  module = jumprelu_of(sae, 'step')
  output, want = step_of(module, x_BD, {'l0': NUMBERS['sparsity_coeff']})
  np.testing.assert_allclose(loss, output.loss.item(), rtol=1e-5)
  for name in ('W_enc', 'b_enc', 'W_dec', 'b_dec'):
    assert_near(getattr(ours, name), want[name], name)
  # What the others add, of the L0 term and of the squared error.
  far_BM = np.asarray(encoding.pre) <= -0.05
  y_hat_BD = output.sae_out.detach().numpy()
  d_f_BM = 2 * (y_hat_BD - np.asarray(x_BD)) @ np.asarray(sae.W_dec).T
  added_BM = far_BM * (0.3 + 0.05 * d_f_BM) / 0.2 / len(x_BD)
  assert np.abs(added_BM.sum(0)).max() > 0.1
  assert_near(ours.threshold, want['threshold'] - added_BM.sum(0), 'threshold')


def test_pre_activation_loss_is_of_dead_latents_alone():
  sae, x_BD = random_of(jumprelu.RawThresholdJumpReLU), random_rows()
  _, (metrics, encoding) = loss_of('tanh+pre_activation', sae, x_BD, NUMBERS)
  below_BM = np.asarray(sae.threshold) - np.asarray(encoding.pre)
  weighed_BM = np.maximum(below_BM, 0) * np.linalg.norm(sae.W_dec, axis=1)
  dead = np.arange(16) < 5
  for mask in (dead, np.zeros(16, bool), np.ones(16, bool)):
    module = jumprelu_of(sae, 'tanh')
    output, _ = step_of(module, x_BD, {'l0': 0.3}, mask)
    np.testing.assert_allclose(
      output.losses['pre_act_loss'].item(),
      0.4 * (weighed_BM * mask).sum(1).mean(),
      rtol=1e-5,
    )
  want = output.losses['pre_act_loss'].item()  # of all
  np.testing.assert_allclose(metrics['loss/pre_activation'], want, rtol=1e-5)


@pytest.mark.parametrize('uses_b_dec', [True, False])
def test_gated_equals_saelens(uses_b_dec):
  from sae_lens.saes import gated_sae

  sae = random_of(gated.FreeNormGated, use_pre_encoder_bias=uses_b_dec)
  x_BD = random_rows()
  ours = loss_and_gradients_of('gated_ri_l1', sae, x_BD, NUMBERS)
  module = theirs(
    gated_sae.GatedTrainingSAE, gated_sae.GatedTrainingSAEConfig, sae
  )
  assert_equal(
    ours,
    step_of(module, x_BD, {'l1': NUMBERS['sparsity_coeff']}),
    {
      'squared_error': 'mse_loss',
      'loss/ri_l1': 'l1_loss',
      'loss/gate_error': 'auxiliary_reconstruction_loss',
    },
  )


@pytest.mark.parametrize('uses_b_dec', [True, False])
def test_relu_equals_saelens(uses_b_dec):
  from sae_lens.saes import standard_sae

  sae = random_of(relu.ReLU, use_pre_encoder_bias=uses_b_dec)
  x_BD = random_rows()
  ours = loss_and_gradients_of('ri_l1', sae, x_BD, NUMBERS)
  module = theirs(
    standard_sae.StandardTrainingSAE,
    standard_sae.StandardTrainingSAEConfig,
    sae,
  )
  assert_equal(
    ours,
    step_of(module, x_BD, {'l1': NUMBERS['sparsity_coeff']}),
    {'squared_error': 'mse_loss', 'loss/ri_l1': 'l1_loss'},
  )


# Half of the input size is 3, which is what SAELens' AuxK takes.
DEAD = np.isin(np.arange(16), [1, 5, 6, 11])


def top_k_of(sae, **options):
  from sae_lens.saes import topk_sae

  return theirs(
    topk_sae.TopKTrainingSAE,
    topk_sae.TopKTrainingSAEConfig,
    sae,
    k=sae.k,
    rescale_acts_by_decoder_norm=False,
    **options,
  )


def random_top_k(b_enc_of_dead=None, **static):
  sae = random_of(topk.TopK, k=4, is_approximate=False, **static)
  if b_enc_of_dead is None:
    return sae
  return sae.replace(b_enc=jnp.where(DEAD, b_enc_of_dead, sae.b_enc))


def aux_k_numbers(dead, coeff, aux_k=3):
  weights = {'sparsity_coeff': 0.0, 'bandwidth': 0.1, 'aux_k_coeff': coeff}
  return weights | {'dead_M': dead, 'aux_k': aux_k}


def left_of(sae, x_BD):
  """E||e||^2 of what an SAE leaves."""
  numbers = aux_k_numbers(None, 0.0)
  _, (metrics, _) = loss_of('reconstruction', sae, x_BD, numbers)
  return float(metrics['squared_error'])


@pytest.mark.parametrize('uses_b_dec', [True, False])
def test_top_k_with_aux_k_equals_saelens(uses_b_dec):
  """More latents are dead than AuxK takes, and their pre-activations positive.

  Ours is a share of E||e||^2, which no gradient reaches: a factor.
  """
  sae, x_BD = random_top_k(6.0, use_pre_encoder_bias=uses_b_dec), random_rows()
  coeff = 0.5 * left_of(sae, x_BD)
  ours = loss_and_gradients_of('aux_k', sae, x_BD, aux_k_numbers(DEAD, coeff))
  assert ours[0][1][1].pre[:, DEAD].min() > 0
  module = top_k_of(sae, aux_loss_coefficient=0.5)
  assert_equal(
    ours,
    step_of(module, x_BD, dead=DEAD),
    {
      'squared_error': 'mse_loss',
      'loss/aux_k': 'auxiliary_reconstruction_loss',
    },
  )


def test_aux_k_of_few_dead_latents_is_scaled_down():
  few = np.isin(np.arange(16), [5])  # of the three that it would take
  sae, x_BD = random_top_k(6.0), random_rows()
  coeff = 0.5 * left_of(sae, x_BD)
  _, (metrics, _) = loss_of('aux_k', sae, x_BD, aux_k_numbers(few, coeff))
  output, _ = step_of(top_k_of(sae, aux_loss_coefficient=0.5), x_BD, dead=few)
  np.testing.assert_allclose(
    output.losses['auxiliary_reconstruction_loss'].item(),
    metrics['loss/aux_k'] / 3,
    rtol=1e-5,
  )


def test_aux_k_lets_negative_pre_activations_through():
  # All of the dead are far below zero: ours have no effect, theirs a large one.
  sae, x_BD = random_top_k(-6.0), random_rows()
  coeff = 0.5 * left_of(sae, x_BD)
  (_, (metrics, _)), ours = loss_and_gradients_of(
    'aux_k', sae, x_BD, aux_k_numbers(DEAD, coeff)
  )
  module = top_k_of(sae, aux_loss_coefficient=0.5)
  output, theirs = step_of(module, x_BD, dead=DEAD)
  np.testing.assert_allclose(metrics['loss/aux_k'], coeff, rtol=1e-6)
  assert output.losses['auxiliary_reconstruction_loss'].item() > 2 * coeff
  np.testing.assert_array_equal(ours.b_enc[DEAD], np.zeros(4))
  assert np.abs(theirs['b_enc'][DEAD]).min() > 0.1


@pytest.mark.parametrize('prefixes', [(), (3, 8, 16)])
@pytest.mark.parametrize('uses_b_dec', [True, False])
def test_batch_top_k_and_matryoshka_equal_saelens(uses_b_dec, prefixes):
  from sae_lens.saes import batchtopk_sae
  from sae_lens.saes import matryoshka_batchtopk_sae as matryoshka

  sae = random_of(topk.BatchTopK, k=4, use_pre_encoder_bias=uses_b_dec)
  x_BD = random_rows()
  ours = loss_and_gradients_of(
    'reconstruction',
    sae,
    x_BD,
    aux_k_numbers(None, 0.0) | {'prefixes': prefixes},
    reconstruct=objectives.nested if prefixes else objectives.whole,
  )
  cls = batchtopk_sae.BatchTopKTrainingSAE
  config_cls = batchtopk_sae.BatchTopKTrainingSAEConfig
  options = {'k': 4, 'rescale_acts_by_decoder_norm': False}
  if prefixes:
    cls = matryoshka.MatryoshkaBatchTopKTrainingSAE
    config_cls = matryoshka.MatryoshkaBatchTopKTrainingSAEConfig
    options['matryoshka_widths'] = list(prefixes)
  output, gradients = step_of(theirs(cls, config_cls, sae, **options), x_BD)
  # Of no dead latents, which is 0, and logged apart for each prefix.
  output.losses = {'mse_loss': output.losses['mse_loss']}
  assert_equal(ours, (output, gradients), {'squared_error': 'mse_loss'})


def test_batch_top_k_threshold_starts_at_its_first_value(make_run):
  """Both average the smallest activation with a decay of 0.99.

  SAELens' average begins at 0, and after n steps is too low by 0.99^n of it.
  """
  from sae_lens.saes import batchtopk_sae

  sae, x_BD = random_of(topk.BatchTopK, k=4), random_rows()
  module = theirs(
    batchtopk_sae.BatchTopKTrainingSAE,
    batchtopk_sae.BatchTopKTrainingSAEConfig,
    sae,
    k=4,
    rescale_acts_by_decoder_norm=False,
  )
  component = components.selection_threshold(make_run().objective)
  state = component.init(16)
  encoding = sae.forward(x_BD, ops.Jump(), 0.1)
  zero = jnp.zeros(())
  for _ in range(5):
    step_of(module, x_BD)
    observed = component.observe(encoding, None)
    seen = components.Seen(observed, None, zero, zero, zero, zero)
    state = component.after(state, seen)
  np.testing.assert_allclose(
    module.topk_threshold.item(),
    state['threshold'] * (1 - 0.99**5),
    rtol=1e-5,
  )


def test_jax_and_torch_are_compared_on_the_same_numbers():
  sae = random_of(jumprelu.RawThresholdJumpReLU)
  module = jumprelu_of(sae, 'step')
  names = {name for name, _ in module.named_parameters()}
  assert names == set(float64_params(sae))
  for name, parameter in module.named_parameters():
    np.testing.assert_array_equal(
      np.asarray(getattr(sae, name)), parameter.detach().numpy(), name
    )
  assert len(jax.tree.leaves(sae)) == len(names)
