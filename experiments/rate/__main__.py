"""A blinded study: are latents mostly monosemantic? Served, then analysed.

  python -m experiments.rate serve --study=FOLDER --records=DIR,DIR,… \
      --raters=ann,bob
  python -m experiments.rate analyse --study=FOLDER --out=DIR

`serve` draws latents from folders of records, one folder an SAE, and serves
their pages on this machine; given again with the study alone it goes on with
it, and answers that were given are there. `analyse` writes tables and a figure.
docs/interpretability_rating.md says how a study is designed. Needs
pip install -e '.[interp]'.
"""

import pathlib
import sys

from absl import flags

from experiments import launch
from experiments.rate import analysis
from jumprelu_jax import errors
from jumprelu_jax import preemption
from jumprelu_jax import progress
from jumprelu_jax.ratings import design
from jumprelu_jax.ratings import study as study_lib

_STUDY = flags.DEFINE_string('study', None, "The study's folder.")
_OUT = flags.DEFINE_string('out', None, 'analyse: folder to write to.')
_HOST = flags.DEFINE_string('host', '127.0.0.1', 'serve: address to listen at.')
_PORT = flags.DEFINE_integer('port', 8000, 'serve: port to listen at.')
_SETTINGS = {
  'records': flags.DEFINE_list('records', None, "serve: records' folders."),
  'raters': flags.DEFINE_list('raters', None, "serve: raters' names."),
  'per_sae': flags.DEFINE_integer(
    'per_sae', None, 'serve: latents of each SAE that a rater rates (1).'
  ),
  'overlap': flags.DEFINE_float(
    'overlap', None, "serve: share of a rater's items that all have (0.2)."
  ),
  'l0': flags.DEFINE_list(
    'l0', None, 'serve: levels of sparsity; by default those that SAEs have.'
  ),
  'per_stratum': flags.DEFINE_integer(
    'per_stratum', None, 'serve: windows shown of each quantile, at most (5).'
  ),
  'seed': flags.DEFINE_integer('seed', None, 'serve: of the draw (0).'),
}
_OF_SERVE = {'host', 'port', *_SETTINGS}


def serve():
  _refuse_flags({'out'}, 'serve')
  study = study_lib.prepare(_needed(_STUDY), _asked())
  _describe(study)
  try:
    from experiments.rate import server
  except ModuleNotFoundError as error:
    raise errors.InputError(
      f"{error}; install what the pages need: pip install -e '.[interp]'."
    ) from error
  with preemption.unheard():  # every answer is on the disk already
    server.serve(study, _HOST.value, _PORT.value)


def analyse():
  _refuse_flags(_OF_SERVE, 'analyse')
  study, out = study_lib.read(_needed(_STUDY)), pathlib.Path(_needed(_OUT))
  if out.exists() and not out.is_dir():
    raise errors.InputError(f'--out={out} is no folder; give another name.')
  analysis.write(study, out)


_COMMANDS = {'serve': serve, 'analyse': analyse}


def _asked():
  """Returns the settings that flags give, by name."""
  asked = {k: flag.value for k, flag in _SETTINGS.items() if flag.present}
  if 'records' in asked:
    asked['records'] = study_lib.same_folders(asked['records'])
  if 'raters' in asked:
    asked['raters'] = tuple(asked['raters'])
  if 'l0' in asked:
    try:
      asked['l0'] = tuple(sorted(map(float, asked['l0'])))
    except ValueError as error:
      raise errors.InputError(f'--l0: {error}.') from error
  return asked


def _describe(study):
  """Says what a study is, and nothing that a rater must not know."""
  sizes = sorted({len(names) for names in study.orders.values()})
  total = sum(map(len, study.orders.values()))
  dead = sum(sae.num_latents - sae.num_alive for sae in study.saes)
  of_all = sum(sae.num_latents for sae in study.saes)
  progress.say(
    f'{study.folder}: {len(study.saes)} SAEs, {len(study.orders)} raters with '
    f'{" or ".join(map(str, sizes))} items each, {len(study.items)} latents '
    f'for {total} answers; {dead:,} of {of_all:,} latents never fire and '
    'could not be drawn'
  )
  if cells := design.missing(study.saes):
    progress.say(
      f'not balanced: {len(cells)} combinations of '
      f'{", ".join(design.FACTORS)} have no SAE'
    )


def _needed(flag):
  if not flag.value:
    raise errors.InputError(f'--{flag.name} is missing; give a folder.')
  return flag.value


def _refuse_flags(names, command):
  for name in sorted(names):
    if flags.FLAGS[name].present:
      raise errors.InputError(f'--{name} is no flag of {command}; omit it.')


if __name__ == '__main__':
  if len(sys.argv) < 2 or sys.argv[1] not in _COMMANDS:
    given = sys.argv[1] if len(sys.argv) > 1 else 'nothing'
    print(
      f'error: {given}: expected one of {", ".join(_COMMANDS)}.',
      file=sys.stderr,
    )
    sys.exit(2)
  launch.run(_COMMANDS[sys.argv.pop(1)])
