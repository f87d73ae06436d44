"""As much of GraphQL as a client of the simulated API needs: one query, fields and arguments."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_TOKEN = re.compile(
    r"""[\s,]+|\#[^\n]*|(?P<string>"(?:[^"\\\n]|\\.)*")|(?P<number>-?\d+)"""
    r"""|(?P<variable>\$[_A-Za-z]\w*)|(?P<name>[_A-Za-z]\w*)|(?P<mark>[{}()\[\]:!=])"""
)
_DEEPEST = 20


class GraphQLError(ValueError):
    """The query is not one that the simulator understands."""


@dataclass(frozen=True)
class Field:
    """One field of a selection. ``key`` is its name in the answer."""

    name: str
    key: str
    arguments: Mapping[str, Any]
    fields: tuple["Field", ...]


class _Parser:
    def __init__(self, query: str, variables: Mapping[str, Any]) -> None:
        self._variables = variables
        self._tokens: list[tuple[str, str]] = []
        position = 0
        while position < len(query):
            match = _TOKEN.match(query, position)
            if match is None:
                raise GraphQLError(f"Syntax Error: Unexpected character at {position}.")
            if match.lastgroup is not None:
                self._tokens.append((match.lastgroup, match.group()))
            position = match.end()
        self._tokens.append(("end", ""))

    def _next(self, expected: str | None = None) -> tuple[str, str]:
        kind, text = self._tokens.pop(0) if len(self._tokens) > 1 else self._tokens[0]
        if expected is not None and expected not in (kind, text):
            raise GraphQLError(f"Syntax Error: Expected {expected}, found {text or 'the end'}.")
        return kind, text

    def _accept(self, text: str) -> bool:
        if self._tokens[0][1] != text:
            return False
        self._next()
        return True

    def document(self) -> tuple[Field, ...]:
        if self._tokens[0][0] == "name":
            if self._next()[1] != "query":
                raise GraphQLError("Only queries are simulated.")
            if self._tokens[0][0] == "name":
                self._next()
            if self._accept("("):
                while not self._accept(")"):
                    self._next_before_end()
        fields = self._selection(0)
        self._next("end")
        return fields

    def _next_before_end(self) -> None:
        if self._next()[0] == "end":
            raise GraphQLError("Syntax Error: Unexpected end.")

    def _selection(self, depth: int) -> tuple[Field, ...]:
        if depth > _DEEPEST:
            raise GraphQLError("The query is nested too deeply.")
        self._next("{")
        fields = []
        while not self._accept("}"):
            key = name = self._next("name")[1]
            if self._accept(":"):
                name = self._next("name")[1]
            arguments = self._object("(", ")", depth) if self._tokens[0][1] == "(" else {}
            nested = self._selection(depth + 1) if self._tokens[0][1] == "{" else ()
            fields.append(Field(name, key, arguments, nested))
        if not fields:
            raise GraphQLError("Syntax Error: Expected a field, found }.")
        return tuple(fields)

    def _object(self, opening: str, closing: str, depth: int) -> dict[str, Any]:
        self._next(opening)
        members = {}
        while not self._accept(closing):
            name = self._next("name")[1]
            self._next(":")
            members[name] = self._value(depth + 1)
        return members

    def _value(self, depth: int) -> Any:
        if depth > _DEEPEST:
            raise GraphQLError("The query is nested too deeply.")
        if self._tokens[0][1] == "{":
            return self._object("{", "}", depth)
        kind, text = self._next()
        if kind == "string":
            return re.sub(r"\\(.)", r"\1", text[1:-1])
        if kind == "number":
            return int(text)
        if kind == "variable":
            if text[1:] not in self._variables:
                raise GraphQLError(f'Variable "{text}" is not provided.')
            return self._variables[text[1:]]
        if kind == "name":
            return {"true": True, "false": False, "null": None}.get(text, text)
        raise GraphQLError(f"Syntax Error: Unexpected {text or 'end'}.")


def parse(query: str, variables: Mapping[str, Any]) -> tuple[Field, ...]:
    """Return the root fields of ``query`` with ``variables`` filled in.

    Raises:
        GraphQLError: the query is malformed, or uses fragments, directives or mutations.
    """
    return _Parser(query, variables).document()
