"""A text of random tokens and latents whose explanations are known."""

import numpy as np

from helpers import written_records

#: Latents of `make`.
TOKEN, BIGRAM, DEAD, RARE, ALWAYS, OTHER = range(6)


#: A token that is nowhere unless it is planted.
PLANTED = 40


def make(
  folder, *, sequences=40, length=64, more=0, seed=0, planted=None, **options
):
  """Writes the records of a small world.

  TOKEN fires with 2 at token 3, OTHER with 5 at token 7, BIGRAM with 1 at token
  5 after token 4, DEAD never, RARE twice, ALWAYS with 1 everywhere; `more`
  latents fire at tokens 8, 9, … of 40. PLANTED is put at the sequence and
  position `planted`.
  """
  rng = np.random.default_rng(seed)
  tokens_NL = rng.integers(40, size=(sequences, length))
  # Pairs that are seen often, whose second token is seen alone as well.
  at = rng.random(tokens_NL[:, 1:].shape) < 0.5
  tokens_NL[:, 1:][(tokens_NL[:, :-1] == 4) & at] = 5
  if planted is not None:
    tokens_NL[planted] = PLANTED
  f_MNL = np.zeros((6 + more, *tokens_NL.shape))
  f_MNL[TOKEN] = 2 * (tokens_NL == 3)
  f_MNL[OTHER] = 5 * (tokens_NL == 7)
  after = np.roll(tokens_NL, 1, axis=1) == 4
  after[:, 0] = False
  f_MNL[BIGRAM] = after & (tokens_NL == 5)
  f_MNL[RARE, 0, 10] = f_MNL[RARE, 1, 20] = 1
  f_MNL[ALWAYS] = 1
  for i in range(more):
    f_MNL[6 + i] = tokens_NL == 8 + i
  return written_records.write(folder, tokens_NL, f_MNL, **options)
