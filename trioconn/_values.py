"""What values have in common, written once.

``@dataclass`` compiles its methods anew for each class, which is half of what importing this package takes. Values that
nobody compares on a hot path leave these out (``eq=False, repr=False``) and take them from here: the same semantics,
somewhat slower to call, and nothing to compile.
"""

from __future__ import annotations


class Value:
    """Equality, hash and repr of a frozen dataclass with slots, by all of its fields."""

    __slots__: tuple[str, ...] = ()

    def _fields(self) -> tuple[object, ...]:
        return tuple([getattr(self, name) for name in self.__slots__])

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash(self._fields())

    def __repr__(self) -> str:
        shown = ", ".join([f"{name}={getattr(self, name)!r}" for name in self.__slots__])
        return f"{type(self).__name__}({shown})"
