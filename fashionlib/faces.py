"""Where the face is, and what the answer is without it: masks for photographs, and pictures with a part hidden.

    masks = faces.find(pictures, pixels)                       # uint8: 0 background, 1 face box, 3 the rest
    face = faces.boxes(masks)                                  # bool: the bounding box of each face
    control = faces.elsewhere(face, masks > 0)                 # as large a box elsewhere on the figure
    answers = model(torch.where(face[:, None], images.blurred(pixels, 5), pixels))

Drawings have exact masks; on photographs the detectors of OpenCV look for faces.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from fashionlib import saliency
from fashionlib.runtime import InputError

FACE, REST = 1, 3  # the values of the synthetic catalogue's masks; 0 is the background
CASCADES = (
    "frontalface_default",
    "frontalface_alt2",
)  # of OpenCV: two different detectors
SMALLEST = 112  # sides of a picture, pixels, in which faces can be found


def find(
    pictures: np.ndarray, pixels: torch.Tensor, cascade: str = CASCADES[0]
) -> torch.Tensor:
    """Masks for photographs without any: uint8 (B, H, W) with 0 background, 1 face box, 3 the rest of the foreground.

    pictures: uint8 (B, H, W, 3); pixels: the same, normalised. Faces by OpenCV's cascades (Viola and Jones 2001), on
    pictures enlarged to 448 pixels. Raises InputError below 112 pixels: faces are too small there.
    Taught in: chapter 4.
    """
    import cv2

    height, width = pictures.shape[1:3]
    if min(height, width) < SMALLEST:
        raise InputError(
            f"faces are searched in pictures of at least {SMALLEST} pixels, found {height}x{width}."
        )
    scale = 448 / min(height, width)
    detector = cv2.CascadeClassifier(
        f"{cv2.data.haarcascades}haarcascade_{cascade}.xml"
    )
    masks = saliency.foreground(pixels).cpu().to(torch.uint8) * REST
    for mask, picture in zip(masks, pictures, strict=True):
        grey = cv2.resize(
            cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), None, fx=scale, fy=scale
        )
        for box in detector.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=5):
            x, y, w, h = (round(float(edge) / scale) for edge in box)
            mask[y : y + h, x : x + w][mask[y : y + h, x : x + w] > 0] = FACE
    return masks


def boxes(masks: torch.Tensor) -> torch.Tensor:
    """The upright box around all that is FACE in each mask: bool (B, H, W), empty where there is none.

    Taught in: chapter 4.
    """
    face = masks == FACE
    down, across = (
        face.any(dim, keepdim=True) for dim in (2, 1)
    )  # (B, H, 1), (B, 1, W)
    within = [
        line.cummax(dim)[0] & line.flip(dim).cummax(dim)[0].flip(dim)
        for line, dim in ((down, 1), (across, 2))
    ]
    return within[0] & within[1]


def elsewhere(face: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """A box of the same height and width beside that of `face`, with as much of the foreground in it as can be had.

    face: boxes, bool (B, H, W); inside: the foreground. Of equally good places the topmost; bool (B, H, W).
    Taught in: chapter 4.
    """
    found = torch.zeros_like(face)
    for box, figure, place in zip(face, inside, found, strict=True):
        height, width = int(box.any(1).sum()), int(box.any(0).sum())
        if height == 0:
            continue
        worth = (
            figure.float() - height * width * box.float()
        )  # a pixel of the face costs more than all others give
        covered = F.avg_pool2d(worth[None, None], (height, width), stride=1)[0, 0]
        top, left = divmod(int(covered.argmax()), covered.shape[1])
        place[top : top + height, left : left + width] = True
    return found
