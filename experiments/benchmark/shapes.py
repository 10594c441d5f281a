"""What shape is measured: flags that all cases share."""

from __future__ import annotations

import dataclasses

from absl import flags
import numpy as np

from configs import defaults
from jumprelu_jax import config as config_lib

_BATCH = flags.DEFINE_integer('batch', 2048, 'Rows of a batch.')
_D_MODEL = flags.DEFINE_integer('d_model', 576, 'Size of an activation.')
_NUM_LATENTS = flags.DEFINE_integer('num_latents', 9216, 'Latents.')
_L0 = flags.DEFINE_float('l0', 40.0, 'Mean number of active latents.')
_DTYPE = flags.DEFINE_enum(
  'dtype', 'float32', ['float32', 'bfloat16'], "Of products' inputs."
)
_REPEATS = flags.DEFINE_integer('repeats', 10, 'Rounds that are measured.')


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

  def rows(self, seed: int = 0) -> np.ndarray:
    """Returns random activations of unit mean squared norm."""
    rng = np.random.default_rng(seed)
    x_BD = rng.normal(size=(self.batch, self.d_model)) / self.d_model**0.5
    return x_BD.astype('float32')


def of_flags() -> Shape:
  """Returns the shape that the flags ask for."""
  return Shape(
    batch=_BATCH.value,
    d_model=_D_MODEL.value,
    num_latents=_NUM_LATENTS.value,
    l0=_L0.value,
    dtype=_DTYPE.value,
    repeats=_REPEATS.value,
  )
