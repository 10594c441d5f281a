"""Finds the latent records of an SAE in one pass over text.

  python -m experiments.records --sae=DIR/jumprelu_l0_0.001 --out=RECORDS
  python -m experiments.records --sae=OWNER/REPOSITORY/FOLDER --out=RECORDS \
      --lm=FOLDER_OR_HUB_ID --text=FILE --tokens=1000000

DIR is the folder of an SAE trained here, whose config says the model and the
held-out text. A command that was killed is continued by giving it again.
"""

from absl import flags

from experiments import launch
from experiments.records import make
from experiments.records import request
from jumprelu_jax import progress

_OUT = flags.DEFINE_string('out', None, 'Folder of records.', required=True)


def main():
  make.make(request.from_flags(), _OUT.value)
  progress.say(f'{_OUT.value}: records')


if __name__ == '__main__':
  flags.mark_flag_as_required('sae')
  launch.run(main)
