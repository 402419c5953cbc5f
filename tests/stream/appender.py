"""A process that appends to a local log, for the tests that need another process or one to kill.

appender.py DIRECTORY TOPIC NAME CALLS DRAFTS: so many calls of so many drafts; CALLS 0 goes on until killed.
After each call one line on standard output: offset of the last draft, its value, seconds of CLOCK_MONOTONIC
at which it was acknowledged. With a sixth argument it waits for a line on standard input before each call.
"""

import asyncio
import itertools
import sys
import time

from driftline.stream.log import Draft, open_log


async def main(directory: str, topic: str, name: str, calls: int, drafts: int, asked: bool) -> None:
    async with open_log(f"local:{directory}") as log:
        await log.create_topic(topic)
        for call in itertools.count() if calls == 0 else range(calls):
            values = [b"%s %d" % (name.encode(), call * drafts + part) for part in range(drafts)]
            if asked:
                await asyncio.to_thread(sys.stdin.readline)
            positions = await log.append([Draft(topic, b"key", value + b"." * 3000) for value in values])
            print(positions[-1].offset, values[-1].decode(), time.monotonic(), flush=True)


if __name__ == "__main__":
    _, directory, topic, name, calls, drafts, *asked = sys.argv
    asyncio.run(main(directory, topic, name, int(calls), int(drafts), bool(asked)))
