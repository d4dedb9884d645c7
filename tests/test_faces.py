"""Faces: where they are found, the control box by hand, what blurring leaves."""

import numpy as np
import pytest
import torch
from networks import pictures

from fashionlib import faces, images, saliency
from fashionlib.runtime import InputError


@pytest.mark.parametrize("cascade", faces.CASCADES)
def test_small_pictures_are_refused_and_noise_has_no_face(cascade):
    with pytest.raises(InputError, match="112"):
        faces.find(
            np.zeros((1, 80, 60, 3), np.uint8), torch.zeros(1, 3, 80, 60), cascade
        )
    pixels = pictures(1, 112)
    masks = faces.find(images.denormalise(pixels).numpy(), pixels, cascade)
    assert torch.equal(masks == faces.REST, saliency.foreground(pixels))


def test_box_by_hand():
    mask = torch.zeros(2, 5, 6, dtype=torch.uint8)
    mask[0, 1, 2] = mask[0, 3, 4] = faces.FACE
    mask[0, 4, 5] = faces.REST
    box = faces.boxes(mask)
    expected = torch.zeros(5, 6, dtype=torch.bool)
    expected[1:4, 2:5] = True
    assert torch.equal(box[0], expected)
    assert not box[1].any()


def test_the_control_is_as_large_beside_the_face_and_on_the_figure():
    inside = torch.zeros(2, 12, 8, dtype=torch.bool)
    inside[:, :, 2:6] = True
    face = torch.zeros_like(inside)
    face[0, 1:4, 3:5] = True
    control = faces.elsewhere(face, inside)
    assert control[0].sum() == 6
    assert not (control & face).any()
    assert (control[0] & inside[0]).sum() == 6
    assert control[0, 4:7, 2:4].all()  # the topmost place below it
    assert not control[1].any()
