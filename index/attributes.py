"""Which slots hold which attributes: field -> item -> compressed bitmap of slots.

A field keeps its items sorted, in blocks of some hundred, and each block the union of its bitmaps, so that
a range is a few dozen unions and not one per item, and a new item moves some hundred others and not all. An
item that one slot alone has keeps that slot's number instead of a bitmap. Every slot remembers its items,
because the core tells which slot it wrote to, not what stood there before.

What stands under a slot that is dead stays until the slot is used again: the core passes over it.

Memory: nothing while no row has attributes. Then about 8 bytes a slot and 33 + 4 per item (shared by slots
with equal items), the bitmaps, and for each distinct item of a field about 300 bytes.

Not safe for several threads: who uses it holds a lock.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Sequence

from pyroaring import BitMap

from ..errors import InvalidInput
from .payloads import Bound, Item, Items, items_of

__all__ = ["MAX_FIELDS", "Attributes", "Field", "UnknownField"]

MAX_FIELDS = 1024  # names that can be filtered by: a record can bring 4096 new ones, and each is for ever
NAMED = 20  # fields that a reason lists
BLOCK = 512  # items; a block of twice as many is split
SHARED = 1 << 16  # different sets of items that are looked up to be shared; then the table starts anew


class UnknownField(InvalidInput):
    """A filter names a field that no row has had."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason)
        self.name = name


class Block:
    """Some consecutive items of a field, and the slots of them all."""

    __slots__ = ("items", "slots")

    def __init__(self, items: list[Item], slots: BitMap) -> None:
        self.items = items
        self.slots = slots


class Posting:
    """The slots of one item: a number while it is one."""

    __slots__ = ("block", "field", "item", "number", "slots")

    def __init__(self, field: "Field", item: Item, number: int) -> None:
        self.field = field
        self.item = item
        self.number = number
        self.block: Block | None = None
        self.slots: BitMap | int | None = None

    def add(self, slots: Sequence[int]) -> None:
        if isinstance(self.slots, BitMap):
            self.slots.update(slots)
        elif self.slots is None and len(slots) == 1:
            self.slots = slots[0]
        else:
            self.slots = BitMap(slots if self.slots is None else [self.slots, *slots], optimize=False)

    def discard(self, slot: int) -> None:
        if isinstance(self.slots, BitMap):
            self.slots.discard(slot)
            if not self.slots:
                self.slots = None
        elif self.slots == slot:
            self.slots = None


class Field:
    """One name's items and their slots."""

    def __init__(self) -> None:
        self._postings: dict[Item, Posting] = {}
        self._blocks: list[Block] = []
        self._firsts: list[Item] = []  # of each block

    def get(self, item: Item) -> Posting | None:
        return self._postings.get(item)

    def among(self, items: Collection[Item]) -> BitMap:
        """Slots that hold one of these items."""
        return self._union(item for item in items if item in self._postings)

    def between(self, low: Bound, open_low: bool, high: Bound, open_high: bool) -> BitMap:
        """Slots that hold an item within bounds; open: without the bound itself."""
        whole: list[BitMap] = []
        single: list[Item] = []
        for block in self._blocks[max(0, self._place(low)) :]:
            start = (bisect_right if open_low else bisect_left)(block.items, low)
            stop = (bisect_left if open_high else bisect_right)(block.items, high)
            if stop - start == len(block.items):
                whole.append(block.slots)
            else:
                single += block.items[start:stop]
            if stop < len(block.items):
                break
        slots = self._union(single)
        return slots.union(*whole) if whole else slots

    def present(self) -> BitMap:
        """Slots that hold any item."""
        return BitMap().union(*[block.slots for block in self._blocks])

    def add(self, posting: Posting) -> None:
        """Give a new item its place."""
        item = posting.item
        self._postings[item] = posting
        if not self._blocks:
            posting.block = Block([item], BitMap())
            self._blocks.append(posting.block)
            self._firsts.append(item)
            return
        number = max(0, self._place(item))
        block = posting.block = self._blocks[number]
        block.items.insert(bisect_left(block.items, item), item)
        self._firsts[number] = block.items[0]
        if len(block.items) >= 2 * BLOCK:
            upper = Block(block.items[BLOCK:], BitMap())
            del block.items[BLOCK:]
            self._blocks.insert(number + 1, upper)
            self._firsts.insert(number + 1, upper.items[0])
            for half in (block, upper):
                half.slots = self._union(half.items)
                for each in half.items:
                    self._postings[each].block = half

    def remove(self, posting: Posting) -> None:
        """Forget an item that no slot holds."""
        block = posting.block
        assert block is not None, "a posting of a field has a block"
        number = self._place(posting.item)
        del self._postings[posting.item]
        del block.items[bisect_left(block.items, posting.item)]
        if block.items:
            self._firsts[number] = block.items[0]
        else:
            del self._blocks[number], self._firsts[number]

    def _place(self, bound: Bound) -> int:
        """The last block that begins at or before the bound; -1 if none does."""
        return bisect_right(self._firsts, bound) - 1

    def _union(self, items: Iterable[Item]) -> BitMap:
        bitmaps: list[BitMap] = []
        alone: list[int] = []
        for item in items:
            slots = self._postings[item].slots
            if isinstance(slots, BitMap):
                bitmaps.append(slots)
            elif slots is not None:
                alone.append(slots)
        return BitMap(alone, optimize=False).union(*bitmaps)


