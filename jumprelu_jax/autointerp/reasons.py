"""Why a latent has no score: every one that has none has a reason."""

from __future__ import annotations

#: What can be said instead of a score.
REASONS = {
  'dead': 'it never fires in the text of the records',
  'too_few_examples': 'too few windows of text in which it fires',
  'constant_truth': 'its activation is the same at every token that is scored',
  'fires_everywhere': 'too few windows, or tokens, at which it does not fire',
  'malformed_answer': 'the answer could not be read, nor a corrected one',
  'refusal': 'the model would not answer',
  'empty_answer': 'the answer had no text',
  'truncated_answer': 'the answer was cut off at its length limit',
  'prompt_too_long': "the prompt is longer than the model's context",
  'time_out': 'no answer in time, however often it was asked',
  'rate_limited': 'over the rate limit, however often it was asked',
  'server_error': "an error of the endpoint's, however often it was asked",
  'no_connection': 'no connection, however often it was tried',
  'bad_protocol': 'the endpoint answered, but not in the protocol',
  'bad_request': 'the endpoint rejects the request',
}
#: Those that may be gone the next time.
TRANSIENT = (
  'time_out', 'rate_limited', 'server_error', 'no_connection', 'bad_protocol',
)  # fmt: skip


class Unscored(Exception):  # noqa: N818 (it is an outcome, not an error)
  """A latent gets no score.

  Attributes:
    reason: one of REASONS.
    detail: what happened, in a few words; may be empty.
  """

  def __init__(self, reason: str, detail: str = ''):
    assert reason in REASONS, reason
    super().__init__(f'{reason}: {detail}' if detail else reason)
    self.reason, self.detail = reason, detail
