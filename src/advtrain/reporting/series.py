"""The raw material of the plots: certificates example by example, and adversarial examples."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advtrain.certification.log import read
from advtrain.foreign import brief, require_whole
from advtrain.reporting import values

MAX_BYTES = 50 << 20  # of all arrays: a run leaves eight pairs of images, here up to 512 x 512
MAX_IMAGES, MAX_CLASSES = 100, 10_000


@dataclass(frozen=True)
class Examples:
    """`clean`, `adversarial`: numpy, float, (N, H, W, C); the rest one text each.

    Pixels lie in [0, 1], those of attacks that do not clip in [-1, 2].
    """

    clean: Any
    adversarial: Any
    labels: list[str]
    predicted_clean: list[str]
    predicted_adversarial: list[str]
    row: str


def read_radii(directory: Path) -> list[float]:
    """The certified radius of each example in certify.tsv; -1 where the prediction is wrong.

    Empty when there is no such log. Lines that do not count, as an unfinished one, are left out.
    """
    path = directory / "certify.tsv"
    if not path.is_file():
        return []
    try:
        found = read(path).certificates
    except ValueError:  # of other columns, or too large
        return []
    return [each.radius if each.correct else -1.0 for each in found]


def read_examples(directory: Path) -> Examples | None:
    """The pictures in examples.npz; None where there are none. Raises ValueError when damaged."""
    import numpy as np

    path = directory / "examples.npz"
    if not path.is_file():
        return None
    try:
        require_whole(path, MAX_BYTES)
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        clean, adversarial = _images(found["clean"]), _images(found["adversarial"])
        if clean.shape != adversarial.shape or not 0 < len(clean) <= MAX_IMAGES:
            raise ValueError("examples.npz: clean and adversarial images do not match, or are many")
        told = np.asarray(found.get("classes", found.get("class_names", [])))
        names = [values.text(str(word)) for word in told.ravel()[:MAX_CLASSES]]

        def words(key: str) -> list[str]:
            indices = [int(index) for index in found[key].reshape(-1)[: len(clean)]]
            return [names[i] if 0 <= i < len(names) else str(i) for i in indices]

        row = values.text(str(found.get("row", found.get("row_name", found.get("name", "")))))
        texts = words("labels"), words("predicted_clean"), words("predicted_adversarial")
    except (OSError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"examples.npz is damaged: {brief(error)}") from error
    if any(len(text) != len(clean) for text in texts):
        raise ValueError("examples.npz: labels or predictions are missing")
    return Examples(clean, adversarial, *texts, row=row)


def _images(array: Any) -> Any:
    """(N, C, H, W), bytes or floats, to (N, H, W, C) floats in [-1, 2]."""
    import numpy as np

    if array.ndim != 4 or array.shape[1] not in (1, 3):
        raise ValueError(f"examples.npz: images have shape {array.shape}, not (N, 1 or 3, H, W)")
    scaled = array.astype(np.float32)
    scaled /= 255 if array.dtype == np.uint8 else 1
    return scaled.clip(-1, 2, out=scaled).transpose(0, 2, 3, 1)
