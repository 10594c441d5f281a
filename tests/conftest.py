"""Settings and fixtures of all tests: CPU, eight devices, strict ranks."""

import os
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
# Before JAX is imported, and for the processes that tests start. Optimising
# programs that run for a moment would take most of the time; `XLA_FLAGS=
# pytest` tests them optimised as users have them.
os.environ['JAX_PLATFORMS'] = 'cpu'
_ENVIRONMENT = {
  'XLA_FLAGS': (
    '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false'
  ),
  'JAX_COMPILATION_CACHE_DIR': str(ROOT / '.pytest_cache' / 'd' / 'compiled'),
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1',
  'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
}
for _name, _value in _ENVIRONMENT.items():
  os.environ.setdefault(_name, _value)

import jax  # noqa: E402

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')

import json  # noqa: E402

from absl import flags  # noqa: E402
import pytest  # noqa: E402
import tokenizers  # noqa: E402

from configs import quickstart  # noqa: E402
from jumprelu_jax import config as config_lib  # noqa: E402
from jumprelu_jax.lm import gemma2  # noqa: E402
from jumprelu_jax.lm import huggingface  # noqa: E402
from jumprelu_jax.lm import transformer  # noqa: E402

if not flags.FLAGS.is_parsed():
  flags.FLAGS.mark_as_parsed()

#: Of each group; `pytest --durations=0` says how long each test takes.
LONGEST_FIRST = (
  'test_notebooks', 'test_chaos', 'test_preemption', 'test_hosts',
  'test_launchers', 'test_reproduce', 'test_contract', 'test_sparse',
  'test_families', 'test_evaluation', 'test_autointerp_chat', 'test_corrupted',
  'test_plot', 'test_transformer', 'test_autointerp_study', 'test_objectives',
  'test_api', 'test_topk', 'test_train', 'test_together', 'test_health',
)  # fmt: skip
MAPPINGS = pathlib.Path('/proc/self/maps')
TINY_LM = gemma2.architecture(
  vocab_size=40,
  hidden_size=16,
  intermediate_size=24,
  num_hidden_layers=2,
  num_attention_heads=2,
  num_key_value_heads=1,
  head_dim=6,
  max_position_embeddings=32,
  sliding_window=8,
  query_pre_attn_scalar=6.0,
  rms_norm_eps=1e-6,
)


def pytest_collection_modifyitems(items):
  """Starts with the longest files, so that none is left alone at the end."""
  order = {name: i for i, name in enumerate(LONGEST_FIRST)}
  items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope='module', autouse=True)
def few_memory_mappings():
  """Frees compiled programs before a process has too many memory mappings.

  Each program takes a few of the 65,530 that Linux gives a process, and XLA
  crashes beyond them.
  """
  yield
  if MAPPINGS.exists() and MAPPINGS.read_text().count('\n') > 30_000:
    jax.clear_caches()


@pytest.fixture(scope='session')
def make_run():
  """Returns a function from dotted overrides to a small RunConfig."""

  def make(**values):
    recipe = quickstart.get_config('quick')
    # Small enough for every number of latents that tests have.
    recipe.sae.k, recipe.objective.target_l0 = 2, 2.0
    run = config_lib.RunConfig.from_config_dict(recipe.to_dict())
    return run.with_values({k.replace('__', '.'): v for k, v in values.items()})

  return make


@pytest.fixture(scope='session')
def planted_run(make_run):
  """A RunConfig of eight steps, for `small_planted.PlantedShards`."""
  return make_run(
    sae__num_latents=48,
    sae__initial_threshold=0.1,
    objective__sparsity_coeff=0.02,
    objective__bandwidth=0.05,
    train__batch_size=64,
    train__steps=8,
    train__steps_per_log=2,
    train__steps_per_checkpoint=4,
    objective__sparsity_warmup_steps=0,
    optimizer__warmup_steps=2,
  )


@pytest.fixture(scope='session')
def tiny_lm(tmp_path_factory):
  """A model folder of a random Gemma 2 with one token for each letter."""
  folder = tmp_path_factory.mktemp('tiny_lm')
  words = ['<pad>', '<eos>', '<bos>', *'abcdefghijklmnopqrstuvwxyz .,!?\n']
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(
      {word: i for i, word in enumerate(words)}, unk_token='.'
    )
  )
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split('', 'isolated')
  model = transformer.init(TINY_LM, jax.random.key(0))
  huggingface.save(model, tokenizer, folder, dtype='float32')
  return folder


@pytest.fixture(scope='session')
def tiny_text(tmp_path_factory):
  """A JSON-lines file of forty short documents."""
  path = tmp_path_factory.mktemp('tiny_text') / 'text.jsonl'
  lines = [
    json.dumps({'text': f'document {chr(97 + i % 26)} says: ' + 'abc, ' * i})
    for i in range(40)
  ]
  path.write_text('\n'.join(lines) + '\n')
  return path


@pytest.fixture(scope='session')
def tiny_run(make_run, tiny_lm, tiny_text):
  """A RunConfig on the tiny model and text."""
  return make_run(
    lm__path=str(tiny_lm),
    lm__layer=1,
    text__harvest=str(tiny_text),
    text__heldout=str(tiny_text),
    text__context_length=16,
    activations__sequences_per_batch=8,
    activations__bucket_rows=1000,
    sae__num_latents=32,
    train__batch_size=64,
    train__steps=40,
    train__steps_per_log=10,
    train__steps_per_checkpoint=20,
    evaluation__sequences_per_batch=8,
  )


@pytest.fixture
def overrides(tiny_lm, tiny_text):
  """Flags of a small sweep on the tiny model, long enough to be killed."""
  values = {
    'lm.path': tiny_lm,
    'lm.layer': 1,
    'text.harvest': tiny_text,
    'text.heldout': tiny_text,
    'text.context_length': 16,
    'sae.num_latents': 32,
    'sae.k': 2,
    'objective.target_l0': 2,
    'train.batch_size': 64,
    'train.steps': 1500,
    'train.steps_per_log': 50,
    'train.steps_per_checkpoint': 100,
    'sweep.saes': 'jumprelu/l0/1e-3/1e-1',
  }
  config = ROOT / 'configs' / 'quickstart.py'
  return [f'--config={config}:quick'] + [
    f'--config.{key}={value}' for key, value in values.items()
  ]
