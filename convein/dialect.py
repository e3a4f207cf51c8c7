"""Grammar rules and their handlers -> a parser of expressions. The core language is the dialect that adds nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from threading import Lock
from types import SimpleNamespace
from typing import TYPE_CHECKING

from convein.errors import ExpressionError
from convein.handlers import CORE, Handler

if TYPE_CHECKING:
    from lark import Lark

_OWN_IMPORT = re.compile(r"^[ \t]*%import[ \t]+\.?conv_einsum\b[^\n>]*$", re.MULTILINE)


class Dialect:
    """Rules added to the language from outside, with one handler a rule.

    A handler takes the parts of its rule (`lark.Token` for a terminal, a piece for a rule; `convein.syntax.span` gives
    the place of any of them) and returns a piece of the kind that the extended rule has, or a tuple of several:
    `Dimension` for `dimension`, `Mode` for `part`, `Term` for `term`, `Convolved` for `listed`, `Option` for `option`.
    A Term that has a `Constant` is an operand that nobody passes; returned for an `option`, without dimensions, it is
    a filter along the mode that has the option.

    Args:
        rules: Lark rules, read as if they stood at the end of `grammar/conv_einsum.lark`: `%extend` adds to one of its
            rules, `%override` replaces one, `%import` brings terminals of other grammars.
        handlers: one function for each new rule, by the rule's name or by its alias where it has one.
    """

    __slots__ = ("__weakref__", "_lock", "_parser", "handlers", "rules")

    def __init__(self, rules: str, handlers: Mapping[str, Handler]) -> None:
        self.rules = rules
        self.handlers = dict(handlers)
        self._parser: Lark | None = None
        self._lock = Lock()

    def __add__(self, other: Dialect) -> Dialect:
        """The language with the rules of both."""
        if not isinstance(other, Dialect):
            return NotImplemented
        return Dialect(f"{self.rules}\n{other.rules}", {**self.handlers, **other.handlers})

    def __reduce__(self) -> tuple[type[Dialect], tuple[str, Mapping[str, Handler]]]:
        """For copies and pickles: the parser is made again."""
        return type(self), (self.rules, self.handlers)

    @property
    def parser(self) -> Lark:
        """The parser of the core language with these rules, made at first use."""
        if self._parser is None:
            with self._lock:
                if self._parser is None:
                    self._parser = _build(self.rules, self.handlers)
        return self._parser


def _build(rules: str, handlers: Mapping[str, Handler]) -> Lark:
    from lark import Lark
    from lark.exceptions import LarkError
    from lark.load_grammar import FromPackageLoader

    import convein.grammar  # noqa: F401  # without it Lark reads a missing package as an empty grammar

    loader = FromPackageLoader("convein.grammar")
    path, core = loader(None, "conv_einsum.lark")
    steps = {**CORE, **{name: _inline(handler) for name, handler in handlers.items()}}
    try:
        parser = Lark(
            core + _OWN_IMPORT.sub("", rules),
            parser="lalr",
            source_path=path,
            import_paths=[loader],
            maybe_placeholders=False,
            transformer=SimpleNamespace(**steps),
        )
    except LarkError as error:
        raise ExpressionError(
            f"the dialect's rules do not go with the language: {str(error).strip()}",
            hint=f"line 1 of the dialect is line {core.count(chr(10)) + 1} there",
        ) from None
    names = {rule.alias or rule.options.template_source or rule.origin.name: rule for rule in parser.rules}
    inlined = {name for name, rule in names.items() if name.startswith("_") or rule.options.expand1}
    if missing := sorted(names.keys() - steps.keys() - inlined):
        raise ExpressionError(f"the dialect has no handler for its rule {', '.join(missing)}")
    if idle := sorted(handlers.keys() - names.keys()):
        raise ExpressionError(f"the dialect has no rule for its handler {', '.join(idle)}")
    return parser


def _inline(handler: Handler) -> Handler:
    return lambda parts: handler(*parts)
