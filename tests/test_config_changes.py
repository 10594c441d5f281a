"""One key of a config.json changed: computed as transformers, or refused."""

import functools
import json

from helpers import config_changes
from helpers import families
import jax
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from jumprelu_jax import errors
from jumprelu_jax.lm import hf_config
from jumprelu_jax.lm import huggingface
from jumprelu_jax.lm import transformer

TOKENS_BL = families.tokens(length=24)


@functools.cache
def reference_of(model_type):
  """A random model of transformers, its config.json and its logits."""
  model = families.make(config_changes.CASES[model_type])
  config = model.config.to_dict() | {'architectures': None}
  config = json.loads(json.dumps(config, default=str))
  return model, config, families.run(model, TOKENS_BL, {})


def compute_with(model_type, config):
  """transformers' logits of the same weights; None if it refuses the config."""
  model, *_ = reference_of(model_type)
  try:
    changed = type(model.config).from_dict(config)
    other = transformers.AutoModelForCausalLM.from_config(
      changed, attn_implementation='eager', dtype=torch.float32
    ).eval()
    missing, unexpected = other.load_state_dict(
      model.state_dict(), strict=False
    )
    if missing or unexpected:
      return None
    return families.run(other, TOKENS_BL, {})
  except Exception:  # whatever transformers makes of it
    return None


@pytest.mark.parametrize('model_type', config_changes.CASES)
def test_what_transformers_reads_is_read_or_refused(model_type):
  """A change of its logits is a change of our architecture.

  Some changes of each family; all of their logits are compared by the slow
  test below.
  """
  _, config, base_BLV = reference_of(model_type)
  ours = hf_config.architecture(config, 'config.json')
  for said, changed in config_changes.draw_changes(config, 24, model_type):
    try:
      found = hf_config.architecture(changed, 'config.json')
    except errors.InputError:
      continue
    if found.optional != ours.optional or found.sizes() != ours.sizes():
      continue  # other weights: refused when they are looked at
    want_BLV = compute_with(model_type, changed)
    assert want_BLV is not None, said
    if np.abs(want_BLV - base_BLV).max() > 1e-5 * np.abs(base_BLV).max():
      assert found != ours, said


@jax.jit
def compute_logits(model, tokens_BL):
  with jax.default_matmul_precision('highest'):
    return transformer.logits(model, tokens_BL)


def load_reference(folder):
  """transformers' model of a folder; None if it refuses or makes up weights."""
  try:
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
      folder,
      attn_implementation='eager',
      dtype=torch.float32,
      output_loading_info=True,
    )
  except Exception:  # whatever transformers makes of it
    return None
  return None if any(info.values()) else model.eval()


@pytest.mark.slow
@pytest.mark.parametrize('model_type', config_changes.CASES)
def test_forty_changes_are_computed_as_in_transformers(model_type, tmp_path):
  model, _, _ = reference_of(model_type)
  model.save_pretrained(tmp_path)
  path = tmp_path / 'config.json'
  config = json.loads(path.read_text())
  computed = 0
  for said, changed in config_changes.draw_changes(config, 40, 0):
    path.write_text(json.dumps(changed))
    try:
      ours = huggingface.load(tmp_path)
    except errors.InputError:
      continue
    theirs = load_reference(tmp_path)
    assert theirs is not None, said
    families.assert_close(
      compute_logits(ours, TOKENS_BL),
      families.run(theirs, TOKENS_BL, {}),
      err_msg=said,
    )
    computed += 1
  assert computed > 8


@pytest.mark.parametrize('is_its_own', [False, True])
@pytest.mark.parametrize('model_type', config_changes.CASES)
def test_head_in_the_file_of_a_tied_model(model_type, is_its_own, tmp_path):
  """transformers keeps a head that differs from the embedding."""
  case = config_changes.CASES[model_type]
  model = families.make(case, tie_word_embeddings=True)
  model.save_pretrained(tmp_path)
  path = tmp_path / 'model.safetensors'
  weights = safetensors.torch.load_file(path)
  embed = model.get_input_embeddings().weight.detach()
  head = 'embed_out.weight' if model_type == 'gpt_neox' else 'lm_head.weight'
  weights[head] = embed.flip(0).clone() if is_its_own else embed.clone()
  safetensors.torch.save_file(weights, path, metadata={'format': 'pt'})
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, attn_implementation='eager', dtype=torch.float32
  ).eval()
  want_BLV = families.run(theirs, TOKENS_BL, {})
  tied_BLV = families.run(model, TOKENS_BL, {})
  assert (np.abs(want_BLV - tied_BLV).max() > 0.1) == is_its_own
  ours = huggingface.load(tmp_path)
  assert (ours.head_VD is not None) == is_its_own
  families.assert_close(compute_logits(ours, TOKENS_BL), want_BLV)
