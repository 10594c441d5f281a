"""The site's writer: pages from templates, data as scripts.

  OUT/index.html, latent.html   pages
  OUT/static/                   style and scripts
  OUT/data/columns.js           a few numbers of every latent, for the index
  OUT/data/latents/C.js         all of some latents, that is of chunk C
  OUT/data/search/X.js          tokens that begin with X → latents

Data are scripts that call jr.give(NAME, VALUE), for a page that is opened from
disk may load scripts but fetch nothing. The index, written last, makes the site
whole.
"""

import json
import os
import pathlib
import shutil

import jinja2

from experiments.dashboard import details
from experiments.dashboard import overview
from experiments.dashboard import search
from jumprelu_jax import errors
from jumprelu_jax import preemption
from jumprelu_jax import progress
from jumprelu_jax import whole
from jumprelu_jax.records import schema

RECORDS = 'records'
_HERE = pathlib.Path(__file__).parent
_OURS = {'index.html', 'latent.html', 'static', 'data', RECORDS}


def check_folder(out: pathlib.Path) -> None:
  """Raises InputError if a folder holds something that is no such site."""
  if out.exists() and not out.is_dir():
    raise errors.InputError(f'--out={out} is a file; give a folder.')
  others = {p.name for p in out.iterdir()} - _OURS if out.is_dir() else ()
  if others:
    raise errors.InputError(
      f'--out={out} holds {", ".join(sorted(others)[:5])}, which is no part of '
      'a site; give an empty or a new folder.'
    )


def write(
  records: schema.Records, out: str | os.PathLike, *, examples: int = 8
) -> None:
  """Writes the site; an earlier one in the folder is replaced.

  Args:
    records: to be shown.
    out: folder.
    examples: windows of a latent, of each stratum, at most.

  Raises:
    errors.InputError: the folder holds something else, or `examples` < 1.
  """
  out = pathlib.Path(out)
  errors.check_least(1, {'--examples': examples})
  check_folder(out)
  for name in ('index.html', 'latent.html'):
    (out / name).unlink(missing_ok=True)
  for name in ('static', 'data'):
    shutil.rmtree(out / name, ignore_errors=True)
  shutil.copytree(_HERE / 'static', out / 'static')
  latents = records.latents()
  buckets = search.buckets(latents, records.texts)
  for name, entries in buckets.items():
    _give(out, f'search/{name}', entries)
  columns = overview.columns(records, latents)
  columns |= {
    'name': _name(records.source),
    'chunk': details.CHUNK,
    'search': sorted(buckets),
  }
  _give(out, 'columns', columns)
  num_latents = records.source.num_latents
  with progress.track('dashboard', num_latents, 'latents') as bar:
    for number, chunk in details.chunks(records, latents, examples):
      preemption.check(
        f'{out} was not finished; the same command writes it anew.'
      )
      _give(out, f'latents/{number}', chunk)
      bar.advance(len(chunk['latents']))
  _write_pages(records.source, out)


def script(name: str, value: object) -> str:
  """Returns a script that gives a value to the page.

  Whatever a text holds stays text: outside ASCII all is escaped, and so is <,
  of which </script> and <!-- are made.
  """
  content = json.dumps(value, separators=(',', ':'), allow_nan=False)
  content = content.replace('<', '\\u003c')
  return f'jr.give({json.dumps(name)},{content});\n'


def _give(out, name, value):
  path = out / 'data' / f'{name}.js'
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(script(name, value), encoding='ascii')


def _write_pages(source, out):
  """Writes the pages, the index last."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_HERE / 'templates'),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  for name in ('latent.html', 'index.html'):
    page = environment.get_template(name).render(
      source=source, name=_name(source), text=_text(source)
    )
    whole.write_text(out / name, page)


def _name(source):
  """Returns the last part of the SAE's path."""
  return pathlib.PurePath(source.sae).name or source.sae


def _text(source):
  """Returns what the text is called: its files without their folders."""
  return ', '.join(
    part.strip().rpartition('/')[2] for part in source.text.split(',')
  )
