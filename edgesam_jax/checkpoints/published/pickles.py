"""What a pickle contains, read from its opcodes: nothing is unpickled, so no code in the file can run.

For the message about a file that can't be loaded safely: it names what is in the way, and the command that its owner
can run.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

MAPPINGS = ("dict", "collections.OrderedDict", "collections.defaultdict", "builtins.dict")
LEGACY_PICKLES = 4  # files of torch.save before 1.6: three pickles about the file, then the object
OPCODES = 50_000_000  # more than any checkpoint has
_MARK = object()


@dataclass
class Thing:
    """An object that a pickle would create.

    ``kind`` is its class or the function that makes it, as ``module.name``; ``items`` are its keys and values if it is
    filled as a dict, with None for values that are neither texts nor created from a class.
    """

    kind: str
    items: dict[Any, Any] = field(default_factory=dict)

    @property
    def is_mapping(self) -> bool:
        """Whether it is a dict of the standard library."""
        return self.kind in MAPPINGS


class Outline(NamedTuple):
    """The object in a pickle, and whether ``torch.save`` wrote the file rather than ``pickle.dump``."""

    thing: Thing
    by_torch: bool


def outline(path: Path) -> Outline | None:
    """Return the object in a file of ``torch.save`` or ``pickle.dump``; None without a complete pickle."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                with archive.open(name) as file:
                    things = [_run(file)]
                by_torch = True
        else:
            with path.open("rb") as file:
                things = [_run(file)]
                by_torch = isinstance(things[0], int)  # the magic number of torch's old format
                things += [_run(file) for _ in range(LEGACY_PICKLES - 1 if by_torch else 0)]
        return Outline(things[-1], by_torch) if isinstance(things[-1], Thing) else None
    except Exception:  # a damaged file: pickletools, zipfile and zlib raise many types
        return None


def _run(file: IO[bytes]) -> Any:
    """Follow the opcodes of one pickle with inert stand-ins for all objects."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def to_mark() -> list[Any]:
        at = len(stack) - 1 - stack[::-1].index(_MARK)
        popped = stack[at + 1 :]
        del stack[at:]
        return popped

    for opcode, argument, _ in _limited(pickletools.genops(file)):
        name = opcode.name
        if name == "MARK":
            stack.append(_MARK)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            if name == "GLOBAL":
                kind = str(argument).replace(" ", ".")
            else:
                last = [stack.pop(), stack.pop()]
                kind = f"{last[1]}.{last[0]}"
            stack.append(Thing(kind))
        elif name == "EMPTY_DICT":
            stack.append(Thing("dict"))
        elif name == "DICT":
            _fill(thing := Thing("dict"), to_mark())
            stack.append(thing)
        elif name in ("SETITEM", "SETITEMS"):
            pairs = to_mark() if name == "SETITEMS" else [stack.pop(), stack.pop()][::-1]
            _fill(stack[-1], pairs)
        elif name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
            del stack[-2 if name == "NEWOBJ_EX" else -1 :]
            made = stack.pop()
            stack.append(Thing(made.kind) if isinstance(made, Thing) else None)
        elif name == "BUILD":
            stack.pop()
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "TUPLE":
            stack.append(tuple(to_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(name[-1])
            stack[-size:] = [tuple(stack[-size:])]
        elif name == "BINPERSID":  # a storage, or in torch's old format ("module", its class, source file, source)
            saved = stack.pop()
            module = isinstance(saved, tuple) and saved[:1] == ("module",)
            stack.append(saved[1] if module else None)
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "STOP":
            return stack[-1]
        else:
            if opcode.stack_before and opcode.stack_before[-1] is pickletools.stackslice:
                to_mark()
                del stack[len(stack) - (len(opcode.stack_before) - 2) :]
            elif opcode.stack_before:
                del stack[-len(opcode.stack_before) :]
            plain = argument if isinstance(argument, str | int) else None
            stack += [plain] * len(opcode.stack_after)
    return None


def _fill(thing: Any, pairs: list[Any]) -> None:
    if isinstance(thing, Thing):
        thing.items |= {k: v for k, v in zip(pairs[::2], pairs[1::2], strict=True) if isinstance(k, str | int)}


def _limited(opcodes: Iterator[Any]) -> Iterator[Any]:
    for count, opcode in enumerate(opcodes):
        if count > OPCODES:
            raise ValueError("too many opcodes")
        yield opcode
