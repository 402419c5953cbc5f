"""The frames that are alive: numbers for people, one of four lanes each for the core."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptIndex, InvalidInput
from ..native import FRAMES, Core, Tile
from .tile import TileParameters

__all__ = ["Frame", "Frames"]


@dataclass(frozen=True, slots=True)
class Frame:
    """One set of encoder parameters. Numbers only grow; frame 0 holds floats and has no parameters."""

    number: int
    lane: int
    parameters: TileParameters | None


class Frames:
    """Opens, closes and numbers a core's frames. One thread at a time changes them."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._alive: dict[int, Frame] = {}  # by lane
        self._next = 0
        self.write = self._add(None, 0)

    def _add(self, parameters: TileParameters | None, lane: int) -> Frame:
        tile = None if parameters is None else _tile(parameters, self._core.route_bits)
        self._core.open_frame(lane, tile)
        frame = Frame(self._next, lane, parameters)
        self._alive[lane] = frame
        self._number()
        self._next += 1
        return frame

    @property
    def alive(self) -> tuple[Frame, ...]:
        """By number; any thread may ask."""
        frames = list(self._alive.values())  # in one step: another thread may be changing the dict
        return tuple(sorted(frames, key=lambda frame: frame.number))

    @property
    def tiles(self) -> tuple[tuple[Frame, TileParameters], ...]:
        """The frames that are not floats, with their parameters."""
        return tuple((frame, frame.parameters) for frame in self.alive if frame.parameters is not None)

    def tables(self, bits: int) -> NDArray[np.float32]:
        """float32 [FRAMES, 2**bits], by lane: what the top `bits` bits of codes decode to; zeros where no
        tile frame is."""
        tables = np.zeros((FRAMES, 2**bits), np.float32)
        for frame, parameters in self.tiles:
            tables[frame.lane] = parameters.table(bits)
        return tables

    @property
    def free(self) -> int:
        """Lanes in which a frame can open."""
        return FRAMES - len(self._alive)

    @property
    def full(self) -> bool:
        return not self.free

    def at(self, lane: int) -> Frame:
        return self._alive[lane]

    def rows(self, frame: Frame) -> int:
        """Slots that the frame occupies; any thread may ask."""
        try:
            return self._core.frame_rows(frame.lane)
        except InvalidInput:  # upkeep has closed it since it was seen alive
            return 0

    def open(self, parameters: TileParameters) -> Frame:
        """A new frame in a free lane; there must be one."""
        return self._add(parameters, next(lane for lane in range(FRAMES) if lane not in self._alive))

    def write_in(self, frame: Frame) -> None:
        """New vectors use this frame."""
        self._core.write_frame(frame.lane)
        self.write = frame

    def close_unused(self) -> list[Frame]:
        """Close what no slot uses and nothing will be written in; what was closed."""
        closed: list[Frame] = []
        for frame in self.alive:
            if frame is self.write or self.rows(frame):  # closing locks out writers: ask before
                continue
            if self._core.close_frame(frame.lane):
                del self._alive[frame.lane]
                self._number()
                closed.append(frame)
        return closed

    def _number(self) -> None:
        numbers = np.full(FRAMES, -1, np.int64)
        for frame in self._alive.values():
            numbers[frame.lane] = frame.number
        self.numbers: NDArray[np.int64] = numbers
        """Frame numbers by lane, -1 where none is alive; never written to again."""

    # ---- as part of a cut

    def state(self) -> dict[str, Any]:
        """For `restore`: next (a number) and write (a lane), int; alive, a list of [number, lane, tile
        parameters or nil]."""
        return {
            "next": self._next,
            "write": self.write.lane,
            "alive": [
                [frame.number, frame.lane, None if frame.parameters is None else frame.parameters.to_bytes()]
                for frame in self.alive
            ],
        }

    @classmethod
    def restore(cls, core: Core, state: dict[str, Any]) -> "Frames":
        """Open the frames of a cut in a fresh core; CorruptIndex if they cannot be."""
        frames = cls.__new__(cls)
        frames._core = core
        frames._alive = {}
        try:
            for number, lane, data in state["alive"]:
                frames._next = number
                frames._add(None if data is None else TileParameters.from_bytes(data), lane)
            frames._next = state["next"]
            frames.write = frames._alive[state["write"]]
        except (KeyError, TypeError, ValueError) as cause:
            raise CorruptIndex(f"the stored frames cannot be opened: {cause}") from cause
        core.write_frame(frames.write.lane)
        return frames


def _tile(parameters: TileParameters, route_bits: int) -> Tile:
    return Tile(
        mean=parameters.mean,
        scale=parameters.scale,
        edges=parameters.edges,
        fine=parameters.table(8),
        coarse=parameters.table(route_bits),
        rotated=parameters.rotation_seed is not None,
    )
