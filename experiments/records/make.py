"""From a request to a folder of records."""

import dataclasses
import pathlib

import numpy as np
import xxhash

from configs import common
from jumprelu_jax import api
from jumprelu_jax import config as config_lib
from jumprelu_jax import embedded
from jumprelu_jax import errors
from jumprelu_jax import identity
from jumprelu_jax import inputs as inputs_lib
from jumprelu_jax import run_folder
from jumprelu_jax import whole
from jumprelu_jax.exchange import hub
from jumprelu_jax.exchange import own
from jumprelu_jax.exchange import weights
from jumprelu_jax.lm import huggingface
from jumprelu_jax.lm import sites
from jumprelu_jax.records import encode
from jumprelu_jax.records import gather
from jumprelu_jax.records import schema
from jumprelu_jax.records import state as state_lib
from jumprelu_jax.records import write
from jumprelu_jax.text import sequences
from jumprelu_jax.text import tokens

# In the folder of records; the first two until it is whole.
_SEQUENCES, _CHECKPOINT, _REQUEST = 'sequences.npy', 'state.npz', 'request.json'
_HARVEST = 'harvest'  # --text: what the SAE was trained on


@dataclasses.dataclass(frozen=True)
class Request:
  """What records are wanted.

  Attributes:
    sae: the folder of a trained run's SAE, or whatever `api.load_sae` opens.
    lm: a language model's folder or hub id, or 'embedded'; '' takes what the
      SAE's files say.
    text: sources (see `text.sources.parse`); '' takes the held-out text of the
      SAE's run, 'harvest' the text that it was trained on.
    tokens: how many to read, in whole sequences; 0 reads all.
    context_length: of a sequence; 0 takes what the SAE's files say.
    site: where the SAE reads, such as resid_post/2; '' takes what its files
      say.
    mesh: devices along 'data' and along 'latent'.
    settings: how much is kept.
  """

  sae: str
  lm: str = ''
  text: str = ''
  tokens: int = 0
  context_length: int = 0
  site: str = ''
  mesh: tuple[int, int] = (1, 1)
  settings: state_lib.Settings = state_lib.Settings()


def make(request: Request, out: str | pathlib.Path) -> None:
  """Writes the records, or goes on where a killed call stopped.

  Raises:
    errors.InputError: something is missing or does not fit, or the folder is of
      another request; nothing has been written.
  """
  out = pathlib.Path(out)
  sae = load_sae(request)
  run = run_of(request, sae)
  inputs = inputs_lib.prepare(run)
  _check(sae, inputs, request)
  encode.check_mesh(inputs.mesh, sae.num_latents)
  state = state_lib.State(
    request.settings,
    sae.num_latents,
    inputs.architecture.vocab_size,
    run.text.context_length,
  )
  if not _claim(out, _decisive(request, sae, inputs)):
    if not (out / _SEQUENCES).exists():
      sequences.write(inputs.heldout_rows(), out / _SEQUENCES, max_rows=0)
    _make(out, sae, inputs, state, request)
  for name in (_SEQUENCES, _CHECKPOINT):
    (out / name).unlink(missing_ok=True)


def load_sae(request: Request) -> api.SAE:
  """Returns the SAE, with the site that was asked for."""
  sae = api.load_sae(request.sae)
  if not request.site:
    return sae
  where = sites.parse(request.site)
  details = dataclasses.replace(sae.details, site=where.name, layer=where.layer)
  return dataclasses.replace(sae, details=details)


