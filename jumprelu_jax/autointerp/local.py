"""A language model of our own as the one that answers."""

from __future__ import annotations

from jumprelu_jax import api
from jumprelu_jax.autointerp.requests import Answer
from jumprelu_jax.autointerp.requests import Request
from jumprelu_jax.lm import completion

# A model that was not trained on chats goes on in the form that it is shown.
_ANSWER = 'Answer:'


class Local:
  """Greedy completion of a plain prompt; a `requests.Reader`."""

  def __init__(self, lm: api.LM):
    """Takes a model from `api.load_lm`."""
    self._lm = lm
    self.identity = {'endpoint': 'local', 'model': lm.name, 'parameters': {}}

  async def answer(self, request: Request) -> Answer:
    """Returns the completion up to the request's end, or a reason."""
    architecture = self._lm.model.architecture
    ids = self._lm.encode(prompt(request))
    if len(ids) >= architecture.max_positions:
      detail = f'{len(ids)} tokens; the model has {architecture.max_positions}'
      return Answer(reason='prompt_too_long', detail=detail)
    text, is_whole, count = self._complete(ids, request)
    spent = {'tokens_in': len(ids), 'tokens_out': count}
    if not is_whole:
      return Answer(reason='truncated_answer', detail=text[:100], **spent)
    if not text.strip():
      return Answer(reason='empty_answer', **spent)
    return Answer(text, **spent)

  def _complete(self, ids, request):
    """Returns a completion, whether it came to its end, and its tokens."""
    special_ids = self._lm.model.architecture.special_ids

    def cut(new):
      text = self._lm.text(new).lstrip()
      before, end, _ = text.partition(request.end)
      return before + end, bool(end) or new[-1] in special_ids

    new = completion.greedy(
      self._lm.model, ids, request.max_tokens, lambda new: cut(new)[1]
    )
    return *cut(new), len(new)


def prompt(request: Request) -> str:
  """Returns a chat as a plain text that an answer continues."""
  parts = [content for _, content in request.messages]
  return '\n\n'.join([*parts, _ANSWER])