class Attributes:
    """The items of all slots. `version` grows with every change of a bitmap."""

    def __init__(self) -> None:
        self.version = 0
        self.slots = 0  # how many there are at least: what `not` is taken from
        self._fields: dict[str, Field] = {}
        self._postings: list[Posting | None] = []
        self._unused: list[int] = []  # numbers of postings that are gone
        self._rows: list[bytes | None] = []  # by slot: numbers of its postings, u32
        self._shared: dict[bytes, bytes] = {}

    def put(self, slots: Sequence[int], payloads: Sequence[bytes | None]) -> None:
        """Each slot holds what its payload says, and nothing else any more."""
        rows = dict(zip(slots, payloads, strict=True))
        cleared = self._clear(rows)
        alike: dict[bytes, list[int]] = {}
        for slot, payload in rows.items():
            if payload:
                alike.setdefault(payload, []).append(slot)
        given = [(self._numbers(items_of(payload)), same) for payload, same in alike.items()]
        self.version += self._set(given) or cleared

    def copy(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Of (from, to) pairs: `to` holds what `from` does, and nothing else any more."""
        given = [(self._row(source), [to]) for source, to in pairs]
        cleared = self._clear([to for _, (to,) in given])
        self.version += self._set(given) or cleared

    def field(self, name: str) -> Field:
        """UnknownField for a name that no row has had."""
        field = self._fields.get(name)
        if field is None:
            names = sorted(self._fields)
            known = ", ".join(map(repr, names[:NAMED])) + (
                f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            )
            raise UnknownField(
                name,
                f"filter: unknown field {name[:64]!r}; known are {known}"
                if names
                else f"filter: unknown field {name[:64]!r}; no row has an attribute that can be filtered by",
            )
        return field

    def everything(self) -> BitMap:
        """All slots, dead ones too."""
        return BitMap(range(self.slots))

    def _row(self, slot: int) -> bytes | None:
        return self._rows[slot] if slot < len(self._rows) else None

    def _numbers(self, items: Items) -> bytes | None:
        """The postings of a row's items, made where they are new."""
        numbers = array("I")
        for name, several in items.items():
            field = self._fields.get(name)
            if field is None:
                if len(self._fields) >= MAX_FIELDS:
                    continue
                field = self._fields[name] = Field()
            for item in several:
                posting = field.get(item) or self._new(field, item)
                numbers.append(posting.number)
        return numbers.tobytes() or None

    def _new(self, field: Field, item: Item) -> Posting:
        number = self._unused.pop() if self._unused else len(self._postings)
        posting = Posting(field, item, number)
        if number == len(self._postings):
            self._postings.append(posting)
        else:
            self._postings[number] = posting
        field.add(posting)
        return posting

    def _set(self, given: Iterable[tuple[bytes | None, list[int]]]) -> bool:
        """Let slots that hold nothing hold the postings of a row each."""
        postings: dict[Posting, list[int]] = {}
        for row, slots in given:
            if row is None:
                continue
            if len(self._shared) >= SHARED:
                self._shared.clear()
            row = self._shared.setdefault(row, row)
            if (most := max(slots)) >= len(self._rows):
                self._rows.extend([None] * (most + 1 - len(self._rows)))
                self.slots = max(self.slots, most + 1)
            for slot in slots:
                self._rows[slot] = row
            for posting in self._of(row):
                postings.setdefault(posting, []).extend(slots)
        blocks: dict[Block, list[int]] = {}
        for posting, slots in postings.items():
            posting.add(slots)
            assert posting.block is not None, "a posting of a field has a block"
            blocks.setdefault(posting.block, []).extend(slots)
        for block, slots in blocks.items():
            block.slots.update(slots)
        return bool(postings)

    def _clear(self, slots: Iterable[int]) -> bool:
        changed = False
        for slot in slots:
            row = self._row(slot)
            if row is None:
                continue
            changed = True
            self._rows[slot] = None
            for posting in self._of(row):
                posting.discard(slot)
                assert posting.block is not None, "a posting of a field has a block"
                posting.block.slots.discard(slot)
                if posting.slots is None:
                    posting.field.remove(posting)
                    self._postings[posting.number] = None
                    self._unused.append(posting.number)
        return changed

    def _of(self, row: bytes) -> list[Posting]:
        postings = [self._postings[number] for number in array("I", row)]
        return [posting for posting in postings if posting is not None]
