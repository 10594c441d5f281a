"""The one pass over the text, which can be interrupted."""

from __future__ import annotations

import os
import pathlib
import time

import jax
import numpy as np

from jumprelu_jax import preemption
from jumprelu_jax import progress
from jumprelu_jax.lm import outliers
from jumprelu_jax.lm import sites
from jumprelu_jax.lm import transformer
from jumprelu_jax.records import encode
from jumprelu_jax.records import state as state_lib
from jumprelu_jax.sae import released

# Tokens after which all that waits is merged in. When that is done decides what
# token counts leave out, so it does not depend on when a run was interrupted.
_TOKENS_PER_SETTLING = 2**19
_SECONDS_PER_CHECKPOINT = 60.0


def gather(
  state: state_lib.State,
  model: transformer.Transformer,
  sae: released.Released,
  where: sites.Site,
  tokens_NL: np.ndarray,
  mesh: jax.sharding.Mesh,
  checkpoint: str | os.PathLike,
  limits: outliers.Limits = (),
) -> None:
  """Adds all of a text to a state.

  Every minute or so the state is written to a file; a run that was killed goes
  on from there and ends with the same bits.

  Args:
    state: new, of the settings that the checkpoint was made with.
    model: the language model, on the mesh.
    sae: raw activations in.
    where: what it reads.
    tokens_NL: packed text.
    mesh: of this process alone.
    checkpoint: the file.
    limits: of norms; see `encode.firings`.

  Raises:
    errors.InputError: the mesh does not divide the latents.
    preemption.PreemptedError: the process was asked to end.
  """
  checkpoint, (N, L) = pathlib.Path(checkpoint), tokens_NL.shape
  done = state.restore(checkpoint) if checkpoint.exists() else 0
  last_settled = done * L // _TOKENS_PER_SETTLING
  last_saved = time.monotonic()
  batches = encode.firings(
    model, sae, where, tokens_NL, mesh, done, limits=limits
  )
  with progress.track('records', N * L, 'tokens', done * L) as bar:
    for firings in batches:
      preemption.check(
        'the pass was stopped on request; the same command goes on from its '
        'last checkpoint, half a million tokens or a minute back.'
      )
      state.add(firings)
      bar.advance(firings.tokens_BL.size)
      done += len(firings.tokens_BL)
      if done * L // _TOKENS_PER_SETTLING == last_settled and done < N:
        continue
      last_settled = done * L // _TOKENS_PER_SETTLING
      state.settle()
      now = time.monotonic()
      if done == N or now - last_saved >= _SECONDS_PER_CHECKPOINT:
        state.save(checkpoint, done)
        last_saved = now
