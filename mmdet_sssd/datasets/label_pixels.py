"""Which image's pixels the labels of a test pipeline are given in, and the way into the input's.

Stock test pipelines load annotations after resizing, so that metrics find them in the pixels of the
original image, to which heads bring their predictions.
"""

from mmdet.structures.bbox import get_box_tensor, scale_boxes
from mmengine.dataset import Compose
from mmengine.structures import InstanceData

from ..errors import ConfigError


def loads_labels_after_resizing(pipeline: Compose, info: dict, key: str, use_masks: bool) -> bool:
    """Run a pipeline on an image until the labels are there.

    Args:
        pipeline: The pipeline.
        info: What its data set knows of an image; the pipeline may change it.
        key: Config key of the pipeline, for the error.
        use_masks: Whether instance masks are needed too.

    Returns:
        Whether boxes and masks are in the original image's pixels while the input is resized.

    Raises:
        ConfigError: if the pipeline loads no boxes, or no masks where they are needed.
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
    """Bring boxes and masks from the original image's pixels into a resized image's, in place.

    This is the inverse of what heads do to their predictions, and as general: nothing but the scale
    counts (padding on the right and below moves nothing).

    Args:
        instances: Labels with ``bboxes`` and perhaps ``masks``; they are replaced, not written to.
        scale_factor: Of width and height, as the resizing transforms record it.
    """
    instances.bboxes = scale_boxes(get_box_tensor(instances.bboxes), scale_factor)
    if 'masks' in instances:
        masks = instances.masks
        width, height = round(masks.width * scale_factor[0]), round(masks.height * scale_factor[1])
        instances.masks = masks.resize((height, width))
