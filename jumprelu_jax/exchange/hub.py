"""SAEs of the Hugging Face hub: fetched, and uploaded with a card.

A repository holds SAEs in folders, as Gemma Scope's do:
layer_20/width_16k/average_l0_71. Only the folder that is asked for is fetched.
"""

from __future__ import annotations

from collections.abc import Mapping
import os
import pathlib
import re
import shutil
from typing import Any

import jinja2

from jumprelu_jax import embedded
from jumprelu_jax import errors
from jumprelu_jax import whole
from jumprelu_jax.exchange import details as details_lib
from jumprelu_jax.exchange import formats
from jumprelu_jax.sae import released

#: The name of the SAE that is shipped.
EMBEDDED = 'embedded'
# No part is dots alone: these lead out of a folder.
_PART = r'(?!\.+(?:/|$))[\w.+-]+'
_HUB_ID = re.compile(rf'{_PART}(/{_PART})+')
_CARD = """---
library_name: jumprelu_jax
tags: [sparse-autoencoder, interpretability]
{% if base_model -%}
base_model: {{ base_model }}
{% endif -%}
---

# {{ details.trained_as or 'Sparse autoencoder' }} at {{ place }}

{{ num_latents }} latents on activations of size {{ d_in }} of
{{ details.model or 'a language model' }}, {{ place }}.

```python
import jumprelu_jax

sae = jumprelu_jax.load_sae('{{ repository }}/{{ folder }}')
f = sae.encode(x)  # raw activations [..., {{ d_in }}]
```
{% if metrics %}
| metric | value |
| --- | --- |
{% for name, value in metrics.items() -%}
| {{ name }} | {{ value }} |
{% endfor -%}
{% endif -%}
{% if figure -%}
![Fidelity against L0 of the sweep that it is from]({{ figure }})
{% endif -%}
{% if recipe %}
## Recipe

```json
{{ recipe }}
```
{% endif %}"""


def resolve_sae(path_or_hub_id: str | os.PathLike) -> pathlib.Path:
  """Returns a folder or file on disk; fetches it if it is of the hub.

  Args:
    path_or_hub_id: 'embedded' is the SAE that is shipped.

  Raises:
    errors.InputError: it is neither there nor a hub id, or cannot be fetched.
  """
  if str(path_or_hub_id) == EMBEDDED:
    return embedded.SAE
  path = pathlib.Path(path_or_hub_id)
  if path.exists():
    return path
  name = str(path_or_hub_id)
  if name.startswith(('.', '/', '~')) or not _HUB_ID.fullmatch(name):
    raise errors.InputError(
      f'{name} does not exist; give a folder of an SAE, or '
      'OWNER/REPOSITORY/FOLDER of the Hugging Face hub.'
    )
  import huggingface_hub  # only those who name a hub id need a network

  owner, repository, *rest = name.split('/')
  folder = '/'.join(rest)
  pattern = f'{folder}/*' if folder else '*'
  try:
    root = huggingface_hub.snapshot_download(
      f'{owner}/{repository}', allow_patterns=[pattern]
    )
  except Exception as error:  # network, rights, names: all alike to the user
    raise errors.InputError(
      f'{name} is not on disk and could not be fetched from the hub '
      f'({type(error).__name__}: {" ".join(str(error).split())}).'
    ) from error
  return pathlib.Path(root) / folder


def folder_of(
  details: details_lib.Details, num_latents: int, l0: float | None
) -> str:
  """Returns Gemma Scope's folder: layer_20/width_16k/average_l0_71."""
  thousands = num_latents // 1000
  width = f'{thousands // 1000}m' if thousands >= 1000 else f'{thousands}k'
  if num_latents < 1000:
    width = str(num_latents)
  sparsity = 'unknown' if l0 is None else f'{l0:.0f}'
  return f'layer_{details.layer}/width_{width}/average_l0_{sparsity}'


def write_release(
  sae: released.Released,
  details: details_lib.Details,
  root: str | os.PathLike,
  repository: str,
  *,
  format_name: str,
  metrics: Mapping[str, Any],
  recipe: str = '',
  figure: pathlib.Path | None = None,
) -> pathlib.Path:
  """Writes what an upload would send: the SAE in its folder, and a card.

  Args:
    sae: the SAE.
    details: where it belongs.
    root: folder to write to.
    repository: OWNER/NAME that it is to go to.
    format_name: one of `formats.FORMATS`.
    metrics: for the card.
    recipe: JSON, for the card.
    figure: a PNG for the card, which is copied; None, or not there: no figure.

  Returns:
    The SAE's folder.

  Raises:
    errors.InputError: as `formats.save`.
  """
  num_latents = sae.W_enc.shape[1]
  name = folder_of(details, num_latents, details.l0)
  folder = pathlib.Path(root) / name
  if not folder.resolve().is_relative_to(pathlib.Path(root).resolve()):
    raise errors.InputError(
      f'{folder} is outside of {root}; give another folder.'
    )
  formats.save(sae, details, folder, format_name)
  has_figure = figure is not None and figure.is_file()
  if has_figure:
    shutil.copyfile(figure, folder / figure.name)
  place = f'{details.site or "an unknown site"} of layer {details.layer}'
  card = jinja2.Environment(autoescape=False).from_string(_CARD)  # Markdown
  text = card.render(
    details=details,
    # Others are folders of this machine.
    base_model=details.model if _HUB_ID.fullmatch(details.model) else '',
    place=place,
    num_latents=num_latents,
    d_in=sae.W_enc.shape[0],
    repository=repository,
    folder=name,
    metrics=metrics,
    recipe=recipe,
    figure=figure.name if has_figure else '',
  )
  whole.write_text(folder / 'README.md', text + '\n')
  return folder


def upload(root: str | os.PathLike, repository: str) -> str:
  """Sends a folder to the hub; returns its address.

  Raises:
    errors.InputError: the hub refuses it, or is not reached.
  """
  import huggingface_hub

  api = huggingface_hub.HfApi()
  try:
    api.create_repo(repository, exist_ok=True)
    info = api.upload_folder(repo_id=repository, folder_path=str(root))
  except Exception as error:
    raise errors.InputError(
      f'{repository} could not be uploaded ({type(error).__name__}: {error}); '
      'log in by `hf auth login`, and check the name.'
    ) from error
  return str(info)
