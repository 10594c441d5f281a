"""A run's inputs: checked against each other, read when first used."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import functools
import itertools
import os
import pathlib

import jax
import numpy as np
import tokenizers
import xxhash

from jumprelu_jax import config as config_lib
from jumprelu_jax import corpus
from jumprelu_jax import embedded
from jumprelu_jax import errors
from jumprelu_jax import evaluation
from jumprelu_jax import metrics
from jumprelu_jax import progress
from jumprelu_jax import sharding
from jumprelu_jax import train
from jumprelu_jax.activations import buckets
from jumprelu_jax.activations import store as store_lib
from jumprelu_jax.lm import huggingface
from jumprelu_jax.lm import sites
from jumprelu_jax.lm import transformer
from jumprelu_jax.lm.architecture import Architecture
from jumprelu_jax.text import packing
from jumprelu_jax.text import sources
from jumprelu_jax.text import tokens as tokens_lib


@dataclasses.dataclass(frozen=True)
class Inputs:
  """A run's inputs, checked; the heavy parts are read when first used.

  Attributes:
    run: the config.
    lm_folder: the language model's folder.
    revision: the model's commit on the hub; '' for a folder.
    architecture: the model's, with the config's BOS and special tokens.
    tokenizer: its tokenizer.
    where: the site that SAEs are trained at, and that transcoders read.
    target: the site that is predicted; `where` itself but for transcoders.
    harvested: the sites to harvest, `where` among them.
    mesh: the device mesh.
    kept_NL: packed text to evaluate on that a run has kept; None packs it.
  """

  run: config_lib.RunConfig
  lm_folder: pathlib.Path
  revision: str
  architecture: Architecture
  tokenizer: tokenizers.Tokenizer
  where: sites.Site
  target: sites.Site
  harvested: tuple[sites.Site, ...]
  mesh: jax.sharding.Mesh
  kept_NL: np.ndarray | None = None

  @functools.cached_property
  def model(self) -> transformer.Transformer:
    """The whole language model."""
    return self._load(None)

  @functools.cached_property
  def heldout_NL(self) -> np.ndarray:
    """Packed text to evaluate on."""
    if self.kept_NL is not None:
      return self.kept_NL
    tokens_NL = np.stack(list(self.heldout_rows()))
    corpus.say_fewer(len(tokens_NL), self._heldout)
    return tokens_NL

  def heldout_rows(self) -> Iterator[np.ndarray]:
    """Returns the rows of `heldout_NL` one by one, int32 [L]."""
    limit = self.run.evaluation.sequences or None
    return itertools.islice(self._rows(heldout_sources(self.run.text)), limit)

  def keep_heldout(self, path: pathlib.Path) -> Inputs:
    """Returns the inputs with the held-out text of a file, written if missing.

    A run is evaluated on the same sequences whenever it is, even if a text or
    what renders it has changed.

    Raises:
      errors.InputError: sequences of something else are there, or damaged ones.
    """
    kept_NL = corpus.keep(path, self._heldout, self.heldout_rows)
    return dataclasses.replace(self, kept_NL=kept_NL)

  def find_heldout(self, path: pathlib.Path) -> Inputs:
    """Returns the inputs with the held-out text of a file, if it is the same.

    Raises:
      errors.InputError: the file is damaged.
    """
    return dataclasses.replace(self, kept_NL=corpus.find(path, self._heldout))

  def model_until(self, where: sites.Site) -> transformer.Transformer:
    """Returns the language model without the layers after a site."""
    return self._load(1 + where.layer)

  @functools.cached_property
  def setting(self) -> evaluation.Setting:
    """What SAEs are evaluated on."""
    config = self.run.evaluation
    return evaluation.Setting(
      model=self.model,
      tokens_NL=self.heldout_NL,
      where=self.target,
      rows=config.sequences_per_batch,
      source=None if self.target == self.where else self.where,
      splice_special=config.splice_special,
      importance_sequences=config.importance_sequences,
      mesh=self.mesh,
    )

  @functools.cached_property
  def baseline(self) -> metrics.Baseline:
    """The language model measured without any SAE."""
    return evaluation.measure_baseline(self.setting)

  @functools.cached_property
  def model_digests(self) -> dict[str, str]:
    """Checksums of the model's files by name; reads them whole."""
    return huggingface.digests(self.lm_folder)

  @functools.cached_property
  def heldout_digest(self) -> str:
    """The checksum of the held-out tokens."""
    return xxhash.xxh3_128_hexdigest(self.heldout_NL.tobytes())

  def on_this_host(self) -> Inputs:
    """Returns the inputs on this process's own devices, if there are others."""
    if jax.process_count() == 1:
      return self
    return dataclasses.replace(self, mesh=sharding.local_mesh())

  @property
  def trained_on(self) -> tuple[sites.Site, ...]:
    """The sites whose rows training needs: one, or a transcoder's two."""
    return tuple(dict.fromkeys((self.where, self.target)))

  @property
  def widths(self) -> tuple[int, ...]:
    """Sizes of an activation, and of a transcoder's target."""
    return tuple(self.architecture.site_dim(s.name) for s in self.trained_on)

  def plan(self, path: pathlib.Path) -> buckets.Plan:
    """Returns the plan of the run's buckets.

    Args:
      path: where sequences of tokens are kept; written if it is not there, with
        a .json beside it that says what they are of.

    Raises:
      errors.InputError: sequences of something else are there, or damaged ones.
    """
    config = self.run.activations
    return buckets.Plan(
      tokens_NL=corpus.keep(
        path,
        self._sequences(self.run.text.harvest, config.sequences),
        lambda: self._rows(harvest_sources(self.run.text)),
      ),
      special_ids=self.architecture.special_ids,
      pad_id=self.architecture.pad_id,
      sequences_per_bucket=self.run.sequences_per_bucket,
      sequences_per_batch=config.sequences_per_batch,
      max_norm_multiple=config.max_norm_multiple,
      seed=self.run.seed,
    )

  def tap(self, where: tuple[sites.Site, ...]) -> buckets.Tap:
    """Returns the model as a function of tokens, with no later layers.

    It is read when it is first called: a harvest that is complete needs none.
    """
    num_layers = 1 + max(site.layer for site in where)
    model = functools.cache(lambda: self._load(num_layers))
    layout = sharding.of_batch(self.mesh)
    dtype = self.run.activations.dtype

    @jax.jit
    def run(model, tokens_BL):
      found = transformer.tap(model, tokens_BL, where)
      return tuple(x_BLD.astype(dtype) for x_BLD in found)

    def check_and_run(tokens_BL):
      self.architecture.check_ids(tokens_BL, self.tokenizer.id_to_token)
      return run(model(), jax.device_put(tokens_BL, layout))

    return check_and_run

  def describe(
    self, site: sites.Site, num_sequences: int
  ) -> store_lib.Description:
    """Returns what a store of the run's activations at a site is of."""
    run = self.run
    return store_lib.Description(
      model=model_name(run),
      revision=self.revision,
      model_dtype=run.lm.dtype,
      tokenizer=huggingface.tokenizer_digest(self.lm_folder),
      site=site.name,
      layer=site.layer,
      d_model=self.architecture.site_dim(site.name),
      dtype=run.activations.dtype,
      format=run.activations.format,
      text=run.text.harvest,
      packing=run.text.packing,
      context_length=run.text.context_length,
      num_sequences=num_sequences,
      bos_id=self.architecture.bos_id,
      special_ids=self.architecture.special_ids,
      seed=run.seed,
      sequences_per_bucket=run.sequences_per_bucket,
      max_norm_multiple=run.activations.max_norm_multiple,
      num_shards=-(-num_sequences // run.sequences_per_bucket),
    )

  def _sequences(self, spec, count):
    """Returns what decides the packed sequences of a text."""
    text = self.run.text
    return {
      'text': spec,
      'sequences': count,
      'packing': text.packing,
      'context_length': text.context_length,
      'bos_id': self.architecture.bos_id,
      'pad_id': self.architecture.pad_id,
      'tokenizer': huggingface.tokenizer_digest(self.lm_folder),
      'seed': self.run.seed,
    }

  @property
  def _heldout(self):
    run = self.run
    return self._sequences(run.text.heldout, run.evaluation.sequences)

  def _load(self, num_layers):
    model = huggingface.load(
      self.lm_folder,
      dtype=self.run.lm.dtype,
      mesh=self.mesh,
      num_layers=num_layers,
    )
    ours = self.architecture.cut(model.architecture.num_layers)
    return model.replace(architecture=ours)

  def _rows(self, found):
    """Yields packed sequences of the texts of some sources."""
    chat_template = tokens_lib.lazy_chat_renderer(self.lm_folder)
    streams = [
      tokens_lib.encode(sources.read(source), self.tokenizer, chat_template)
      for source in found
    ]
    weights = [source.weight for source in found]
    rows = packing.PACKINGS[self.run.text.packing](
      tokens_lib.mix(streams, weights, self.run.seed),
      self.run.text.context_length,
      bos_id=self.architecture.bos_id,
      pad_id=self.architecture.pad_id,
    )
    for row_L in rows:
      self.architecture.check_ids(row_L, self.tokenizer.id_to_token)
      yield row_L


def prepare(run: config_lib.RunConfig) -> Inputs:
  """Checks a config against the model, the texts and the machine.

  Raises:
    errors.InputError: something does not fit; nothing has been written.
  """
  train.check(run)
  mesh = sharding.make_mesh(run.mesh.data, run.mesh.latent, run.mesh.sweep)
  where = sites.Site(run.lm.site, run.lm.layer)
  target = _target(run, where)
  needed = tuple(dict.fromkeys((where, target)))
  harvested = tuple(map(sites.parse, run.activations.sites)) or needed
  _check_sites(needed, harvested)
  folder, revision = huggingface.resolve(
    str(embedded.LM) if run.lm.path == config_lib.EMBEDDED else run.lm.path,
    run.lm.revision,
  )
  architecture = huggingface.load_architecture(folder)
  for site in harvested:
    architecture.check_site(site)
  _check_lengths(run, architecture, folder)
  huggingface.check_weights(folder, architecture)
  tokenizer = huggingface.load_tokenizer(folder)
  architecture = _with_token_ids(architecture, run.text, folder)
  for source in (*harvest_sources(run.text), *heldout_sources(run.text)):
    sources.check(source)
  return Inputs(
    run,
    folder,
    revision,
    architecture,
    tokenizer,
    where,
    target,
    harvested,
    mesh,
  )


def harvest_sources(
  config: config_lib.TextConfig,
) -> tuple[sources.Source, ...]:
  """Returns the sources to harvest from."""
  return _sources(config.harvest, embedded.HARVEST_TEXT)


def heldout_sources(
  config: config_lib.TextConfig,
) -> tuple[sources.Source, ...]:
  """Returns the sources to evaluate on."""
  return _sources(config.heldout, embedded.HELDOUT_TEXT)


def model_name(run: config_lib.RunConfig) -> str:
  """Returns the model's name for tables: hub id, or the folder's name."""
  path = run.lm.path
  return pathlib.Path(path).name if os.path.isdir(path) else path


def _sources(spec, shipped):
  if spec == config_lib.EMBEDDED:
    return (sources.Source(str(shipped)),)
  return sources.parse(spec)


def _target(run, where):
  """Returns the site to predict: the input's own, or a later one."""
  lm = run.lm
  if not lm.target_site:
    return where
  layer = lm.layer if lm.target_layer < 0 else lm.target_layer
  target = sites.Site(lm.target_site, layer)
  order = list(sites.SITES)
  places = [(s.layer, order.index(s.name)) for s in (where, target)]
  if places[0] >= places[1]:
    raise errors.InputError(
      f'config.lm.target_site: {target} does not come after {where}, which a '
      'transcoder reads; choose a later site.'
    )
  return target


def _check_sites(needed, harvested):
  for site in needed:
    if site not in harvested:
      raise errors.InputError(
        f'config.activations.sites={tuple(map(str, harvested))} lacks the site '
        f'to train at, {site}; add it, or set config.lm.site and '
        'config.lm.layer.'
      )
  if len(set(harvested)) != len(harvested):
    raise errors.InputError(
      f'config.activations.sites={tuple(map(str, harvested))} has a site '
      'twice; name each once.'
    )


def _check_lengths(run, architecture, folder):
  """Sequences fit the model, and batches fit sequences and mesh."""
  length = run.text.context_length
  if length > architecture.max_positions:
    raise errors.InputError(
      f'config.text.context_length={length} is longer than the '
      f'{architecture.max_positions} positions of {folder}.'
    )
  rows = run.activations.sequences * (length - 1)
  if 0 < rows < run.train.batch_size:
    raise errors.InputError(
      f'config.activations.sequences={run.activations.sequences} gives {rows} '
      f'rows at most, less than config.train.batch_size='
      f'{run.train.batch_size}; harvest from more sequences.'
    )
  for key, rows in (
    ('activations', run.activations.sequences_per_batch),
    ('evaluation', run.evaluation.sequences_per_batch),
  ):
    if rows % run.mesh.data:
      raise errors.InputError(
        f'config.{key}.sequences_per_batch={rows} is not divisible by '
        f"mesh axis 'data'={run.mesh.data}; use a multiple of it."
      )


def _with_token_ids(architecture, config, folder):
  """Returns the architecture with the config's BOS and special tokens."""
  bos_id = architecture.bos_id if config.bos_id < 0 else config.bos_id
  if bos_id is None and architecture.special_ids:
    bos_id = architecture.special_ids[0]
    progress.say(
      f'{folder} has no BOS token; sequences start with its special token '
      f'{bos_id} (set config.text.bos_id for another)'
    )
  if bos_id is None:
    raise errors.InputError(
      f'{folder} has no BOS token to start sequences with, nor another '
      'special token; set config.text.bos_id.'
    )
  for token_id in (bos_id, *config.special_ids):
    if not 0 <= token_id < architecture.vocab_size:
      raise errors.InputError(
        f'token id {token_id} of config.text is not in the vocabulary of '
        f'{folder}, which has {architecture.vocab_size}.'
      )
  special = (*architecture.special_ids, bos_id, *config.special_ids)
  return dataclasses.replace(
    architecture,
    bos_id=bos_id,
    special_ids=tuple(dict.fromkeys(special)),
  )
