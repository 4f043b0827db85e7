"""An unpickler that looks at every instruction: names come from a list, and objects are counted as they are made.

Objects of a pickle are shared for a byte or two, so that a few hundred bytes can stand for more objects than any
machine could visit: the hash of a tuple of tuples visits them all, and so does whoever prints them. What is hashed or
handed to a function is therefore counted with all that it is made of (`limits.Allowance.visit`), and instructions act
only on what they are meant for: items go into dicts, lists and sets, a state goes into records.

It is Python's own unpickler written in Python, because the faster one offers nothing to count at.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable, Iterable
from typing import IO, Any, ClassVar

from solverdistill.support.limits import MAX_OBJECTS, Allowance, Oversized

PYTHONS_OWN: Any = vars(pickle)["_Unpickler"]  # written in Python, beside the one in C


class Refused(Exception):
    """Something that is not on the list."""


class Reader(PYTHONS_OWN):
    """Reads one pickle.

    Args:
        stream: Stream that is read to the end of the pickle.
        allowance: What its file may take; counted on.
        find: Gives what stands for a name of a module, or raises `Refused`.
        stateful: Classes whose instances take a state.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]]

    def __init__(
        self,
        stream: IO[bytes],
        allowance: Allowance,
        find: Callable[[str, str], Any],
        stateful: tuple[type, ...],
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(stream, fix_imports=False)
        self.allowance, self.find, self.stateful, self.persistent = allowance, find, stateful, persistent

    def find_class(self, module: str, name: str) -> Any:
        return self.find(module, name)

    def persistent_load(self, pid: Any) -> Any:
        if self.persistent is None:
            raise Refused("a persistent id")
        return self.persistent(pid)

    def _count_keys(self, keys: Iterable[Any]) -> None:
        for key in keys:
            if isinstance(key, (tuple, frozenset)):
                self.allowance.visit(key)

    def _expect(self, target: Any, kind: type | tuple[type, ...], what: str) -> None:
        if not isinstance(target, kind):
            raise Refused(f"{what} for an object of type {type(target).__name__}")

    def _load_item(self) -> None:
        self._expect(self.stack[-3], dict, "an item")
        self._count_keys(self.stack[-2:-1])
        super().load_setitem()

    def _load_items(self) -> None:
        self._expect(self.metastack[-1][-1], dict, "items")
        self._count_keys(self.stack[::2])
        super().load_setitems()

    def _load_dict(self) -> None:
        self._count_keys(self.stack[::2])
        super().load_dict()

    def _load_append(self) -> None:
        self._expect(self.stack[-2], list, "an item")
        super().load_append()

    def _load_appends(self) -> None:
        self._expect(self.metastack[-1][-1], list, "items")
        super().load_appends()

    def _load_members(self) -> None:
        self._expect(self.metastack[-1][-1], set, "members")
        self._count_keys(self.stack)
        super().load_additems()

    def _load_frozenset(self) -> None:
        self._count_keys(self.stack)
        super().load_frozenset()

    def _load_state(self) -> None:
        self._expect(self.stack[-2], self.stateful, "a state")
        super().load_build()

    def _load_call(self) -> None:
        self.allowance.visit(self.stack[-1])
        super().load_reduce()

    def _load_new(self) -> None:
        self.allowance.visit(self.stack[-1])
        super().load_newobj()

    def _load_new_with_keywords(self) -> None:
        self.allowance.visit(self.stack[-2:])
        super().load_newobj_ex()

    def _load_object(self) -> None:
        self.allowance.visit(self.stack)
        super().load_obj()

    def _load_instance(self) -> None:
        self.allowance.visit(self.stack)
        super().load_inst()


Reader.dispatch = PYTHONS_OWN.dispatch | {
    pickle.SETITEM[0]: Reader._load_item,
    pickle.SETITEMS[0]: Reader._load_items,
    pickle.DICT[0]: Reader._load_dict,
    pickle.APPEND[0]: Reader._load_append,
    pickle.APPENDS[0]: Reader._load_appends,
    pickle.ADDITEMS[0]: Reader._load_members,
    pickle.FROZENSET[0]: Reader._load_frozenset,
    pickle.BUILD[0]: Reader._load_state,
    pickle.REDUCE[0]: Reader._load_call,
    pickle.NEWOBJ[0]: Reader._load_new,
    pickle.NEWOBJ_EX[0]: Reader._load_new_with_keywords,
    pickle.OBJ[0]: Reader._load_object,
    pickle.INST[0]: Reader._load_instance,
}


def scan(stream: IO[bytes], allowance: Allowance) -> None:
    """Look at the instructions of one pickle, before any is followed, and go back to its beginning.

    Raises:
        Refused: one goes around the list of names, or fills the memory with an empty table.
        Oversized: there are more than `limits.MAX_OBJECTS`.
    """
    start = stream.tell()
    for count, (instruction, argument, _) in enumerate(pickletools.genops(stream)):
        if count > MAX_OBJECTS:
            raise Oversized(f"{allowance.what} is a pickle of over {MAX_OBJECTS} instructions")
        if instruction.name in ("EXT1", "EXT2", "EXT4"):
            raise Refused("a registered extension")
        if instruction.name in ("PUT", "BINPUT", "LONG_BINPUT") and isinstance(argument, int) and argument > count:
            raise Refused("a memory cell out of order")
    stream.seek(start)
