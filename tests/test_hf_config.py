"""config.json as it is on the hub → the architecture that it means."""

import json
import pathlib

import numpy as np
import pytest
import transformers

from jumprelu_jax import errors
from jumprelu_jax.lm import hf_classes
from jumprelu_jax.lm import hf_config
from jumprelu_jax.lm import huggingface
from jumprelu_jax.lm import rope

# Config files and parameter counts as published on the hub.
HUB = json.loads(
  (pathlib.Path(__file__).parent / 'data' / 'hub_configs.json').read_text()
)


def architecture(name, **changes):
  return hf_config.architecture(HUB[name]['config'] | changes, name)


@pytest.mark.parametrize('name', HUB)
def test_parameters_are_as_many_as_published(name):
  count = huggingface.parameter_bytes(architecture(name), 'float32') // 4
  assert count == HUB[name]['parameters']


def test_gemma3_slides_on_five_of_six_layers():
  found = architecture('google/gemma-3-4b-pt')
  assert found.windows[:7] == (1024,) * 5 + (None, 1024)
  assert found.windows == architecture('google/gemma-3-4b-pt').windows
  table = [found.ropes[i] for i in found.rope_of_layer]
  assert table[5] == rope.Rope(1e6, 256, rope.LinearScaling(8.0))
  assert {table[i] for i in range(5)} == {rope.Rope(1e4, 256)}


def test_special_tokens_of_several_spellings():
  # Multimodal: said outside of the text's config; a list of ends.
  assert architecture('google/gemma-3-4b-pt').special_ids == (2, 1, 106, 0)
  # One token for all.
  assert architecture('openai-community/gpt2').special_ids == (50256,)
  no_bos = architecture('Qwen/Qwen2.5-0.5B', bos_token_id=None)
  assert no_bos.bos_id is None
  assert no_bos.pad_id == 151643


def test_qwen_slides_only_where_it_says_so():
  name = 'Qwen/Qwen2.5-0.5B'
  assert set(architecture(name).windows) == {None}
  sliding = architecture(name, use_sliding_window=True, max_window_layers=20)
  assert sliding.windows == (None,) * 20 + (32768,) * 4


@pytest.mark.parametrize(
  ('spelled', 'theta', 'scaling'),
  [
    ({'rope_theta': 7.0}, 7.0, None),
    (
      {'rope_parameters': {'rope_type': 'default', 'rope_theta': 7.0}},
      7.0,
      None,
    ),
    (
      {'rope_theta': 7.0, 'rope_scaling': {'type': 'linear', 'factor': 2.0}},
      7.0,
      rope.LinearScaling(2.0),
    ),
    (
      {
        'rope_parameters': {
          'rope_type': 'linear', 'factor': 2, 'rope_theta': 7.0,
        }
      },
      7.0,
      rope.LinearScaling(2.0),
    ),
  ],
  ids=['old', 'new', 'old_scaled', 'new_scaled'],
)  # fmt: skip
def test_rope_is_read_in_both_spellings(spelled, theta, scaling):
  values = dict(HUB['HuggingFaceTB/SmolLM2-135M-Instruct']['config'])
  del values['rope_theta'], values['rope_scaling']
  found = hf_config.architecture(values | spelled, 'config.json')
  assert found.ropes == (rope.Rope(theta, 64, scaling),)


@pytest.mark.parametrize(
  'spelled',
  [
    {'rotary_pct': 0.5, 'rotary_emb_base': 100},
    {
      'rope_parameters': {
        'rope_type': 'default',
        'rope_theta': 100,
        'partial_rotary_factor': 0.5,
      }
    },
  ],
  ids=['old', 'new'],
)
def test_partial_rotation_is_read_in_both_spellings(spelled):
  values = dict(HUB['EleutherAI/pythia-160m-deduped']['config'])
  del values['rotary_pct'], values['rotary_emb_base']
  found = hf_config.architecture(values | spelled, 'config.json')
  assert found.ropes == (rope.Rope(100.0, 32),)


def test_llama3_scaling_by_hand():
  # 2 pi x 40 / 40 positions: one turn in the original context is low's bound.
  scaling = rope.Llama3Scaling(8.0, 1.0, 4.0, 40)
  turns = np.asarray([0.5, 1.0, 2.5, 4.0, 9.0])
  frequency = (turns * 2 * np.pi / 40).astype('float32')
  kept = np.asarray([0, 0, 0.5, 1, 1])
  want = frequency * (kept + (1 - kept) / 8)
  np.testing.assert_allclose(scaling.apply(frequency), want, rtol=1e-6)


