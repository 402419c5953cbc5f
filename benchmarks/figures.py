"""How do centroids of k-means and of tiles lie in the data, and what do their searches cost?

The figures of the article on the tile encoder (Weaviate, 2023) on our sets, a column each, for docs/tile.md:
where the 256 centroids of a dimension lie (figure 1), the product of two dimensions coded apart, 32 centroids
each (figure 2), two dimensions coded together by k-means (figure 3), and what benchmarks/compress.py has
measured (figures 4 to 9). The dimensions are the first two neighbours of more than half the mean variance:
the first pixels of an image are always black.

    python benchmarks/figures.py --base sift128_base.npy commits384.npz:base --measured sift.json commits.json
"""

import argparse
import json
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from driftline.index.encoder import TileEncoder
from driftline.native import rotate
from plots import BLUE, GREEN, GREY, ORANGE, Panel, draw
from vectors import DEMO, Vectors, file_and_array, load_vectors

ROWS = 60_000  # of a set at most
BINS = 40
SHOWN = (0.001, 0.999)  # quantiles of the values that a panel reaches to
PUBLISHED: dict[str, Any] = {"distribution": "normal", "spread": 1.0, "rotation": "none"}
OURS: dict[str, Any] = {"distribution": "normal", "rotation": "none"}


def name_of(place: str) -> str:
    return file_and_array(place)[0].stem.removesuffix("_base").replace("_", "-")


def kmeans(x: Vectors, count: int) -> Vectors:
    """Centroids, float32 [count, dim]."""
    fitted = faiss.Kmeans(x.shape[1], count, niter=25, seed=0)
    fitted.train(np.ascontiguousarray(x))
    return fitted.centroids


def tiles(x: Vectors, count: int, options: dict[str, Any]) -> Vectors:
    """What the codes of one dimension stand for, float32 [count, 1]."""
    encoder = TileEncoder(1, levels=count, **options)
    encoder.update(np.ascontiguousarray(x))
    encoder.fit()
    return encoder.decode(np.arange(count, dtype=np.uint8)[:, None])


def pair(rows: Vectors) -> int:
    """The first of two neighbouring dimensions that vary."""
    varied = rows.var(axis=0) > rows.var(axis=0).mean() / 2
    return int(np.argmax(varied[:-1] & varied[1:]))


def reach(x: Vectors) -> tuple[float, float]:
    low, high = np.quantile(x, SHOWN)
    air = 0.04 * float(high - low)
    return float(low) - air, float(high) + air


def steps(values: Vectors, shown: tuple[float, float]) -> list[tuple[float, float]]:
    """Corners of a histogram of shares."""
    counts, edges = np.histogram(values, BINS, shown)
    shares = counts / len(values)
    return [(float(edge), float(share)) for i, share in enumerate(shares) for edge in edges[i : i + 2]]


def one_dimension(x: Vectors, title: str, y_label: str) -> Panel:
    """Figure 1: how 256 centroids are spread over the values of x [n, 1], which stand behind them."""
    shown = reach(x)
    panel = Panel(title, "value", y_label, x_range=shown)
    panel.area([(shown[0], 0.0), *steps(x, shown), (shown[1], 0.0)])
    panel.line(steps(kmeans(x, 256), shown), ORANGE)
    panel.line(steps(tiles(x, 256, PUBLISHED), shown), GREEN, dashed=True)
    panel.line(steps(tiles(x, 256, OURS), shown), BLUE)
    return panel


def plane(points: Vectors, x: Vectors, title: str, labels: tuple[str, str], colour: str) -> Panel:
    """Centroids of two dimensions, over the part of the plane that the rows of x [n, 2] fill."""
    panel = Panel(title, *labels, x_range=reach(x[:, 0]), y_range=reach(x[:, 1]))
    panel.dots([(float(a), float(b)) for a, b in points], colour)
    return panel


def product(first: Vectors, second: Vectors) -> Vectors:
    return np.stack([side.ravel() for side in np.meshgrid(first, second)], axis=1)


