"""Make the data of the services: catalogue.json and catalogue.tsv, and the static files.

usage: catalogue.py DIRECTORY FILES_DIRECTORY

The texts are paragraphs of the Python language reference (the ``pydoc`` topics), so that the
memory of the services holds real prose, not generated filler.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from pydoc_data.topics import topics

N_PRODUCTS_MAX = 2500


def products() -> list[dict[str, object]]:
    """Products in a fixed order: id, sku, name, category, price_cents, text."""
    rows: list[dict[str, object]] = []
    for category in sorted(topics):
        for paragraph in topics[category].split("\n\n"):
            words = paragraph.split()
            if len(words) < 8:
                continue
            number = len(rows) + 1
            rows.append(
                {
                    "id": number,
                    "sku": f"{category[:4].upper()}-{number:05d}",
                    "name": " ".join(words[:4]),
                    "category": category,
                    "price_cents": 100 + (number * 7919) % 20000,
                    "text": " ".join(words)[:1200],
                }
            )
            if len(rows) == N_PRODUCTS_MAX:
                return rows
    return rows


def main(directory: Path, files: Path) -> None:
    """Write the catalogue in both forms and one text file per topic."""
    rows = products()
    (directory / "catalogue.json").write_text(json.dumps(rows))
    with (directory / "catalogue.tsv").open("w") as tsv:
        for row in rows:
            cells = (str(value).replace("\\", "/") for value in row.values())
            tsv.write("\t".join(cells) + "\n")
    for name, text in topics.items():
        (files / f"{name}.txt").write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
