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


def descriptor(box: list[float], label: int, num_classes: int, height: int, width: int) -> Tensor:
    """label -1 is no class."""
    one_hot = [1.0 if c == label else 0.0 for c in range(num_classes)]
    values = [box[0] / width, box[1] / height, box[2] / width, box[3] / height, *one_hot]
    return torch.tensor([2 * v - 1 for v in values], dtype=torch.float64)


def box_region(box: list[float], image: tuple[int, int], level: tuple[int, int]) -> Tensor:
    (height, width), (h, w) = image, level
    x1, x2 = box[0] * w / width, box[2] * w / width
    y1, y2 = box[1] * h / height, box[3] * h / height
    bw, bh, cx, cy = x2 - x1, y2 - y1, (x1 + x2) / 2, (y1 + y2) / 2
    region = torch.zeros(h, w, dtype=torch.float64)
    for i in range(h):
        for j in range(w):
            if bw > 0 and bh > 0 and abs(j - cx) <= bw / 2 and abs(i - cy) <= bh / 2:
                region[i, j] = 1
    return region


def mask_region(mask: Tensor, image: tuple[int, int], level: tuple[int, int]) -> Tensor:
    """Zero-pad to the image, then take the nearest pixel (rounded down) of each level pixel."""
    rows, columns = (
        [i * size // n for i in range(n)] for size, n in zip(image, level, strict=True)
    )
    return padded_to(image, mask)[rows][:, columns]


def padded_to(image: tuple[int, int], mask: Tensor) -> Tensor:
    padded = torch.zeros(image, dtype=torch.float64)
    padded[: mask.shape[0], : mask.shape[1]] = mask
    return padded


def soft_box_region(box: list[float], image: tuple[int, int], level: tuple[int, int]) -> Tensor:
    """The area of the overlap of the box and each pixel of the level, whose own area is 1."""
    (height, width), (h, w) = image, level
    x1, x2 = box[0] * w / width, box[2] * w / width
    y1, y2 = box[1] * h / height, box[3] * h / height
    region = torch.zeros(h, w, dtype=torch.float64)
    for i in range(h):
        for j in range(w):
            across, down = min(x2, j + 1) - max(x1, j), min(y2, i + 1) - max(y1, i)
            region[i, j] = max(across, 0.0) * max(down, 0.0)
    return region


def soft_mask_region(mask: Tensor, image: tuple[int, int], level: tuple[int, int]) -> Tensor:
    """Zero-pad to the image, then average the whole pixels that each level pixel touches."""
    return F.adaptive_avg_pool2d(padded_to(image, mask)[None], level)[0]


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
    finest = max(tuple(x.shape[1:]) for x in feats)
    out = []
    for x in feats:
        level = tuple(x.shape[1:])
        if teacher.use_masks:
            regions = [region_of_mask(teacher, mask, image, level, finest) for mask in masks]
        else:
            region_of_box = soft_box_region if teacher.soft_regions else box_region
            regions = [region_of_box(box, image, level) for box in objects]
        seen = list(regions)
        if teacher.add_context_box:
            seen.append(
                region_of_mask(teacher, torch.ones(content), image, level, finest)
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
    boxes: list[Tensor],
    labels: Tensor,
    image: tuple[int, int],
    mask_descriptors: Tensor | None,
) -> list[Tensor]:
    """Descriptors of clipped boxes and, if the teacher has one, of the context object."""
    described = [
        descriptor(box, int(label), teacher.num_classes, *image)
        for box, label in zip(boxes, labels, strict=True)
    ]
    if teacher.use_masks:
        described = [
            torch.cat([d, 2 * m.double() - 1])
            for d, m in zip(described, mask_descriptors, strict=True)
        ]
    if teacher.add_context_box:
        height, width = image
        context_box = clipped(torch.tensor([0.0, 0.0, width, height]), height, width)
        context = descriptor(context_box, -1, teacher.num_classes, height, width)
        if teacher.use_masks:
            context = torch.cat([context, torch.ones(49, dtype=torch.float64)])
        described.append(context)
    return described


def region_of_mask(
    teacher: nn.Module,
    mask: Tensor,
    image: tuple[int, int],
    level: tuple[int, int],
    finest: tuple[int, int],
) -> Tensor:
    """Region of a mask; a soft one is averaged over the finest level's pixels first."""
    if teacher.soft_regions:
        return soft_mask_region(soft_mask_region(mask, image, finest), finest, level)
    return mask_region(mask, image, level)


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
