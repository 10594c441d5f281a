"""The benchmark's cases: what they print, and what they need."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow  # whole commands
# Beyond jax, flax, optax, orbax, numpy and absl, and what these bring.
FORBIDDEN = (
  'datasets', 'grain', 'ml_collections', 'tqdm', 'xxhash', 'transformers',
  'tokenizers', 'safetensors', 'matplotlib', 'tensorboardX', 'torch',
)  # fmt: skip
SHAPE = [
  '--batch=256',
  '--d_model=64',
  '--num_latents=512',
  '--l0=8',
  '--repeats=3',
]
# Stands in for an environment without them.
PROGRAM = f"""
import sys
for name in {FORBIDDEN}:
  sys.modules[name] = None
from absl import app
from experiments.benchmark import __main__ as benchmark
app.run(benchmark.main)
"""


def run(*arguments):
  return subprocess.run(
    [sys.executable, '-c', PROGRAM, *arguments],
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.parametrize(
  ('case', 'others'),
  [
    ('step', []),
    ('sparse', ['step']),
    ('sweep', ['alone', 'in_turns', 'one_program']),
    ('store', ['zarr3', 'npy']),
    ('harvest', ['forward']),
  ],
)
def test_each_case_needs_little_and_is_printed_last(case, others):
  done = run(case, *SHAPE)
  assert done.returncode == 0, done.stderr
  lines = [json.loads(line) for line in done.stdout.splitlines()]
  assert [line['case'] for line in lines] == [*others, case]
  for line in lines:
    assert line['min_ms'] <= line['median_ms'] <= line['max_ms']
    assert line['tokens_per_s'] == pytest.approx(
      256 / (line['median_ms'] / 1e3), rel=0.01
    )
    assert line['encoder_matmul_ms'] > 0
    assert line['peak_bytes'] > 0
    wanted = (256, 64, 512, 8.0, 'float32', 3, 'cpu')
    keys = (
      'batch', 'd_model', 'num_latents', 'l0', 'dtype', 'repeats', 'device',
    )  # fmt: skip
    assert tuple(line[key] for key in keys) == wanted
  if case in ('step', 'sparse'):
    assert lines[-1]['measured_l0'] == pytest.approx(8, rel=0.1)
    assert lines[-1]['is_sparse'] == (case == 'sparse')
    flops = 10 * 256 * 64 * 512
    assert lines[-1]['tflops'] == pytest.approx(
      flops / lines[-1]['median_ms'] * 1e-9, rel=0.05, abs=1e-4
    )


def test_unknown_case_is_named():
  done = run('speed')
  assert done.returncode != 0
  assert "'speed'" in done.stderr
  assert 'step, sparse, sweep, store, harvest' in done.stderr
