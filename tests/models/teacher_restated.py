"""The implicit teacher, written out object by object as its paper has it, and regions pixel by pixel.

It calls layers of a LabelEncoderTeacher for one image and object at a time, and shares no code with it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-5


def norm_relu(x: Tensor) -> Tensor:
    """Norm over all elements (a vector, or all channels and pixels of a map), then ReLU."""
    return norm(x).clamp(min=0)


def norm(x: Tensor) -> Tensor:
    return (x - x.mean()) / (x.var(unbiased=False) + EPS).sqrt()


def linears(module: nn.Module) -> list[nn.Linear]:
    return [m for m in module.modules() if isinstance(m, nn.Linear)]


def transform(module: nn.Module, x: Tensor) -> Tensor:
    """Multiply a vector by a matrix that is made of it."""
    hidden = x
    *stack, last = linears(module)
    for layer in stack:
        hidden = norm_relu(layer(hidden))
    return x @ last(hidden).view(len(x), len(x))


def label_embeddings(encoder: nn.Module, descriptors: list[Tensor]) -> list[Tensor]:
    local, global_ = [], []
    for descriptor in descriptors:
        x = transform(encoder.descriptor_transform, descriptor)
        (first,) = linears(encoder.to_local)
        x = transform(encoder.local_transform, norm_relu(first(x)))
        local.append(x)
        for layer in linears(encoder.to_global):
            x = norm_relu(layer(x))
        global_.append(x)
    over_objects = torch.stack(global_).amax(0)
    (fuse,), (out,) = linears(encoder.fuse), linears(encoder.to_embedding)
    return [norm_relu(out(norm_relu(fuse(torch.cat([x, over_objects]))))) for x in local]


def clipped(box: Tensor, height: int, width: int) -> list[float]:
    limits = (width - 1, height - 1, width - 1, height - 1)
    return [min(max(v, 0.0), limit) for v, limit in zip(box.tolist(), limits, strict=True)]


def box_region(
    box: list[float], image: tuple[int, int], level: tuple[int, int], soft: bool
) -> Tensor:
    """Mark the pixels in the box; soft: give the area of its overlap with each, whose own area is 1."""
    (height, width), (h, w) = image, level
    x1, x2 = box[0] * w / width, box[2] * w / width
    y1, y2 = box[1] * h / height, box[3] * h / height
    bw, bh, cx, cy = x2 - x1, y2 - y1, (x1 + x2) / 2, (y1 + y2) / 2
    region = torch.zeros(h, w, dtype=torch.float64)
    for i in range(h):
        for j in range(w):
            if soft:
                across, down = min(x2, j + 1) - max(x1, j), min(y2, i + 1) - max(y1, i)
                region[i, j] = max(across, 0.0) * max(down, 0.0)
            elif bw > 0 and bh > 0 and abs(j - cx) <= bw / 2 and abs(i - cy) <= bh / 2:
                region[i, j] = 1
    return region


def mask_region(
    mask: Tensor,
    image: tuple[int, int],
    level: tuple[int, int],
    finest: tuple[int, int],
    soft: bool,
) -> Tensor:
    """Zero-pad to the image, then take the nearest pixel (rounded down) of each level pixel.

    Soft: average the pixels that each pixel of the finest level touches, then those of the level.
    """
    padded = torch.zeros(image, dtype=torch.float64)
    padded[: mask.shape[0], : mask.shape[1]] = mask
    if soft:
        return F.adaptive_avg_pool2d(F.adaptive_avg_pool2d(padded[None], finest), level)[0]
    rows, columns = (
        [i * size // n for i in range(n)] for size, n in zip(image, level, strict=True)
    )
    return padded[rows][:, columns]


def teacher_features_of_image(
    teacher: nn.Module,
    feats: list[Tensor],
    boxes: Tensor,
    labels: Tensor,
    image: tuple[int, int],
    content: tuple[int, int],
    masks: Tensor | None = None,
    mask_descriptors: Tensor | None = None,
) -> list[Tensor]:
    """One image: feats are C×h×w, boxes n×4, labels n; masks n×h'×w' with their 49-vectors."""
    objects = [clipped(box, *image) for box in boxes]
    described = descriptors(teacher, objects, labels, image, mask_descriptors)
    embeddings = label_embeddings(teacher.label_encoder, described) if described else []
    finest, soft = max(tuple(x.shape[1:]) for x in feats), teacher.soft_regions
    out = []
    for x in feats:
        level = tuple(x.shape[1:])
        if teacher.use_masks:
            regions = [mask_region(x, image, level, finest, soft) for x in masks]
        else:
            regions = [box_region(x, image, level, soft) for x in objects]
        seen = list(regions)
        if teacher.add_context_box:
            seen.append(
                mask_region(torch.ones(content), image, level, finest, soft)
                if teacher.use_masks
                else torch.ones(level, dtype=torch.float64)
            )
        y = norm_relu(teacher.appearance_encoder.conv(x[None])[0])
        queries = [
            (y * region).sum((1, 2)) / region.sum()
            if region.any()
            else torch.zeros_like(y[:, 0, 0])
            for region in seen
        ]
        vectors = []
        if queries:
            keys = torch.stack(embeddings)
            vectors = [*teacher.relation_adapter.attention(torch.stack(queries), keys, keys)[0]]
        if teacher.class_vectors is not None:
            own = [teacher.class_vectors.weight[label] for label in labels]
            vectors = [v + x for v, x in zip(vectors, own, strict=False)] + vectors[len(own) :]
        out.append(mapped(teacher, vectors, regions, torch.zeros_like(x)))
    return out


def descriptors(
    teacher: nn.Module,
    boxes: list[list[float]],
    labels: Tensor,
    image: tuple[int, int],
    mask_descriptors: Tensor | None,
) -> list[Tensor]:
    """Describe clipped boxes and, if the teacher has one, the context object, which has no class."""
    (height, width), labels = image, labels.tolist()
    shapes = mask_descriptors.tolist() if teacher.use_masks else [[] for _ in boxes]
    if teacher.add_context_box:
        boxes, labels = [*boxes, [0, 0, width - 1, height - 1]], [*labels, -1]
        shapes.append([1.0] * 49 if teacher.use_masks else [])
    described = []
    for box, label, shape in zip(boxes, labels, shapes, strict=True):
        one_hot = [float(c == label) for c in range(teacher.num_classes)]
        corners = [box[0] / width, box[1] / height, box[2] / width, box[3] / height]
        values = torch.tensor([*corners, *one_hot, *shape], dtype=torch.float64)
        described.append(2 * values - 1)
    return described


def mapped(
    teacher: nn.Module, vectors: list[Tensor], regions: list[Tensor], painted: Tensor
) -> Tensor:
    """Paint the objects' vectors onto an empty map, add the context's, and refine the result."""
    mapper = teacher.knowledge_mapper
    for vector, region in zip(vectors, regions, strict=False):
        painted += mapper.object_proj(vector)[:, None, None] * region
    painted = mapper.object_conv(painted[None])[0]
    if teacher.add_context_box:
        painted = painted + mapper.context_proj(vectors[-1])[:, None, None]
    painted = painted.clamp(min=0)
    convs = [m for m in mapper.refine if isinstance(m, nn.Conv2d)]
    for conv in convs[:-1]:
        painted = norm_relu(conv(painted[None])[0])
    return norm(convs[-1](painted[None])[0])
