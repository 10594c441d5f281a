"""The one kind of error that is the user's to mend."""


class InputError(ValueError):
  """Bad input: says what is wrong, what was expected and what to do.

  Raised before any long work and before anything on disk is changed. The
  launchers print it as one line; every other exception is a defect of ours and
  keeps its traceback.
  """
