"""What people call in notebooks, against sums written out in NumPy."""

import dataclasses

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from jumprelu_jax import api
from jumprelu_jax import errors
from jumprelu_jax.exchange import details as details_lib
from jumprelu_jax.lm import sites
from jumprelu_jax.lm import transformer
from jumprelu_jax.sae import released

D, M, V = 16, 12, 40
SITE = sites.Site('resid_post', 0)
TEXT = 'abcabd'


def draw(*shape, seed):
  values = np.random.default_rng([seed, *shape]).normal(size=shape)
  return values.astype('float32')


@pytest.fixture(scope='module')
def lm(tiny_lm):
  return api.load_lm(tiny_lm)


@pytest.fixture(scope='module')
def arrays():
  return {
    'W_enc': draw(D, M, seed=1),
    'b_enc': draw(M, seed=2),
    'W_dec': draw(M, D, seed=3),
    'b_dec': draw(D, seed=4),
    'threshold': np.abs(draw(M, seed=5)),
  }


@pytest.fixture(scope='module')
def sae(arrays):
  on_device = {name: jnp.asarray(array) for name, array in arrays.items()}
  details = details_lib.Details(site='resid_post', layer=0)
  return api.SAE(released.SAE(**on_device), details)


@pytest.fixture(scope='module')
def ids(lm):
  return lm.tokens(TEXT)


@pytest.fixture(scope='module')
def x_BLD(lm, ids):
  # By another way than `run`: the residual stream after one block.
  return np.asarray(transformer.residual(lm.model, jnp.asarray(ids), {}, 1))


def encoded(arrays, x):
  pre = x @ arrays['W_enc'] + arrays['b_enc']
  return np.where(pre > arrays['threshold'], np.maximum(pre, 0), 0)


def logits_from(lm, x_BLD):
  """Logits of the blocks after the first, of a residual stream after it."""
  ends_BLD = transformer.run_blocks(lm.model, jnp.asarray(x_BLD), {}, 1)
  return np.asarray(transformer.unembed(lm.model, ends_BLD))


def near(got, want):
  np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


def test_encode_decode_and_call(sae, arrays):
  x = draw(2, 3, D, seed=6)
  f = encoded(arrays, x)
  assert 0 < (f > 0).mean() < 1
  near(sae.encode(x), f)
  near(sae.decode(f), f @ arrays['W_dec'] + arrays['b_dec'])
  near(sae(x), f @ arrays['W_dec'] + arrays['b_dec'])
  assert sae.encode(x[0, 0]).shape == (M,)
  assert sae.num_latents == M


def test_tokens_begin_with_bos_and_end_with_padding(lm):
  architecture = lm.model.architecture
  one, two = lm.tokens(['ab', 'abcd'])
  assert one[0] == two[0] == architecture.bos_id
  assert one[3:].tolist() == [architecture.pad_id] * 2
  assert lm.words(one[1:3]) == ['a', 'b']


def test_run_gives_logits_and_taps(lm, ids, x_BLD):
  logits_BLV, tapped_BLD = lm.run(TEXT, 'resid_post/0')
  near(tapped_BLD, x_BLD)
  near(logits_BLV, logits_from(lm, x_BLD))
  assert logits_BLV.shape == (1, len(TEXT) + 1, V)
  near(lm.run(ids, SITE)[1], x_BLD)


def test_splice_puts_the_reconstruction_in(lm, sae, arrays, x_BLD):
  x_hat = encoded(arrays, x_BLD) @ arrays['W_dec'] + arrays['b_dec']
  near(lm.splice(TEXT, sae), logits_from(lm, x_hat))


def test_ablating_a_latent_leaves_the_error_in(lm, sae, arrays, x_BLD):
  f = encoded(arrays, x_BLD)
  latent = int(f.sum(axis=(0, 1)).argmax())
  without = x_BLD - f[..., latent, None] * arrays['W_dec'][latent]
  near(lm.ablate(TEXT, sae, latent), logits_from(lm, without))


def test_steering_adds_a_decoder_row(lm, sae, arrays, x_BLD):
  steered = x_BLD + 2.5 * arrays['W_dec'][3]
  near(lm.steer(TEXT, sae, 3, 2.5), logits_from(lm, steered))


def test_attribution_is_the_first_order_effect(lm, sae, arrays, ids, x_BLD):
  """By central differences: each latent's part scaled a little up and down."""
  token, position = 7, -2
  f_BLM = encoded(arrays, x_BLD)
  found_LM = np.asarray(lm.attribution(TEXT, sae, token, position))
  at, latent = np.argwhere(f_BLM[0] > 0)[3]
  part_D = f_BLM[0, at, latent] * arrays['W_dec'][latent]

  def logit(scale):
    moved = x_BLD.copy()
    moved[0, at] += scale * part_D
    return logits_from(lm, moved)[0, position, token]

  step = 1e-2
  slope = (logit(step) - logit(-step)) / (2 * step)
  assert found_LM[at, latent] == pytest.approx(slope, rel=2e-2, abs=1e-4)
  assert not found_LM[f_BLM[0] == 0].any()


