"""Times that are measured in turns, and the lines that they are printed as."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
import resource
import time
from typing import Any

import jax
from jax import numpy as jnp
import numpy as np

from experiments.benchmark import shapes
from jumprelu_jax import ops

Line = dict[str, Any]
#: Does a piece of work once; what it returns is waited for.
Work = Callable[[], Any]


def in_turns(works: Mapping[str, Work], repeats: int) -> dict[str, list[float]]:
  """Returns each work's times in seconds, all measured in every round."""
  for work in works.values():
    jax.block_until_ready(work())
    jax.block_until_ready(work())
  seconds = {name: [] for name in works}
  for _ in range(repeats):
    for name, work in works.items():
      began = time.perf_counter()
      jax.block_until_ready(work())
      seconds[name].append(time.perf_counter() - began)
  return seconds


def beside_encoder(
  shape: shapes.Shape, works: Mapping[str, Work]
) -> tuple[list[float], dict[str, list[float]]]:
  """Returns the times of the encoder's product alone, and of each work."""
  encoder = jax.jit(functools.partial(ops.matmul, compute_dtype=shape.dtype))
  key = jax.random.key(1)
  W_DM = jax.random.normal(key, (shape.d_model, shape.num_latents))
  x_BD = jnp.asarray(shape.rows())
  product = functools.partial(encoder, x_BD, W_DM)
  seconds = in_turns({'encoder': product, **works}, shape.repeats)
  return seconds.pop('encoder'), seconds


def line(
  case: str,
  shape: shapes.Shape,
  seconds: list[float],
  encoder_s: list[float],
  saes: int | None = 1,
) -> Line:
  """Returns what is known of every case.

  Args:
    case: its name.
    shape: what was measured.
    seconds: times of a batch.
    encoder_s: times of the encoder's product in the same rounds.
    saes: that a batch trained; None for work that is no training.
  """
  median, ratios = np.median(seconds), np.array(seconds) / np.array(encoder_s)
  found = {
    'case': case,
    **dataclasses.asdict(shape),
    'device': jax.devices()[0].device_kind,
    'jax': jax.__version__,
    'median_ms': _ms(median),
    'min_ms': _ms(min(seconds)),
    'max_ms': _ms(max(seconds)),
    'tokens_per_s': round(shape.batch / median),
    'encoder_matmul_ms': _ms(np.median(encoder_s)),
    'ratio_to_encoder_matmul': round(float(np.median(ratios)), 3),
    'peak_bytes': _used_bytes(),
  }
  if saes is not None:
    flops = 10 * saes * shape.batch * shape.d_model * shape.num_latents
    found['tflops'] = round(flops / median / 1e12, 4)
  return found


def peak_bytes(compiled: jax.stages.Compiled) -> int:
  """Returns the bytes that a program takes at its peak, as XLA plans them."""
  analysis = compiled.memory_analysis()
  return int(
    analysis.argument_size_in_bytes
    + analysis.output_size_in_bytes
    - analysis.alias_size_in_bytes
    + analysis.temp_size_in_bytes
  )


def _used_bytes():
  """Returns what this process has used of its device's memory at most."""
  stats = jax.devices()[0].memory_stats() or {}
  resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
  return stats.get('peak_bytes_in_use', resident)


def _ms(seconds):
  return float(f'{1e3 * float(seconds):.4g}')
