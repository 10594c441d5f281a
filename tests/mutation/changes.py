"""Small changes of source code that a test should notice."""

import ast
import collections
import contextlib
import dataclasses
import itertools
import random
import re

OPERATORS = {
  'arithmetic': {
    '+': '-', '-': '+', '*': '/', '/': '*', '**': '*', '//': '*', '%': '//',
    '&': '|', '|': '&', '<<': '>>', '>>': '<<',
  },
  'comparison': {
    '<': '>', '>': '<', '<=': '>=', '>=': '<=', '==': '!=', '!=': '==',
    'is': 'is not', 'is not': 'is', 'in': 'not in', 'not in': 'in',
  },
  'boundary': {'<': '<=', '>': '>=', '<=': '<', '>=': '>'},
  'logic': {'and': 'or', 'or': 'and'},
}  # fmt: skip
TOKEN = re.compile(r'#|is not|not in|[a-z]+|\*\*|//|<<|>>|[<>=!]=|[-+*/%&|<>]')
SWAPS = {
  'max': 'min', 'maximum': 'minimum', 'argmax': 'argmin', 'pmax': 'pmin',
  'any': 'all', 'sum': 'mean', 'floor': 'ceil',
}  # fmt: skip
SWAPS |= {new: old for old, new in SWAPS.items()}
AXES = {'axis', 'axes', 'in_axes', 'out_axes'}
OVER_AXES = {
  'sum', 'mean', 'max', 'min', 'any', 'all', 'argmax', 'argmin', 'sort',
  'argsort', 'cumsum', 'concatenate', 'stack',
}  # fmt: skip
# What is left alone: types, messages, and what changes nothing but speed.
GENERICS = {'dict', 'list', 'tuple', 'type', 'Callable', 'Mapping', 'Sequence'}
MESSAGES = re.compile('print|warn|info|.*Error')
KNOBS = re.compile('BYTES|BLOCK|CHUNK|AT_A_TIME')


@dataclasses.dataclass(frozen=True)
class Mutation:
  """Bytes [start, end) of a file replaced, all on one line.

  Attributes:
    span: first and last line of the statement, or of its head.
  """

  path: str
  kind: str
  start: int
  end: int
  new: str
  span: tuple[int, int]

  @property
  def key(self):
    return f'{self.path} {self.start} {self.end} {self.new}'

  def apply(self, source):
    return source[: self.start] + self.new.encode() + source[self.end :]

  def show(self, source):
    """Returns (number of the line, the line, the line as it is changed)."""
    number = source.count(b'\n', 0, self.start)
    before, after = (
      text.decode().split('\n')[number].strip()
      for text in (source, self.apply(source))
    )
    return number + 1, before, after


def find_mutations(path, source):
  """Returns all mutations of a file, in its order."""
  finder = _Finder(path, source)
  finder.walk(ast.parse(source), None)
  axes = [m for m in finder.found if m.kind == 'axis']
  return [
    m
    for m in sorted(finder.found, key=lambda m: (m.start, m.end, m.new))
    if m.kind not in ('constant', 'sign')
    or not any(axis.start <= m.start < axis.end for axis in axes)
  ]