def test_promoted_reads_the_decoder_row_through_the_unembedding(lm, sae):
  model = lm.model
  row_D = np.asarray(sae.weights.W_dec[5], 'float64')
  gain_D = 1 + np.asarray(model.final_norm_D, 'float64')
  effect_V = np.asarray(model.embed_VD, 'float64') @ (row_D * gain_D)
  best = np.argsort(-effect_V)[:4]
  words, values = zip(*lm.promoted(sae, 5, count=4), strict=True)
  assert list(words) == lm.words(best)
  near(values, effect_V[best])


def test_generation_takes_the_likeliest_token_each_time(lm):
  tokens = lm.tokens(TEXT)[0].tolist()
  for _ in range(4):
    logits = transformer.logits(lm.model, jnp.asarray([tokens]))[0, -1]
    tokens.append(int(np.argmax(logits)))
  want = lm.tokenizer.decode(tokens[len(TEXT) + 1 :])
  assert lm.generate(TEXT, 4) == want


def test_generation_is_steered(lm, sae):
  token = 11
  # Of unbounded strength: the direction of a token's own unembedding.
  away = dataclasses.replace(
    sae,
    weights=sae.weights.replace(
      W_dec=jnp.tile(lm.model.embed_VD[token], (M, 1))
    ),
    details=details_lib.Details(site='resid_post', layer=1),
  )
  steering = lm.steering(away, 0, strength=1e4)
  text = lm.generate(TEXT, 3, away.site, steering)
  assert text == lm.tokenizer.decode([token] * 3)
  assert text != lm.generate(TEXT, 3)


def test_draws_follow_the_logits_and_the_seed(lm):
  texts = {lm.generate('a', 6, temperature=3.0, seed=seed) for seed in range(4)}
  assert len(texts) > 1
  again = lm.generate('a', 6, temperature=3.0, seed=2)
  assert again == lm.generate('a', 6, temperature=3.0, seed=2)
  assert lm.generate('a', 6, temperature=1e-6) == lm.generate('a', 6)


def wide(sae):
  wider = jnp.zeros((D + 1, M))
  return dataclasses.replace(sae, weights=sae.weights.replace(W_enc=wider))


def nowhere(sae):
  return dataclasses.replace(sae, details=details_lib.Details(site='here'))


MISTAKES = {
  'width': (lambda lm, sae: sae.encode(np.zeros((2, 5))), 'expected [..., 16]'),
  'scalar': (lambda lm, sae: sae.encode(1.0), 'expected [..., 16]'),
  'latent': (lambda lm, sae: lm.steer('a', sae, M, 1.0), '0 to 11'),
  'model': (lambda lm, sae: lm.splice('a', wide(sae)), 'size 17'),
  'place': (lambda lm, sae: lm.splice('a', nowhere(sae)), "'here'"),
  'layer': (lambda lm, sae: lm.run('a', 'resid_post/9'), 'has layers 0 to 1'),
  'words': (lambda lm, sae: lm.attribution('a', sae, 'ab'), '2 tokens'),
  'ids': (lambda lm, sae: lm.run(np.zeros(3, int)), '[B, L]'),
  'id': (lambda lm, sae: lm.run(np.full((1, 3), V)), '0 to 39'),
  'floats': (lambda lm, sae: lm.run(np.zeros((1, 3))), 'float'),
  'long': (lambda lm, sae: lm.run('a' * 99), '100 tokens'),
  'more': (lambda lm, sae: lm.generate('a', 99), 'at most 32'),
  'nothing': (lambda lm, sae: lm.run([]), 'no text'),
}


@pytest.mark.parametrize('name', MISTAKES)
def test_mistakes_are_told(lm, sae, name):
  mistake, told = MISTAKES[name]
  with pytest.raises(errors.InputError) as error:
    mistake(lm, sae)
  assert told in str(error.value)


def test_they_go_through_transformations(sae, arrays):
  x_BD = draw(4, D, seed=8)
  got = jax.jit(lambda weights, x: weights(x))(sae.weights, x_BD)
  near(got, encoded(arrays, x_BD) @ arrays['W_dec'] + arrays['b_dec'])


def test_what_is_shipped_fits_together():
  lm, sae = api.load_lm(), api.load_sae('embedded')
  logits_BLV, x_BLD = lm.run('The Congress of the United States', sae.site)
  error = np.square(sae(x_BLD) - x_BLD)[0, 1:].sum()
  spread = np.square(x_BLD - x_BLD.mean(axis=1, keepdims=True))[0, 1:].sum()
  assert error / spread < 0.3
  spliced_BLV = lm.splice('The Congress of the United States', sae)
  assert spliced_BLV.shape == logits_BLV.shape
