"""Files that ask for too much, or decide too much: one error, before work."""

import io
import json
import pickle
import struct
import zipfile

from helpers import format_saes
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from jumprelu_jax import errors
from jumprelu_jax import json_files
from jumprelu_jax import run_folder
from jumprelu_jax import seals
from jumprelu_jax.exchange import details as details_lib
from jumprelu_jax.exchange import formats
from jumprelu_jax.exchange import hub
from jumprelu_jax.exchange import torch_zip
from jumprelu_jax.exchange import untrusted
from jumprelu_jax.lm import huggingface

D, M = format_saes.D, format_saes.M
DEEP = b'{"lm": ' + b'[' * 100_000 + b']' * 100_000 + b'}'


@pytest.mark.parametrize(
  ('content', 'match'),
  [
    (DEEP, 'nested'),
    (b'{"a": ' * 300 + b'1' + b'}' * 300, 'nested deeper than 64'),
    (b'[1, 2]', 'holds a list'),
    (b'"text"', 'holds a str'),
    (b'{"a": 1', 'delimiter'),
    (b'\x80abc', 'decode'),
    (b'', 'Expecting value'),
    (b'{"a": ' + b'9' * 5000 + b'}', 'digits'),
  ],
  ids=['deep', '300', 'list', 'text', 'cut', 'binary', 'empty', 'digits'],
)
def test_what_is_no_object_is_a_value_error(content, match):
  with pytest.raises(ValueError, match=match):
    json_files.parse_object(content)


def test_an_object_is_read_as_json_reads_it():
  value = {'a': [1, 2.5, None, {'b': 'ä'}]}
  assert json_files.parse_object(json.dumps(value)) == value


JSON_READERS = {
  'config.json of a run': ('config.json', run_folder.load_run),
  'config.json of a model': ('config.json', huggingface.load_architecture),
  'a seal': ('seal.json', seals.read),
  'details.json': ('details.json', formats.load),
  'cfg.json': ('cfg.json', formats.load),
}


@pytest.mark.parametrize('what', JSON_READERS)
def test_json_nested_too_deep_is_one_error(what, tmp_path):
  name, read = JSON_READERS[what]
  save_sae(tmp_path)
  if name == 'cfg.json':
    (tmp_path / 'params.npz').rename(tmp_path / 'sae_weights.safetensors')
  (tmp_path / name).write_bytes(DEEP)
  with pytest.raises(
    (errors.InputError, seals.BrokenSealError), match='nested'
  ):
    read(tmp_path)


def torch_file(path, program, **entries):
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('archive/data.pkl', program)
    for name, content in entries.items():
      archive.writestr(f'archive/data/{name}', content)
  return path


def test_a_memo_of_any_size_is_refused(tmp_path):
  """181 bytes: the unpickler would make a table of 4 GB."""
  index = pickle.LONG_BINPUT + struct.pack('<I', 2**29)
  program = pickle.PROTO + b'\x02' + pickle.EMPTY_DICT + index + pickle.STOP
  path = torch_file(tmp_path / 'ae.pt', program)
  assert path.stat().st_size < 200
  with pytest.raises(errors.InputError, match='a memo of 536,870,912 entries'):
    torch_zip.read(path)


@pytest.mark.parametrize(
  'program',
  [
    b'\x80\x02cos\nsystem\n.',
    b'\x80\x02}\x8a\x04\xff\xff\xff\x7fi\n.',
    b'\x80\x02(ios\nsystem\n.',
    b'\x80\x02\x95\xff\xff\xff\xff\xff\xff\xff\x7f}.',
    b'\x80\x04\x8f.',
    b'\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.',
  ],
  ids=['global', 'int', 'inst', 'frame', 'set', 'bytearray'],
)
def test_instructions_of_no_state_dict_are_refused(program, tmp_path):
  with pytest.raises(errors.InputError):
    torch_zip.read(torch_file(tmp_path / 'ae.pt', program))


def many_tensors(count, size):
  """A state dict of many views of one storage, as torch.save writes it."""
  flat = torch.zeros(size)
  file = io.BytesIO()
  torch.save({str(i): flat.view(size) for i in range(count)}, file)
  return file.getvalue()


def test_many_tensors_on_one_storage_are_refused(tmp_path, monkeypatch):
  """Before one of them is made: 1,000 times 4 MB here."""
  monkeypatch.setattr(torch_zip._Tensor, 'view', pytest.fail)
  path = tmp_path / 'ae.pt'
  path.write_bytes(many_tensors(1000, 2**20))
  with pytest.raises(errors.InputError, match='4,194,304,000 bytes share'):
    torch_zip.read(path)


def test_a_file_of_torch_is_read(tmp_path):
  arrays = {'a': torch.randn(3, 4), 'b': torch.arange(5)}
  arrays['c'] = torch.randn(6, 2).T  # a view with strides
  torch.save(arrays, tmp_path / 'ae.pt')
  found = torch_zip.read(tmp_path / 'ae.pt')
  assert list(found) == ['a', 'b', 'c']
  for name, array in arrays.items():
    np.testing.assert_array_equal(found[name], array.numpy())


