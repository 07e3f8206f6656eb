"""Finds and changes the image whose pixels the labels of a test pipeline refer to.

Stock test pipelines load annotations after resizing, so that metrics see them in pixels of the
original image, like the heads' rescaled predictions.
"""

from mmdet.structures.bbox import get_box_tensor, scale_boxes
from mmengine.dataset import Compose
from mmengine.structures import InstanceData

from ..errors import ConfigError


def loads_labels_after_resizing(pipeline: Compose, info: dict, key: str, use_masks: bool) -> bool:
    """Tell whether a pipeline loads labels after resizing, by running it on an image.

    Args:
        pipeline: The pipeline.
        info: The data set's information on an image; the pipeline may change it.
        key: Config key of the pipeline, for the error.
        use_masks: Whether instance masks are needed too.

    Returns:
        Whether boxes and masks are in pixels of the original image while the input is resized.

    Raises:
        ConfigError: if the pipeline does not load boxes, or masks if needed.
    """
    needed = ['gt_bboxes', 'gt_masks'] if use_masks else ['gt_bboxes']
    for transform in pipeline.transforms:
        is_resized = 'scale_factor' in info
        info = transform(info)
        if all(name in info for name in needed):
            return is_resized
    masks = ', with_mask=True' if use_masks else ''
    raise ConfigError(
        f"{key} loads no {' and '.join(needed)}, which the teacher's features are made from; add "
        f"dict(type='LoadAnnotations', with_bbox=True{masks}) to it"
    )


def rescale_labels(instances: InstanceData, scale_factor: tuple[float, float]) -> None:
    """Convert boxes and masks from pixels of the original image to those of the input, in place.

    This inverts the heads' rescaling of predictions, and like it only handles the scale (padding on
    the right and below moves nothing).

    Args:
        instances: Labels with ``bboxes`` and perhaps ``masks``; both are replaced, not written to.
        scale_factor: Scales of width and height, as recorded by the resizing transforms.
    """
    instances.bboxes = scale_boxes(get_box_tensor(instances.bboxes), scale_factor)
    if 'masks' in instances:
        masks = instances.masks
        width, height = round(masks.width * scale_factor[0]), round(masks.height * scale_factor[1])
        instances.masks = masks.resize((height, width))
