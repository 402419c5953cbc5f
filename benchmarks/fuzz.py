"""Does any record or request bring the service down, get lost, or go unaccounted for?

A million fuzzed records (flipped bits, random documents and bytes, wrong dimensions, NaN, headers missing,
doubled and damaged) among as many good ones on a real Kafka: each is applied, or there is exactly one dead
letter for it with a known code; afterwards the keys are those of the topic and every good vector is there.
Before it, a hundred thousand fuzzed requests: each is answered once, or its refusal is counted.
"""

import asyncio
import random
import time

from driftline.stream.feeding import progress_bar
from driftline.stream.log import open_log
from report import parser, report
from running import place

from tests.stream.fuzzing import SETTINGS, Tally, fuzz_records, fuzz_requests
from tests.stream.running import Place


async def play(url: str, fuzzed: Place, records: int, requests: int, seed: int) -> tuple[Tally, Tally]:
    async with open_log(url) as log:
        with progress_bar() as progress:
            asking = progress.add_task("requests", total=requests, note="")
            asked = await fuzz_requests(
                log, fuzzed, requests, seed, lambda done: progress.update(asking, completed=done)
            )
            feeding = progress.add_task("records", total=records, note="")
            fed = await fuzz_records(
                log, fuzzed, records, seed, lambda done: progress.update(feeding, completed=done)
            )
    return fed, asked


def main() -> None:
    flags = parser(__doc__, base=False, queries=False)
    flags.add_argument("--records", type=int, default=1_000_000, metavar="N",
                       help="fuzzed ones, among as many good ones (default: %(default)s)")  # fmt: skip
    flags.add_argument("--requests", type=int, default=100_000, metavar="N", help="(default: %(default)s)")
    flags.add_argument("--seed", type=int, help="of all of them; else drawn and printed")
    options = flags.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(2**31)
    print(f"fuzz      seed {options.seed}", flush=True)
    began = time.monotonic()
    with place(None) as (directory, url):
        fuzzed = Place(url, "fuzz", directory, **SETTINGS)
        with fuzzed.service.start():
            fed, asked = asyncio.run(play(url, fuzzed, options.records, options.requests, options.seed))
    wrong = fed.wrong + asked.wrong
    figures = {
        "records": fed.fuzzed, "good_records": fed.good, "dead_letters": fed.codes,
        "requests": asked.fuzzed, "answered": asked.answered, "expired": asked.expired,
        "errors_replied": asked.codes, "wrong": wrong, "passed": not wrong,
    }  # fmt: skip
    rows = [[code, fed.codes[code], asked.codes[code]] for code in sorted(fed.codes | asked.codes)]
    rows += [
        ["rejected", fed.codes.total(), asked.codes.total()],
        ["applied; answered with hits", fed.fuzzed - fed.codes.total(), asked.answered],
        ["all fuzzed", fed.fuzzed, asked.fuzzed],
        ["good ones among them", fed.good, ""],
        ["not accounted for", "; ".join(fed.wrong[:5]) or 0, "; ".join(asked.wrong[:5]) or 0],
    ]
    title = f"Seed {options.seed}, {(time.monotonic() - began) / 60:.1f} minutes"
    report(title, ["", "records", "requests"], rows, figures, options)
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
