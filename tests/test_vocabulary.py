"""Token ids that a model has no embedding for are refused where they occur."""

import dataclasses
import json

import hypothesis
from hypothesis import strategies
import numpy as np
import pytest
import tokenizers

from jumprelu_jax import api
from jumprelu_jax import errors
from jumprelu_jax import evaluation
from jumprelu_jax import inputs
from jumprelu_jax.lm import huggingface
from jumprelu_jax.lm import sites

V, KNOWN = 40, 35  # embeddings of the tiny model, tokens of its tokenizer


@pytest.fixture(scope='module')
def lm(tiny_lm):
  return api.load_lm(tiny_lm)


@pytest.fixture(scope='module')
def changed_lm(tiny_lm, tmp_path_factory):
  """Returns a function from a number of added tokens to the model's folder."""
  folder = tmp_path_factory.mktemp('changed_lm')
  for path in tiny_lm.iterdir():
    (folder / path.name).write_bytes(path.read_bytes())

  def change(added):
    tokenizer = tokenizers.Tokenizer.from_file(str(tiny_lm / 'tokenizer.json'))
    tokenizer.add_special_tokens([f'<{i}>' for i in range(added)])
    tokenizer.save(str(folder / 'tokenizer.json'))
    return folder

  return change


def has_embedding(ids):
  """Whether NumPy finds rows of ids; torch and transformers, the same."""
  try:
    np.zeros(V)[np.asarray(ids)]
  except IndexError:
    return False
  return True


def is_refused(call):
  """Whether a call raises the one error that names the ids of the model."""
  try:
    call()
  except errors.InputError as error:
    return 'which has embeddings for 0 to 39; give the tok' in str(error)
  return False


@hypothesis.settings(
  max_examples=20,
  deadline=None,
  derandomize=True,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(
  # The first five of the tokens that are added have rows that pad the matrix.
  added=strategies.integers(0, 9),
  parts=strategies.lists(
    strategies.sampled_from(['a', 'bc', *(f'<{i}>' for i in range(9))]),
    min_size=1,
    max_size=4,
  ),
  as_ids=strategies.booleans(),
)
def test_an_id_is_refused_where_it_occurs(
  lm, changed_lm, tiny_run, tmp_path, added, parts, as_ids
):
  folder = changed_lm(added)
  tokenizer = huggingface.load_tokenizer(folder)
  text = ''.join(parts)
  ids = tokenizer.encode(text, add_special_tokens=False).ids
  wanted = not has_embedding(ids)

  notebook = dataclasses.replace(lm, tokenizer=tokenizer)
  assert is_refused(lambda: notebook.tokens(text)) == wanted

  document = ids if as_ids else text
  path = tmp_path / 'text.jsonl'
  path.write_text(json.dumps({'text': document}) + '\n')
  run = tiny_run.with_values(
    {
      'lm.path': str(folder),
      'text.harvest': str(path),
      'text.heldout': str(path),
    }
  )
  prepared = inputs.prepare(run)
  assert is_refused(lambda: list(prepared.heldout_rows())) == wanted
  sequences = tmp_path / 'sequences.npy'
  for left in tmp_path.glob('sequences.*'):
    left.unlink()
  assert is_refused(lambda: prepared.plan(sequences)) == wanted


@pytest.mark.parametrize('wrong', [V, V + 7, -1, 2**31 - 1], ids=str)
def test_ids_of_arrays_are_refused(lm, wrong):
  row = np.full((1, 3), 5)
  row[0, 1] = wrong
  with pytest.raises(errors.InputError, match=f'token id {wrong} is not in'):
    lm.run(row)
  setting = evaluation.Setting(lm.model, row, sites.Site('resid_post', 0), 1)
  with pytest.raises(errors.InputError, match=f'token id {wrong} is not in'):
    evaluation.measure_baseline(setting)


def test_sequences_of_an_earlier_version_are_refused(tiny_run, tmp_path):
  prepared = inputs.prepare(tiny_run)
  tap = prepared.tap((sites.Site('resid_post', 0),))
  with pytest.raises(errors.InputError, match='token id 41 is not in the mod'):
    tap(np.full((8, 16), 41, np.int32))


def test_the_message_names_the_token(lm, changed_lm):
  tokenizer = huggingface.load_tokenizer(changed_lm(6))
  notebook = dataclasses.replace(lm, tokenizer=tokenizer)
  with pytest.raises(errors.InputError, match=r"token id 40 \('<5>'\) is not"):
    notebook.run('a<5>b')


def test_a_long_text_in_a_notebook_is_too_long_and_no_more(lm):
  with pytest.raises(errors.InputError, match='300001 tokens; the model reads'):
    lm.tokens('abc' * 100_000)


@pytest.mark.parametrize('padding', [-1, V, None], ids=str)
def test_padding_is_a_token_that_the_model_has(tiny_lm, tmp_path, padding):
  config = json.loads((tiny_lm / 'config.json').read_text())
  config |= {'pad_token_id': padding}
  (tmp_path / 'config.json').write_text(json.dumps(config))
  assert huggingface.load_architecture(tmp_path).pad_id == 1  # EOS


def test_a_bos_that_the_text_has_is_not_repeated(lm, changed_lm):
  tokenizer = huggingface.load_tokenizer(changed_lm(0))
  tokenizer.add_special_tokens(['<bos>'])
  notebook = dataclasses.replace(lm, tokenizer=tokenizer)
  assert notebook.tokens('abc').tolist() == [[2, 3, 4, 5]]
  assert notebook.tokens('<bos>abc').tolist() == [[2, 3, 4, 5]]
  assert notebook.tokens('<bos><bos>a').tolist() == [[2, 2, 3]]
