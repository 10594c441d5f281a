"""From a request to a folder of records."""

from collections.abc import Iterator
import contextlib
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
from jumprelu_jax import lock
from jumprelu_jax import run_folder
from jumprelu_jax import seals
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
from jumprelu_jax.text import pieces
from jumprelu_jax.text import sequences

# In the folder of records; the first two until it is whole.
_SEQUENCES, _CHECKPOINT, _REQUEST = 'sequences.npy', 'state.npz', 'request.json'
_LOCK = 'records.lock'
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
    target: what a transcoder predicts, likewise.
    architecture: what to call the SAE's; '' takes what its files say.
    mesh: devices along 'data' and along 'latent'.
    settings: how much is kept.
  """

  sae: str
  lm: str = ''
  text: str = ''
  tokens: int = 0
  context_length: int = 0
  site: str = ''
  target: str = ''
  architecture: str = ''
  mesh: tuple[int, int] = (1, 1)
  settings: state_lib.Settings = state_lib.Settings()


def make(request: Request, out: str | pathlib.Path) -> None:
  """Writes the records, or goes on where a killed call stopped.

  Raises:
    errors.InputError: something is missing or does not fit, or the folder is of
      another request or in use; nothing has been written.
  """
  out = pathlib.Path(out)
  sae = load_sae(request)
  run = run_of(request, sae)
  limits = run_folder.read_limits(_folder(request), run)
  inputs = inputs_lib.prepare(run)
  _check(sae, inputs, request)
  encode.check_mesh(inputs.mesh, sae.num_latents)
  state = state_lib.State(
    request.settings,
    sae.num_latents,
    inputs.architecture.vocab_size,
    run.text.context_length,
  )
  with _claimed(out, _decisive(request, sae, inputs, limits)):
    if not (out / schema.SOURCE).is_file():
      _make(out, sae, inputs, state, request, limits)
    for name in (_SEQUENCES, _CHECKPOINT):
      (out / name).unlink(missing_ok=True)
    if request.architecture:
      write.name_architecture(out, request.architecture)


def load_sae(request: Request) -> api.SAE:
  """Returns the SAE, with the sites that were asked for."""
  sae, changes = api.load_sae(request.sae), {}
  if request.site:
    where = sites.parse(request.site)
    changes = {'site': where.name, 'layer': where.layer}
  if request.target:
    where = sites.parse(request.target)
    changes |= {'target_site': where.name, 'target_layer': where.layer}
  details = dataclasses.replace(sae.details, **changes)
  return dataclasses.replace(sae, details=details)


def run_of(request: Request, sae: api.SAE) -> config_lib.RunConfig:
  """Returns a config of the model, the site and the text.

  The SAE's own where it was trained here; otherwise what its files say, and the
  request, on top of the defaults.
  """
  folder = _folder(request)
  is_run = own.recognises(folder) and (folder / own.RUN).is_file()
  run = run_folder.load_run(folder) if is_run else _default_run(request, sae)
  changes = {
    'lm.site': sae.site.name,
    'lm.layer': sae.site.layer,
    'mesh.data': request.mesh[0],
    'mesh.latent': request.mesh[1],
    'mesh.sweep': 1,
  }
  if request.target:
    target = sae.target
    changes |= {'lm.target_site': target.name, 'lm.target_layer': target.layer}
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


def _folder(request):
  """Returns the folder of the SAE's files."""
  folder = hub.resolve_sae(request.sae)
  return folder.parent if folder.is_file() else folder


def _default_run(request, sae):
  """Returns the defaults with a model, a text and a length."""
  model = request.lm or sae.details.model
  _check_known(request, sae.details, model)
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
  if sae.details.target_site:
    recipe.sae.architecture = 'jumprelu_transcoder'
  recipe.text.context_length = sae.details.context_length or _length(model)
  return config_lib.RunConfig.from_config_dict(recipe.to_dict())


