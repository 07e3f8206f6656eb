# Detectors of mmdet's model zoo that can teach, with the APs that it gives for them. Inherit it and
# take one:
#   model = dict(teachers=dict(pretrained=_base_.retinanet_r101))
zoo = 'https://download.openmmlab.com/mmdetection/v2.0'

retinanet_r101 = dict(  # 38.9
    type='PretrainedTeacher',
    config='mmdet::retinanet/retinanet_r101_fpn_2x_coco.py',
    checkpoint=f'{zoo}/retinanet/retinanet_r101_fpn_2x_coco/'
    'retinanet_r101_fpn_2x_coco_20200131-5560aee8.pth',
)
retinanet_x101 = dict(  # 41.0
    type='PretrainedTeacher',
    config='mmdet::retinanet/retinanet_x101-64x4d_fpn_1x_coco.py',
    checkpoint=f'{zoo}/retinanet/retinanet_x101_64x4d_fpn_1x_coco/'
    'retinanet_x101_64x4d_fpn_1x_coco_20200130-366f5af1.pth',
)
faster_rcnn_r101 = dict(  # 39.8
    type='PretrainedTeacher',
    config='mmdet::faster_rcnn/faster-rcnn_r101_fpn_2x_coco.py',
    checkpoint=f'{zoo}/faster_rcnn/faster_rcnn_r101_fpn_2x_coco/'
    'faster_rcnn_r101_fpn_2x_coco_bbox_mAP-0.398_20200504_210455-1d2dac9c.pth',
)
faster_rcnn_x101 = dict(  # 42.1
    type='PretrainedTeacher',
    config='mmdet::faster_rcnn/faster-rcnn_x101-64x4d_fpn_1x_coco.py',
    checkpoint=f'{zoo}/faster_rcnn/faster_rcnn_x101_64x4d_fpn_1x_coco/'
    'faster_rcnn_x101_64x4d_fpn_1x_coco_20200204-833ee192.pth',
)
fcos_r101 = dict(  # 40.8
    type='PretrainedTeacher',
    config='mmdet::fcos/fcos_r101-caffe_fpn_gn-head_ms-640-800-2x_coco.py',
    checkpoint=f'{zoo}/fcos/fcos_r101_caffe_fpn_gn-head_mstrain_640-800_2x_coco/'
    'fcos_r101_caffe_fpn_gn-head_mstrain_640-800_2x_coco-511424d6.pth',
)