def centroids(places: list[str], into: Path) -> None:
    """Figures 1 to 3."""
    stored, turned, apart, tiled, together32, together256 = ([] for _ in range(6))
    for place in places:
        rows = load_vectors(place, ROWS)
        d = pair(rows)
        x, name = rows[:, d : d + 2], name_of(place)
        stored.append(one_dimension(x[:, :1], f"{name}, dimension {d}", "share"))
        rotated = rotate(rows, 0)[:, d : d + 1]
        turned.append(one_dimension(rotated, f"{name}, rotated", "share"))
        labels = f"dimension {d}", f"dimension {d + 1}"
        grid = product(kmeans(x[:, :1], 32), kmeans(x[:, 1:], 32))
        apart.append(plane(grid, x, f"{name}, k-means 32 x 32", labels, ORANGE))
        grid = product(tiles(x[:, :1], 32, OURS), tiles(x[:, 1:], 32, OURS))
        tiled.append(plane(grid, x, f"{name}, tiles 32 x 32", labels, BLUE))
        for panels, count in ((together32, 32), (together256, 256)):
            title = f"{name}, {count} of both at once"
            panels.append(plane(kmeans(x, count), x, title, labels, ORANGE))
    legend = [("rows", GREY, False), ("k-means", ORANGE, False), ("tiles as published", GREEN, True),
              ("tiles, spread sqrt(3)", BLUE, False)]  # fmt: skip
    draw([stored, turned], legend, "Where 256 centroids of one dimension lie", into / "tile-one.svg")
    draw([apart, tiled], [], "Two dimensions coded apart", into / "tile-apart.svg")
    draw([together32, together256], [], "Two dimensions coded together", into / "tile-together.svg")


def measured(places: list[Path], into: Path) -> None:
    """Figures 4 to 9, and the same for compression after all rows."""
    documents = [json.loads(place.read_text()) for place in places]
    colours = {"tile": BLUE, "kmeans": ORANGE}
    legend = [("tiles", BLUE, False), ("tiles, rescored", BLUE, True), ("k-means", ORANGE, False),
              ("k-means, rescored", ORANGE, True)]  # fmt: skip
    for begins, file in (("20 %", "tile-after-fifth.svg"), ("all", "tile-after-all.svg")):
        search, index = [], []
        for document in documents:
            figures, name = document["figures"], name_of(document["flags"]["base"])
            rows = figures["rows"][0]
            latency = Panel(f"{name}, {rows:,} rows", "us of a query", "recall@10", log_x=True)
            for of in figures["curves"]:
                if of["begins"] == begins:
                    points = [(point["us"], point["recall"]) for point in of["curve"]]
                    latency.line(points, colours[of["system"]], dashed=of["rescored"])
            search.append(latency)
            indexing = Panel(name, "s of indexing", "recall@10 at ef 64", log_x=True)
            for system, colour in colours.items():
                builds = [of for of in figures["builds"] if (of["system"], of["begins"]) == (system, begins)]
                builds.sort(key=lambda of: of["index_s"])
                for kind in ("recall", "rescored"):
                    points = [(of["index_s"], of[kind]) for of in builds]
                    indexing.line(points, colour, dashed=kind == "rescored")
                    indexing.dots(points, colour)
            index.append(indexing)
        draw([search, index], legend, f"Floats become codes after {begins} of the rows", into / file)


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--base", nargs="+", default=[f"{DEMO}:base"], metavar="FILE",
                       help="vectors, FILE.npy or FILE.npz:ARRAY (default: %(default)s)")  # fmt: skip
    flags.add_argument("--measured", nargs="*", type=Path, default=[], metavar="FILE",
                       help="what compress.py --json wrote, of each set")  # fmt: skip
    flags.add_argument("--into", type=Path, default=Path("docs"), help="directory (default: %(default)s)")
    options = flags.parse_args()
    faiss.omp_set_num_threads(1)
    centroids(options.base, options.into)
    if options.measured:
        measured(options.measured, options.into)


if __name__ == "__main__":
    main()
