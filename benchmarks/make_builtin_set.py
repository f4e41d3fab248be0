"""Make the contact sheets of the embedded set, ld3m/data/embedded/{train,test}.png, from the files of Fashion-MNIST.

    python benchmarks/make_builtin_set.py [SOURCE]

SOURCE holds the IDX .gz files; by default it is where the Debian package dataset-fashion-mnist puts them. Takes the
first images of each class in file order. Prints the sha256 of each file and of its pixels: the pixels are always the
same, the file's bytes depend on the zlib that Pillow was built with.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ld3m.data.builtin import COLUMNS, FOLDER, PER_CLASS, SIDE
from ld3m.data.idx import read_idx_folder

source = read_idx_folder(Path(sys.argv[1] if len(sys.argv) > 1 else "/usr/share/datasets/fashion-mnist"))
for (name, per_class), items in zip(PER_CLASS.items(), (source.train, source.test), strict=True):
    chosen = [(items.labels == label).nonzero().flatten()[:per_class] for label in range(10)]
    images = np.stack([items.read(i) for i in torch.cat(chosen).tolist()])
    sheet = images.reshape(-1, COLUMNS, SIDE, SIDE).swapaxes(1, 2).reshape(-1, COLUMNS * SIDE)
    file = FOLDER / f"{name}.png"
    Image.fromarray(sheet).save(file, compress_level=9)
    print(f"{file.name}: {file.stat().st_size:,} bytes, sha256 {hashlib.sha256(file.read_bytes()).hexdigest()}")
    print(f"    pixels {sheet.shape}: sha256 {hashlib.sha256(sheet.tobytes()).hexdigest()}")
