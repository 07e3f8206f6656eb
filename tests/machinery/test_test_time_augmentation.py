"""Test-time augmentation, as `tools/test.py --tta` sets it up, around a distilled detector."""

import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import ConfigDict

from ..distillers import assert_equal
from ..small_runner import small_student


def test_predictions_are_the_stock_detector_s():
    student = small_student()
    tta = dict(
        type='DetTTAModel',
        tta_cfg=ConfigDict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=9),
    )
    stock = MODELS.build(dict(**tta, module=student)).eval()
    ours = MODELS.build(dict(**tta, module=dict(type='SSSDDistiller', student=student))).eval()
    ours.module.student.load_state_dict(stock.module.state_dict())
    views = [demo_mm_inputs(2, [[3, 64, 64]] * 2), demo_mm_inputs(2, [[3, 64, 64]] * 2)]
    for flip, view in zip((False, True), views, strict=True):
        for sample in view['data_samples']:
            sample.set_metainfo(
                dict(flip=flip, flip_direction='horizontal', scale_factor=(1.0, 1.0))
            )
    views[1]['inputs'] = [x.flip(-1) for x in views[0]['inputs']]
    data = {key: [view[key] for view in views] for key in views[0]}
    with torch.no_grad():
        expected, actual = stock.test_step(data), ours.test_step(data)
    assert sum(len(x.pred_instances) for x in expected) > 5
    for x, y in zip(actual, expected, strict=True):
        assert_equal(dict(x.pred_instances.items()), dict(y.pred_instances.items()))
