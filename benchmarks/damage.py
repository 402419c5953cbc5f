"""Does damage ever give a wrong answer, or end a process without a sentence?

A directory with many snapshots is made from a seeded script of inserts, updates and deletes. Then, each time
in a fresh copy: a bit is flipped (as many in each kind of page and of each part of a raw segment), a file is
cut off, or the disk (a tmpfs: this needs root) is full at some point of writing, where the process goes on
when there is room again, or is killed and started on the full disk. What is live is compared with a fold of
the script, by its digest, as it was loaded and after the rest of the script; and `check` must pass.
"""

import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from driftline.stream.feeding import progress_bar
from report import parser, report

sys.path.append(str(Path(__file__).parent.parent))  # the harness is the tests' too

from tests.stream.damaging import BRANCH, STRATA, Script, Worker, flip, make_directory, strata, truncate

OUTCOMES = ("newest", "older", "rebuilt", "refused", "went on", "never full", "killed")
LONGEST = 300  # of a reason that is shown
Result = dict[str, Any]


def main() -> None:
    flags = parser(__doc__ or "", base=False, queries=False)
    flags.add_argument("--flips", type=int, default=500, metavar="N", help="bits flipped (%(default)s)")
    flags.add_argument("--truncations", type=int, default=50, metavar="N", help="files cut off (%(default)s)")
    flags.add_argument(
        "--full", type=int, default=50, metavar="N", help="points of a full disk (%(default)s)"
    )
    flags.add_argument("--seed", type=int, default=1, help="of script and damage (%(default)s)")
    options = flags.parse_args()
    if options.full and os.geteuid():
        flags.error("a full disk is a tmpfs that is mounted, which needs root; --full 0 leaves it out")
    print(f"seed {options.seed}")
    draw, script = random.Random(options.seed), Script(steps=64, rows=100, seed=options.seed)
    results: dict[str, list[Result]] = {}
    with tempfile.TemporaryDirectory(prefix="driftline-damage-") as name, progress_bar() as progress:
        place = Path(name)
        whole, many = place / "whole", place / "many"
        make_directory(whole, script)
        make_directory(many, script, every=1, keep=62)  # so many that there is a branch page
        homes = {stratum: many if stratum == BRANCH else whole for stratum in STRATA}
        places = {stratum: strata(homes[stratum])[stratum] for stratum in STRATA}
        total = options.flips + options.truncations + options.full
        bar = progress.add_task("damaging", total=total, note="")
        worker = Worker(script)

        def note(kind: str, result: Result) -> None:
            results.setdefault(kind, []).append(result)
            progress.update(bar, advance=1, note=kind)

        def damaged(kind: str, damage: Callable[[Path], str], home: Path = whole) -> None:
            note(kind, worker.recover(home, place / "copy", damage))

        for number in range(options.flips):
            stratum = STRATA[number % len(STRATA)]
            at = places[stratum]
            damaged(stratum, lambda copy, at=at: flip(copy, draw.choice(at), draw), homes[stratum])
        for _ in range(options.truncations):
            damaged("cut off", lambda copy: truncate(copy, draw))
        if options.full:
            worker.ask("fill", place / "unbounded", place / "none", False)
            needed = sum(file.stat().st_blocks * 512 for file in (place / "unbounded").rglob("*"))
            for number in range(options.full):
                room = draw.randrange(needed)
                note("full disk", full_disk(worker, place / "disk", needed, room, kill=number % 2 == 1))
        worker.close()
    rows = [
        (kind, len(of), *(Counter(result["outcome"] for result in of)[outcome] for outcome in OUTCOMES),
         sum(result["wrong"] is not None for result in of))
        for kind, of in results.items()
    ]  # fmt: skip
    wrong = [result for of in results.values() for result in of if result["wrong"] is not None]
    silent = [
        result for of in results.values() for result in of
        if result["outcome"] not in ("newest", "never full") and not result["said"]
    ]  # fmt: skip
    header = ("damage", "times", *OUTCOMES, "wrong")
    report("What became of it", header, rows, {"results": results, "wrong": wrong, "silent": silent}, options)
    for result in (*wrong, *silent):
        print({**result, "said": [reason[:LONGEST] for reason in result["said"]]})
    print(f"wrong answers or deaths: {len(wrong)}; damage that was not told of: {len(silent)}")
    if wrong or silent:
        sys.exit(1)


def full_disk(worker: Worker, mount: Path, needed: int, room: int, *, kill: bool) -> Result:
    """A disk with so much room, filled by the script. Where the process was killed then, it is recovered on
    the full disk, then with room: the last of these, with all that was said."""
    with small_disk(mount, 4 * needed):
        ballast = mount / "ballast"
        with ballast.open("wb") as file:
            file.write(bytes(4 * needed - room - (64 << 10)))
        result = worker.ask("fill", mount / "data", ballast, kill)
        if result["outcome"] != "killed":
            return {"room": room, **result}
        on_full = worker.ask("recover", mount / "data")
        if on_full["wrong"] is not None and "StorageRefused" not in on_full["wrong"]:
            return {"room": room, **on_full}
        ballast.unlink()
        again = worker.ask("recover", mount / "data")
        said = result["said"] + on_full["said"] + again["said"]
        return {"room": room, "outcome": "killed", "wrong": again["wrong"], "said": said}


@contextmanager
def small_disk(mount: Path, size: int) -> Iterator[None]:
    mount.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", mount], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", mount], check=True)


if __name__ == "__main__":
    main()
