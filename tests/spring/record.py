"""Records what Spring sends in golden/request.json: python -m tests.spring.record, at the root."""

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

from driftline.stream.log import open_log
from driftline.stream.messages import ReplyRoute, encode_error, read_route, reply_draft, reply_form

from ..kafka.broker import KafkaBroker
from .spring import GOLDEN, REQUEST, ask, described


async def record(bootstrap: str) -> dict[str, Any]:
    """A request that names a reply partition and one that does not, answered so that both end."""
    recorded: dict[str, Any] = {}
    async with open_log(f"kafka:{bootstrap}") as log:
        for topic in ("driftline.search", "driftline.replies"):
            await log.create_topic(topic, partitions=2 if topic == "driftline.replies" else 1)
        reader = await log.reader({("driftline.search", 0): 0})
        for name, partition in (("partition", 1), ("group", None)):
            asking = asyncio.create_task(
                asyncio.to_thread(ask, bootstrap, "driftline.search", "driftline.replies", partition, REQUEST)
            )
            found = await reader.fetch(timeout_s=60.0)
            while not found and not asking.done():
                found = await reader.fetch(timeout_s=60.0)
            if not found:
                await asking
                raise RuntimeError("the program ended without a request")
            (request,) = found
            recorded[name] = described(request.key, request.value, request.headers)
            route = read_route(request, "driftline.replies")
            assert isinstance(route, ReplyRoute)
            form = reply_form(request)
            await log.append([reply_draft(route, encode_error("unknown_key", "recorded", form), form)])
            assert json.loads(await asking)["error"]["message"] == "recorded"
    return recorded


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory, KafkaBroker(Path(directory) / "broker") as broker:
        requests = asyncio.run(record(broker.bootstrap))
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(requests, indent=2) + "\n")
    print(GOLDEN.read_text())