def _check_known(request, details, model):
  """Raises InputError, with all flags to give, where something is unknown."""
  wanted = {}
  if not model:
    wanted['--lm'] = "the language model's folder or hub id"
  if not request.text:
    wanted['--text'] = 'sources of text'
  for flag, what, site, layer in (
    ('--site', 'where it reads', details.site, details.layer),
    ('--target', 'what it predicts', details.target_site, details.target_layer),
  ):
    is_needed = flag == '--site' or site
    if is_needed and (site not in sites.SITES or layer < 0):
      said = f' (its files say {site!r}, layer {layer})' if site else ''
      wanted[flag] = f'{what}, such as resid_post/2{said}'
  if wanted:
    raise errors.InputError(
      f'{", ".join(wanted)} {"is" if len(wanted) == 1 else "are"} missing, and '
      f'the files of {request.sae} do not say; give '
      f'{"; ".join(wanted.values())}.'
    )


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


def _decisive(request, sae, inputs, limits):
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
    **({'target': request.target} if request.target else {}),
    'text': text.heldout,
    'context_length': text.context_length,
    'packing': text.packing,
    'sequences': inputs.run.evaluation.sequences,
    'settings': dataclasses.asdict(request.settings),
    **({'norm_limits': [norm for _, norm in limits]} if limits else {}),
  }


@contextlib.contextmanager
def _claimed(out: pathlib.Path, wanted: dict[str, object]) -> Iterator[None]:
  """Makes a folder the request's own, and holds its lock while it lasts."""
  _check_is_ours(out, wanted)
  whole.make_folder(out)
  with lock.held(out / _LOCK):
    _check_is_ours(out, wanted)  # another may have claimed it meanwhile
    for path in out.glob('*.partial'):
      path.unlink()  # of a process that was killed while it wrote
    if not (out / _REQUEST).is_file():
      whole.write_json(out / _REQUEST, seals.signed(wanted))
    yield


def _check_is_ours(out, wanted):
  """Raises InputError unless a folder is the request's, or nobody's."""
  path = out / _REQUEST
  if path.is_file():
    found = _read_request(path)
    if differing := identity.differences(found, wanted, 'wanted'):
      raise errors.InputError(
        f'--out={out} holds records of something else ({differing}); give '
        'another folder.'
      )
    return
  # A process that was killed as it claimed the folder leaves these.
  left = {out / _LOCK, *out.glob(f'{_REQUEST}.*.partial')}
  if out.exists() and not (out.is_dir() and set(out.iterdir()) <= left):
    raise errors.InputError(
      f'--out={out} exists and holds no records; give an empty or a new folder.'
    )


def _read_request(path):
  """Returns what `_claimed` wrote; a version without checksums may have."""
  found = run_folder.read_json(path)
  if 'checksum' not in found:
    return found
  try:
    return seals.check_signed(found)
  except ValueError as error:
    raise errors.InputError(
      f'{path} is damaged: {error}. Give another --out.'
    ) from error


def _pack(out, inputs):
  """Returns the packed text, which is kept until the records are whole."""
  path = out / _SEQUENCES
  if not seals.is_sealed(out, path.name):
    sequences.write(inputs.heldout_rows(), path, max_rows=0)
    seals.write(out, 'the text', [path.name])
  remedy = f'Remove {out / seals.NAME} and give the same command again.'
  seals.check(out, remedy, [path.name])
  return sequences.open(path)


def _make(out, sae, inputs, state, request, limits):
  """Gathers and writes."""
  tokens_NL = _pack(out, inputs)
  last = max([inputs.target, *(s for s, _ in limits)], key=lambda s: s.layer)
  model = inputs.model_until(last)
  gather.gather(
    state,
    model,
    sae.weights,
    inputs.where,
    tokens_NL,
    inputs.mesh,
    out / _CHECKPOINT,
    limits,
  )
  V = inputs.architecture.vocab_size
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
    pieces=pieces.from_bytes(pieces.to_bytes(inputs.tokenizer, range(V))),
  )