@pytest.mark.parametrize('suffix', ['.npz', '.pt', '.safetensors'])
def test_names_and_shapes_are_checked_before_arrays_are_read(
  suffix, tmp_path, monkeypatch
):
  arrays = {'W_enc': np.zeros((3, 4), 'float32'), 'x': np.zeros(2, 'float32')}
  path = tmp_path / f'a{suffix}'
  if suffix == '.npz':
    np.savez_compressed(path, **arrays)
    monkeypatch.setattr(untrusted, '_read_npy', pytest.fail)
    read = untrusted.read_npz
  elif suffix == '.pt':
    torch_zip.write(path, arrays)
    monkeypatch.setattr(torch_zip, '_read_tensors', pytest.fail)
    read = torch_zip.read
  else:
    safetensors.numpy.save_file(arrays, path)
    read = untrusted.read_safetensors
  seen = {}

  def check(headers):
    seen.update({name: header.shape for name, header in headers.items()})
    raise errors.InputError('not wanted')

  with pytest.raises(errors.InputError, match='not wanted'):
    read(path, check)
  assert seen == {'W_enc': (3, 4), 'x': (2,)}


def test_an_npz_that_inflates_too_far_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(untrusted, '_LARGE_BYTES', 100_000)
  np.savez_compressed(tmp_path / 'params.npz', W_enc=np.zeros((300, 300)))
  with pytest.raises(errors.InputError, match='claim to be 720,'):
    untrusted.read_npz(tmp_path / 'params.npz')


def save_sae(folder, **changes):
  arrays = {**format_saes.maps(), 'threshold': np.ones(M, 'float32')}
  np.savez(folder / 'params.npz', **(arrays | changes))


def test_bfloat16_in_an_npz_is_named(tmp_path):
  W_enc = format_saes.maps()['W_enc'].astype(ml_dtypes.bfloat16)
  save_sae(tmp_path, W_enc=W_enc)
  with pytest.raises(errors.InputError, match='no name for bfloat16.*float32'):
    formats.load(tmp_path)


def test_float8_weights_of_an_sae_are_named(tmp_path):
  arrays = {name: torch.from_numpy(a) for name, a in format_saes.maps().items()}
  arrays['W_enc'] = arrays['W_enc'].to(torch.float8_e4m3fn)
  safetensors.torch.save_file(arrays, tmp_path / 'sae_weights.safetensors')
  (tmp_path / 'cfg.json').write_text('{"architecture": "standard"}')
  with pytest.raises(errors.InputError, match='W_enc has dtype F8_E4M3'):
    formats.load(tmp_path)


def test_float8_weights_of_a_model_are_named(tiny_lm, tmp_path):
  path = tmp_path / 'model.safetensors'
  weights = safetensors.torch.load_file(tiny_lm / 'model.safetensors')
  name = 'model.layers.0.mlp.up_proj.weight'
  weights[name] = weights[name].to(torch.float8_e4m3fn)
  weights[f'{name}_scale_inv'] = torch.ones(1)
  safetensors.torch.save_file(weights, path)
  (tmp_path / 'config.json').write_bytes((tiny_lm / 'config.json').read_bytes())
  with pytest.raises(
    errors.InputError, match=f'{name} has dtype F8_E4M3.*as it'
  ):
    huggingface.load(tmp_path)


@pytest.mark.parametrize(
  ('name', 'change', 'match'),
  [
    ('adapter_config.json', {}, 'holds an adapter.*merge it'),
    (
      'config.json',
      {'quantization_config': {'quant_method': 'fp8'}},
      'quantised.*bfloat16, float16',
    ),
    ('config.json', {'num_hidden_layers': 10**9}, 'expected 1 to 10,000'),
    ('config.json', {'num_hidden_layers': 10_000}, 'lacks tensor'),
    ('config.json', {'hidden_size': 2**40}, 'hidden_size=1099511627776'),
    ('config.json', {'auto_map': {'AutoModel': 'a.B'}}, 'auto_map.*remove'),
  ],
  ids=['adapter', 'fp8', 'layers', 'many_layers', 'size', 'code'],
)
def test_what_is_another_kind_of_model_is_named(
  name, change, match, tiny_lm, tmp_path
):
  for path in tiny_lm.iterdir():
    (tmp_path / path.name).write_bytes(path.read_bytes())
  path = tmp_path / name
  values = json.loads(path.read_text()) if path.exists() else {}
  path.write_text(json.dumps(values | change))
  with pytest.raises(errors.InputError, match=match):
    huggingface.load(tmp_path)


BAD_DETAILS = [
  {'layer': '/../../x'},
  {'layer': 3.5},
  {'layer': -2},
  {'site': '../../x'},
  {'site': 'a\nb: c'},
  {'target_site': '/etc'},
  {'model': 'a\n---\nlicense: mit'},
  {'model': '\x85x'},
  {'trained_as': 'a\n# b'},
  {'l0': 'many'},
  {'l0': float('inf')},
  {'context_length': 'x'},
  {'other': []},
]


@pytest.mark.parametrize('values', BAD_DETAILS, ids=str)
def test_details_are_names_and_numbers(values, tmp_path):
  """Of a file, and of what is about to be written."""
  save_sae(tmp_path)
  (tmp_path / 'details.json').write_text(json.dumps(values))
  (key,) = values
  with pytest.raises(errors.InputError, match=f'details.json: {key}='):
    formats.load(tmp_path)
  with pytest.raises(errors.InputError, match=f'{key}='):
    details_lib.Details(**values)


def test_a_card_has_no_line_that_a_file_chose(tmp_path):
  details = details_lib.Details(
    model='/home/x: [y]', site='resid_post', layer=3, trained_as='jumprelu'
  )
  where = hub.write_release(
    format_saes.SAES['jumprelu'],
    details,
    tmp_path,
    'someone/saes',
    format_name='gemma_scope',
    metrics={},
  )
  assert where.is_relative_to(tmp_path)
  front = (where / 'README.md').read_text().split('---')[1]
  assert front.split() == [
    'library_name:', 'jumprelu_jax', 'tags:', '[sparse-autoencoder,',
    'interpretability]',
  ]  # fmt: skip
