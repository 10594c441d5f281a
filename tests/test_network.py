"""With no id of the Hugging Face hub given, nothing is asked of the network."""

import json
import os
import socket
import time

import datasets
import numpy as np
import pyarrow
from pyarrow import parquet
import pytest

from jumprelu_jax import api
from jumprelu_jax import errors
from jumprelu_jax import inputs
from jumprelu_jax import run_folder
from jumprelu_jax import runs
from jumprelu_jax import sweeps
from jumprelu_jax.text import sources
from jumprelu_jax.text import tokens


@pytest.fixture
def asked(monkeypatch):
  """Whom the process would speak to; it is told that there is no network."""
  found = []

  def refuse(*args, **_):
    found.append(args[-1] if isinstance(args[0], socket.socket) else args[0])
    raise OSError('no network')

  monkeypatch.setattr(socket, 'getaddrinfo', refuse)
  for name in ('connect', 'connect_ex', 'sendto'):
    monkeypatch.setattr(socket.socket, name, refuse, raising=False)
  # As they are unless a variable or an earlier test has switched them off.
  monkeypatch.setattr(datasets.config, 'HF_UPDATE_DOWNLOAD_COUNTS', True)
  monkeypatch.setattr(datasets.config, 'HF_HUB_OFFLINE', False)
  return found


def test_the_hook_hears_the_network(asked):
  with pytest.raises(OSError, match='no network'):
    socket.create_connection(('localhost', 9))
  assert asked == ['localhost']


@pytest.fixture
def texts(tmp_path):
  """Sources of every kind, joined by commas."""
  rows = [{'text': f'document {i} says abc. ' * 5} for i in range(20)]
  (tmp_path / 'a.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  (tmp_path / 'b.txt').write_text('plain text, nothing else. ' * 40)
  parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / 'c.parquet')
  datasets.Dataset.from_list(rows).save_to_disk(tmp_path / 'saved')
  names = ('a.jsonl', 'b.txt', 'c.parquet', 'saved')
  return ','.join(str(tmp_path / name) for name in names)


def test_a_run_on_local_files_asks_nothing(tiny_run, texts, tmp_path, asked):
  run = tiny_run.with_values(
    {
      'sweep.saes': ['jumprelu/l0/1e-3'],
      'train.steps': 20,
      'text.harvest': texts,
      'text.heldout': texts,
      'activations.sequences': 60,
    }
  )
  swept = sweeps.expand(run)
  run_folder.claim(tmp_path / 'run', run)
  prepared = inputs.prepare(next(iter(swept.values())))
  (row,) = runs.run_all(prepared, swept, tmp_path / 'run')
  assert np.isfinite(row['kl'])
  (name,) = swept
  sae = api.load_sae(tmp_path / 'run' / name)
  lm = api.load_lm(run.lm.path)
  assert np.isfinite(lm.splice('abc', sae)).all()
  assert asked == []


def test_a_chat_template_asks_nothing(tiny_lm, tmp_path, asked):
  for path in tiny_lm.iterdir():
    (tmp_path / path.name).write_bytes(path.read_bytes())
  (tmp_path / 'chat_template.jinja').write_text('{{ messages[0].content }}')
  render = tokens.chat_renderer(tmp_path)
  assert render([{'role': 'user', 'content': 'abc'}]) == 'abc'
  assert asked == []


def test_a_hub_dataset_is_not_a_local_folder_of_its_name(
  tmp_path, monkeypatch, asked
):
  monkeypatch.chdir(tmp_path)
  os.makedirs('owner/name')
  with open('owner/name/a.jsonl', 'w') as file:
    file.write('{"text": "from the folder"}\n')
  here = sources.read(sources.Source('owner/name'))
  assert list(here) == ['from the folder']
  assert asked == []
  monkeypatch.setattr(time, 'sleep', lambda _: None)  # it tries again
  with pytest.raises(errors.InputError, match='from the Hugging Face hub'):
    sources.read(sources.Source('hf://datasets/owner/name'))
  assert asked