@pytest.mark.parametrize(
  ('name', 'changes', 'match'),
  [
    ('openai-community/gpt2', {'scale_attn_by_inverse_layer_idx': True},
     'inverse_layer_idx=True.*expected False'),
    ('openai-community/gpt2', {'activation_function': 'mish'},
     "activation 'mish'.*one of gelu"),
    ('google/gemma-2-2b', {'use_bidirectional_attention': True},
     'bidirectional_attention=True'),
    ('Qwen/Qwen3-0.6B', {'rope_scaling': {'rope_type': 'yarn', 'factor': 4.0}},
     "'yarn'.*default, linear or llama3"),
    ('Qwen/Qwen3-0.6B', {'num_key_value_heads': 3}, 'not a multiple of 3'),
    ('Qwen/Qwen3-0.6B', {'hidden_size': '1024'},
     "hidden_size='1024'.*type int"),
    ('meta-llama/Llama-3.1-8B', {'model_type': 'mistral'},
     "model_type='mistral'.*one of gemma2, .*qwen3"),
    ('meta-llama/Llama-3.1-8B', {'rope_scaling': {'rope_type': 'llama3'}},
     'rope_scaling lacks factor'),
    ('meta-llama/Llama-3.1-8B',
     {'rope_parameters': {'rope_type': 'default', 'rope_theta': 1e4,
                          'partial_rotary_factor': 0.5}},
     'partial_rotary_factor=0.5.*expected 1.0'),
    ('google/gemma-3-270m',
     {'rope_parameters': {'rope_type': 'default', 'rope_theta': 1e6}},
     'expected full_attention and sliding_attention'),
  ],
  ids=str,
)  # fmt: skip
def test_what_is_not_computed_is_refused(name, changes, match):
  with pytest.raises(errors.InputError, match=match):
    architecture(name, **changes)


@pytest.mark.parametrize('model_type', hf_classes.DEFAULTS)
def test_defaults_are_those_of_transformers_classes(model_type):
  theirs = transformers.CONFIG_MAPPING[model_type]()
  rope = getattr(theirs, 'rope_parameters', None) or {}
  spelled = {
    'rotary_pct': rope.get('partial_rotary_factor'),
    'rotary_emb_base': rope.get('rope_theta'),
    'sliding_window_pattern': 6,
    # These the class works out from the sizes.
    'num_key_value_heads': None if model_type == 'llama' else ...,
    'head_dim': None if model_type == 'llama' else ...,
  }
  for key, ours in hf_classes.DEFAULTS[model_type].items():
    want = spelled.get(key, ...)
    want = getattr(theirs, key) if want is ... else want
    if key == 'sliding_window' and model_type.startswith('qwen'):
      want = 4096  # None where nothing slides; see `hf_raw.qwen_windows`
    assert ours == want, key


@pytest.mark.parametrize(
  ('change', 'caps'),
  [
    ({}, (50.0, 30.0)),
    ({'attn_logit_softcapping': None}, (None, 30.0)),
    ({'final_logit_softcapping': None}, (50.0, None)),
    ({'attn_logit_softcapping': 7}, (7.0, 30.0)),
  ],
  ids=str,
)
def test_gemma2_has_caps_unless_its_file_says_null(change, caps):
  values = dict(HUB['google/gemma-2-2b']['config'])
  del values['attn_logit_softcapping'], values['final_logit_softcapping']
  found = hf_config.architecture(values | change, 'config.json')
  assert (found.attention_cap, found.logit_cap) == caps


def test_gpt2_is_read_by_its_other_names():
  name = 'openai-community/gpt2'
  found = architecture(name, num_attention_heads=6)
  assert (found.num_heads, found.head_dim) == (6, 128)
  # Of a class whose default ids are another vocabulary's.
  assert architecture(name, vocab_size=100).special_ids == ()


def test_gemma3_ties_its_head_by_the_outer_object():
  name = 'google/gemma-3-4b-pt'
  assert 'head_VD' not in architecture(name).optional
  untied = architecture(name, tie_word_embeddings=False)
  assert 'head_VD' in untied.optional


@pytest.mark.parametrize(
  ('name', 'changes', 'match'),
  [
    ('meta-llama/Llama-3.1-8B', {'logits_scaling': 2.0}, 'logits_scaling=2.0'),
    ('meta-llama/Llama-3.1-8B', {'is_causal': False}, 'is_causal=False'),
    ('meta-llama/Llama-3.1-8B', {'is_causal': None}, 'is_causal=None'),
    ('meta-llama/Llama-3.1-8B', {'per_layer_config': {'0': {}}}, 'per_layer'),
    ('Qwen/Qwen2.5-0.5B', {'layer_types': ['sliding_attention'] * 24},
     'lacks sliding_window'),
    ('EleutherAI/pythia-160m-deduped', {'rope_theta': 5.0}, 'rope_theta=5.0'),
    ('google/gemma-3-4b-pt', {'mm_gain': 2}, 'mm_gain=2 is not known'),
    ('openai-community/gpt2', {'n_layer': True}, 'expected type int'),
    ('openai-community/gpt2', {'layer_norm_epsilon': float('nan')}, 'nan'),
  ],
  ids=str,
)  # fmt: skip
def test_keys_that_would_change_the_model_are_named(name, changes, match):
  with pytest.raises(errors.InputError, match=match):
    architecture(name, **changes)
