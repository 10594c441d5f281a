"""Writes a static site of an SAE's latents; open OUT/index.html.

  python -m experiments.dashboard --records=RECORDS --out=OUT
  python -m experiments.dashboard --sae=DIR/jumprelu_l0_0.001 --out=OUT

With --sae the records are made first, in OUT/records, with the flags of
`experiments.records`; those that are there are used. The site opens from disk
and from any web server, and loads nothing from elsewhere.
"""

import pathlib

from absl import flags

from experiments import launch
from experiments.dashboard import site
from experiments.records import make
from experiments.records import request
from jumprelu_jax import errors
from jumprelu_jax import progress
from jumprelu_jax.records import schema

_RECORDS = flags.DEFINE_string('records', None, 'A folder of records.')
_OUT = flags.DEFINE_string('out', None, 'Folder of the site.', required=True)
_EXAMPLES = flags.DEFINE_integer(
  'examples', 8, 'Windows of a latent to show, of each stratum.'
)


def main():
  if (_RECORDS.value is None) == (request.SAE.value is None):
    raise errors.InputError(
      'give either --records, a folder of records, or --sae, to make them.'
    )
  out = pathlib.Path(_OUT.value)
  site.check_folder(out)
  records = _RECORDS.value
  if records is None:
    records = out / site.RECORDS
    make.make(request.from_flags(), records)
  site.write(schema.read(records), out, examples=_EXAMPLES.value)
  progress.say(f'{out / "index.html"}')


if __name__ == '__main__':
  launch.run(main)