def run_of(request: Request, sae: api.SAE) -> config_lib.RunConfig:
  """Returns a config of the model, the site and the text.

  The SAE's own where it was trained here; otherwise what its files say, and the
  request, on top of the defaults.
  """
  folder = hub.resolve_sae(request.sae)
  folder = folder.parent if folder.is_file() else folder
  is_run = own.recognises(folder) and (folder / own.RUN).is_file()
  run = run_folder.load_run(folder) if is_run else _default_run(request, sae)
  changes = {
    'lm.site': sae.site.name,
    'lm.layer': sae.site.layer,
    'mesh.data': request.mesh[0],
    'mesh.latent': request.mesh[1],
    'mesh.sweep': 1,
  }
  if request.lm:
    changes |= {'lm.path': request.lm, 'lm.revision': ''}
  if request.context_length:
    changes['text.context_length'] = request.context_length
  if request.text == _HARVEST and is_run:
    spec = run.text.harvest
    is_shipped = spec == config_lib.EMBEDDED
    changes['text.heldout'] = str(embedded.HARVEST_TEXT) if is_shipped else spec
  elif request.text:
    changes['text.heldout'] = request.text
  length = request.context_length or run.text.context_length
  # Ceiling; 0 is the whole text.
  changes['evaluation.sequences'] = -(-request.tokens // length)
  return run.with_values(changes)


def _default_run(request, sae):
  """Returns the defaults with a model, a text and a length."""
  model = request.lm or sae.details.model
  for name, value, what in (
    ('lm', model, "the language model's folder or hub id"),
    ('text', request.text, 'sources of text'),
  ):
    if not value:
      raise errors.InputError(
        f'--{name} is missing, and the files of {request.sae} do not say; give '
        f'{what}.'
      )
  if request.text == _HARVEST:
    raise errors.InputError(
      f'--text={_HARVEST}: {request.sae} is no run of ours, so that its '
      'training text is not known; give sources of text.'
    )
  recipe = common.gemma_scope()
  recipe.lm.path, recipe.lm.dtype = model, 'float32'
  recipe.text.harvest = recipe.text.heldout = request.text
  recipe.lm.target_site = sae.details.target_site
  recipe.lm.target_layer = sae.details.target_layer
  recipe.text.context_length = sae.details.context_length or _length(model)
  return config_lib.RunConfig.from_config_dict(recipe.to_dict())


def _length(model):
  """Returns the length of sequences where nobody says: 128, as most SAEs'."""
  path = str(embedded.LM) if model == config_lib.EMBEDDED else model
  folder, _ = huggingface.resolve(path, '')
  return min(128, huggingface.load_architecture(folder).max_positions)


def _check(sae, inputs, request):
  """Raises InputError unless the SAE is of the site's width."""
  size = sae.weights.W_enc.shape[0]
  wanted = inputs.architecture.site_dim(inputs.where.name)
  if size != wanted:
    raise errors.InputError(
      f'--sae={request.sae} reads activations of size {size}, but '
      f'{inputs.where} of {inputs.lm_folder} has size {wanted}; give --lm and '
      '--site that it was trained at.'
    )


def _decisive(request, sae, inputs):
  """Returns all that decides the records."""
  digest = xxhash.xxh3_128()
  for name, array in sorted(weights.arrays_of(sae.weights).items()):
    digest.update(name.encode())
    digest.update(np.ascontiguousarray(array))
  text = inputs.run.text
  return {
    'version': schema.VERSION,
    'sae': request.sae,
    'weights': digest.hexdigest(),
    'model': inputs_lib.model_name(inputs.run),
    'revision': inputs.revision,
    'dtype': inputs.run.lm.dtype,
    'tokenizer': huggingface.tokenizer_digest(inputs.lm_folder),
    'site': [inputs.where.name, inputs.where.layer],
    'text': text.heldout,
    'context_length': text.context_length,
    'packing': text.packing,
    'sequences': inputs.run.evaluation.sequences,
    'settings': dataclasses.asdict(request.settings),
  }


def _claim(out, wanted):
  """Makes a folder the request's own; returns whether it is whole already."""
  path = out / _REQUEST
  if path.is_file():
    found = run_folder.read_json(path)
    if differing := identity.differences(found, wanted, 'wanted'):
      raise errors.InputError(
        f'--out={out} holds records of something else ({differing}); give '
        'another folder.'
      )
    return (out / schema.SOURCE).is_file()
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise errors.InputError(
      f'--out={out} exists and holds no records; give an empty or a new folder.'
    )
  whole.write_json(path, wanted)
  return False


def _make(out, sae, inputs, state, request):
  """Gathers and writes."""
  tokens_NL = sequences.open(out / _SEQUENCES)
  model = inputs.model_until(inputs.target)
  gather.gather(
    state,
    model,
    sae.weights,
    inputs.where,
    tokens_NL,
    inputs.mesh,
    out / _CHECKPOINT,
  )
  source = write.describe(
    state,
    sae=request.sae,
    model=inputs_lib.model_name(inputs.run),
    site=inputs.where.name,
    layer=inputs.where.layer,
    architecture=sae.details.trained_as,
    text=inputs.run.text.heldout,
  )
  write.write(
    out,
    state,
    source,
    model=model,
    W_dec_ME=sae.weights.W_dec,
    target=inputs.target,
    tokens_NL=tokens_NL,
    texts=tokens.texts_of(inputs.tokenizer, inputs.architecture.vocab_size),
  )
