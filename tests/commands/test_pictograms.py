from unittest.mock import Mock

import cv2
import numpy as np

from mmdet_sssd.commands import pictograms


def test_an_objects_pixels_have_two_colors_and_nobody_elses(monkeypatch):
    """Where neither texture, blur nor noise is added, body and mark are all that a mask covers."""
    monkeypatch.setattr(pictograms.cv2, 'GaussianBlur', lambda image, *_: image)
    monkeypatch.setattr(
        pictograms, 'texture', lambda size, _: np.zeros((size, size, 3), np.float32)
    )
    for seed in range(30):
        noiseless = Mock(wraps=np.random.default_rng(seed))
        noiseless.standard_normal = np.zeros
        image, objects = pictograms.draw_image(96, noiseless)
        assert not objects or np.sum([mask for _, mask in objects], 0).max() == 1
        for _, mask in objects:
            inner = cv2.erode(mask, np.ones((5, 5), np.uint8)) > 0
            plain = cv2.morphologyEx(image, cv2.MORPH_GRADIENT, np.ones((3, 3))).max(2) == 0
            assert len(np.unique(image[inner & plain], axis=0)) <= 2


def test_every_class_looks_different_at_every_scale():
    for side in pictograms.TEMPLATE_SIDES:
        seen = [pictograms.template(i, side) for i in range(len(pictograms.CLASSES))]
        for i, first in enumerate(seen):
            for second in seen[:i]:
                assert np.abs(first - second).sum() > 0.01 * side**2
