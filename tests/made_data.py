"""A small data folder with an `index.csv`: bright rectangles on dark noise, called polyps."""

import csv
from pathlib import Path

import numpy as np
import PIL.Image

COLUMNS = ("dataset", "image", "mask", "concept", "label_value", "split", "group", "present")
SIZE = (48, 64)


def picture(folder: Path, number: int) -> tuple[Path, Path]:
    rng = np.random.default_rng(number)
    image, mask = rng.integers(0, 80, size=(*SIZE, 3)).astype(np.uint8), np.zeros(SIZE, np.uint8)
    rows, columns = slice(8, 30), slice(10 + number, 40 + number)
    image[rows, columns], mask[rows, columns] = 200, 1
    paths = folder / f"{number}.png", folder / f"{number}_mask.png"
    PIL.Image.fromarray(image).save(paths[0])
    PIL.Image.fromarray(mask).save(paths[1])
    return paths


def bright_picture(path: Path) -> None:
    """Write a picture of 8 x 6 pixels (x, y), 3 x 2 of them bright from (2, 1) on."""
    pixels = np.full((6, 8), 20, dtype=np.uint8)
    pixels[1:3, 2:5] = 250
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(path)


def data_folder(folder: Path, concept: str = "polyp") -> Path:
    folder.mkdir()
    with (folder / "index.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(COLUMNS)
        for number, split in enumerate(("train", "train", "val")):
            image, mask = picture(folder, number)
            table.writerow(("one", image.name, mask.name, concept, "1", split, f"g{number}", 1))
            table.writerow(("one", image.name, mask.name, "ulcer", "2", split, f"g{number}", 0))
    return folder