class _Finder:
  """Collects mutations of the nodes that it walks through."""

  def __init__(self, path, source):
    self._path, self._source = path, source
    lengths = map(len, source.splitlines(keepends=True))
    self._starts = [0, *itertools.accumulate(lengths)]
    self._span, self.found = None, []

  def walk(self, node, span):
    if _is_left_alone(node):
      return
    if isinstance(node, ast.stmt):
      heads = [node, *getattr(node, 'decorator_list', [])]
      body = getattr(node, 'body', None)
      last = body[0].lineno - 1 if body else node.end_lineno
      span = min(head.lineno for head in heads), max(node.lineno, last)
    self._span = span
    self._change(node)
    for field, value in ast.iter_fields(node):
      if field not in ('annotation', 'returns', 'msg'):
        for child in value if isinstance(value, list) else [value]:
          if isinstance(child, ast.AST):
            self.walk(child, span)

  def _start(self, node):
    return self._starts[node.lineno - 1] + node.col_offset

  def _end(self, node):
    return self._starts[node.end_lineno - 1] + node.end_col_offset

  def _add(self, kind, start, end, new=''):
    if b'\n' not in self._source[start:end]:
      found = Mutation(self._path, kind, start, end, new, self._span)
      self.found.append(found)

  def _replace(self, kind, node, new):
    self._add(kind, self._start(node), self._end(node), repr(new))

  def _change(self, node):
    for left, right in itertools.pairwise(_operands(node)):
      self._change_operator(self._end(left), self._start(right))
    match node:
      case ast.UnaryOp(op=ast.USub()):
        self._add('sign', self._start(node), self._start(node) + len('-'))
      case ast.UnaryOp(op=ast.Not()):
        self._add('logic', self._start(node), self._start(node) + len('not '))
      case ast.Constant(value=bool(value)):
        self._replace('constant', node, not value)
      case ast.Constant(value=int(value)):
        self._replace('constant', node, value + 1)
      case ast.Constant(value=float(value)):
        self._replace('constant', node, 1.5 * value or 1.0)
      case ast.keyword() if node.arg in AXES:
        self._change_axes(getattr(node.value, 'elts', [node.value]))
      case ast.Call():
        self._change_call(node)

  def _change_operator(self, start, end):
    token = TOKEN.search(self._source[start:end].decode())
    for kind, table in OPERATORS.items():
      if token and token[0] in table:
        at = start + token.start()
        self._add(kind, at, at + len(token[0]), table[token[0]])

  def _change_axes(self, nodes):
    for node in nodes:
      with contextlib.suppress(ValueError):  # not a literal
        axis = ast.literal_eval(node)
        if type(axis) is int:
          nearer = axis + 1 if axis < 0 else axis - 1
          self._replace('axis', node, nearer if axis else 1)

  def _change_call(self, node):
    root, name = _names(node.func)
    start, end = self._start(node.func), self._end(node.func)
    if name == 'stop_gradient':
      self._add('gradient', start, end)
    if name in SWAPS and (root or name != 'sum'):
      self._add('swap', end - len(name), end, SWAPS[name])
    if root and name in OVER_AXES:
      self._change_axes(node.args)
    if root in ('jax', 'jnp', 'np', 'optax'):
      for keyword in node.keywords:
        comma = re.compile(b'(, *)?').match(self._source, self._end(keyword))
        self._add('keyword', self._start(keyword), comma.end())


def _is_left_alone(node):
  match node:
    case ast.Raise() | ast.JoinedStr():
      return True
    case ast.FunctionDef(name=name):
      return name in ('__repr__', '__str__')
    case ast.Call(func=func):
      return bool(MESSAGES.fullmatch(_names(func)[1]))
    case ast.Subscript(value=ast.Name(id=name)):
      return name in GENERICS
    case ast.Assign(targets=[ast.Name(id=name)], col_offset=0):
      return bool(KNOBS.search(name))
    case ast.keyword(arg=name):
      return name in ('frozen', 'kw_only')
  return False


def _operands(node):
  """Returns the nodes with an operator between each and the next."""
  match node:
    case ast.BinOp():
      operands = node.left, node.right
      is_text = any(isinstance(getattr(o, 'value', 0), str) for o in operands)
      return () if is_text else operands
    case ast.AugAssign():
      return node.target, node.value
    case ast.Compare():
      return node.left, *node.comparators
    case ast.BoolOp():
      return node.values
  return ()


def _names(node):
  """Returns the first and the last name of a.b.c, and ('', 'c') of c alone."""
  *roots, name = ast.unparse(node).rsplit('.', 1)
  return roots[0].split('.')[0] if roots else '', name


def sample_mutations(found, number, seed):
  """Returns some mutations: of each file by its share, of all kinds evenly.

  A larger number adds to those of a smaller one.
  """
  files = collections.defaultdict(list)
  for mutation in found:
    files[mutation.path].append(mutation)
  least = min(2, number // max(len(files), 1))
  shares = {path: min(least, len(of)) for path, of in files.items()}
  while sum(shares.values()) < min(number, len(found)):
    rest = [path for path in files if shares[path] < len(files[path])]
    path = max(rest, key=lambda p: len(files[p]) / (shares[p] + 1))
    shares[path] += 1
  orders = {path: _shuffle(of, f'{seed} {path}') for path, of in files.items()}
  return [m for path, order in orders.items() for m in order[: shares[path]]]


def _shuffle(found, seed):
  """Returns mutations in random order, one of each kind at a time."""
  rng, kinds = random.Random(seed), collections.defaultdict(list)
  for mutation in rng.sample(found, len(found)):
    kinds[mutation.kind].append(mutation)
  order = rng.sample(sorted(kinds), len(kinds))
  rounds = itertools.zip_longest(*(kinds[kind] for kind in order))
  return [mutation for some in rounds for mutation in some if mutation]
