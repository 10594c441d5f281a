"""Package metadata; the settings of tools are in pyproject.toml."""

import pathlib

import setuptools

_HERE = pathlib.Path(__file__).parent
# torch is an oracle: nothing but tests imports it.
_TEST = [
  'hypothesis>=6.100,<7',
  'ipykernel>=7,<8',
  'nbclient>=0.11,<0.12',
  'nbformat>=5.10,<6',
  'pytest>=9,<10',
  'ruff>=0.17,<0.18',
  'torch==2.13.0',
]

setuptools.setup(
  name='jumprelu-jax',
  version='0.1.0',
  description='JumpReLU sparse autoencoders in JAX.',
  long_description=(_HERE / 'README.md').read_text(encoding='utf-8'),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  packages=setuptools.find_packages(include=['jumprelu_jax', 'jumprelu_jax.*']),
  package_data={'jumprelu_jax.embedded': ['lm/*', 'sae/*', 'text/*']},
  python_requires='>=3.11',
  # Lower bounds are the versions that the tests run with.
  install_requires=[
    'absl-py>=2.1',
    'datasets>=5.2,<6',
    'flax>=0.12.8,<0.13',
    'huggingface-hub>=2.4,<3',
    'jax>=0.10.2,<0.13',
    'jinja2>=3.1,<4',
    'matplotlib>=3.10,<4',
    'ml-collections>=1.1,<2',
    'ml-dtypes>=0.5',
    'numpy>=2,<3',
    'optax>=0.2.8,<0.3',
    'orbax-checkpoint>=0.12.8,<0.13',
    'safetensors>=0.8,<0.9',
    'tensorboardX>=2.6.5,<3',
    'tensorstore>=0.1.84',
    'tokenizers>=0.23,<0.24',
    'tqdm>=4.66',
    'transformers>=5.23,<6',
    'xxhash>=3.5',
  ],
  extras_require={
    # Compiles for TPUs, also where there is none (experiments.plan).
    'tpu': ['jax[tpu]>=0.10.2,<0.13'],
    'test': _TEST,
    # For `pytest -m saelens`, whose numbers are of this version.
    'saelens': [*_TEST, 'sae-lens==6.54.12'],
  },
)
