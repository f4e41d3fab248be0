"""Distil a folder of one's own images and copy the result out.

python examples/own_folder.py [FOLDER]

FOLDER holds one folder of images per class. Without it a small one is drawn: disks, squares and stripes of any color.
Writes runs/own and distilled/ in the current folder.
"""

import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw

import ld3m


def draw_images(folder: Path, per_class: int = 24, side: int = 32) -> Path:
    """Draw a data set of three shapes, one folder per class."""
    choose = random.Random(0)
    for shape in ("disk", "square", "stripes"):
        (folder / shape).mkdir(parents=True, exist_ok=True)
        for k in range(per_class):
            color = tuple(choose.randrange(100, 256) for _ in range(3))
            x, y, size = (choose.randrange(2, 12) for _ in range(3))
            image = Image.new("RGB", (side, side))
            draw, box = ImageDraw.Draw(image), (x, y, x + 10 + size, y + 10 + size)
            if shape == "disk":
                draw.ellipse(box, color)
            elif shape == "square":
                draw.rectangle(box, color)
            else:
                for row in range(y % 6, side, 6):
                    draw.line((0, row, side, row), color, 2)
            image.save(folder / shape / f"{k}.png")
    return folder


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else draw_images(Path("shapes"))
    result = ld3m.distill(
        folder,
        algorithm="dm",
        space="autoencoder",  # the chain costs more: leave this line out with a prior of these images
        iterations=20,
        width=16,
        real_batch=8,
        evaluate="none",
        out="runs/own",
        overwrite=True,
        progress=False,
    )
    ld3m.export(result.path, "imagefolder", "distilled", overwrite=True)
    print(f"{len(result.images)} images of {', '.join(result.class_names)} in distilled/")
