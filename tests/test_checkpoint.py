"""Checkpoints: what was saved, whatever becomes of the arrays afterwards."""

import functools

import jax
from jax import numpy as jnp
import numpy as np

from jumprelu_jax import checkpoint

SHAPE = (512, 1024)


@functools.partial(jax.jit, donate_argnums=0)
def next_state(state):
  return {'a': state['a'] + 1, 'n': state['n'] + 1}


def test_a_state_may_be_donated_while_it_is_written(tmp_path):
  state = {'a': jnp.zeros(SHAPE), 'n': jnp.int32(0)}
  saves = checkpoint.Checkpointer(tmp_path, keep=5)
  for step in range(1, 6):
    state = next_state(state)
    saves.save(step, state)
    for _ in range(20):  # in the same memory, while threads write
      state = next_state(state)
  saves.close()
  saves = checkpoint.Checkpointer(tmp_path, keep=5)
  assert saves.steps() == [1, 2, 3, 4, 5]
  for step in saves.steps():
    n = 21 * (step - 1) + 1
    restored = saves.restore(step, state)
    np.testing.assert_array_equal(restored['a'], np.full(SHAPE, n, 'float32'))
    assert int(restored['n']) == n
  saves.close()


def test_the_last_are_kept(tmp_path):
  saves = checkpoint.Checkpointer(tmp_path, keep=2)
  for step in (2, 4, 6):
    saves.save(step, {'a': jnp.full(3, float(step))})
  saves.close()
  again = checkpoint.Checkpointer(tmp_path)
  assert again.steps() == [4, 6]
  found = again.restore(4, {'a': jnp.zeros(3)})
  np.testing.assert_array_equal(found['a'], [4.0, 4.0, 4.0])
  again.close()
