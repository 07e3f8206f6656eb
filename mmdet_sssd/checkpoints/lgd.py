"""Converts teacher and adapter of the checkpoints that LGD's authors released."""

import os
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor

from ..errors import ConfigError
from ..models.label_encoder_teacher import MASK_SIZE
from ..runs import AtomicLocalBackend, load_from_local
from .export import serialized

# Prefixes of weight names in the reference code, and here.
LABEL_ENCODER = {
    'conv1': 'to_local.0',
    'conv2': 'to_global.0',
    'conv3': 'to_global.3',
    'conv4': 'fuse.0',
}
TRANSFORM = {
    'conv1': 'to_hidden.0',
    'conv2': 'to_hidden.3',
    'conv3': 'to_hidden.6',
    'fc1': 'to_hidden.9',
    'fc2': 'to_hidden.12',
    'fc3': 'to_matrix',
}
TEACHER = {
    **{f'label_encoder_.{x}.': f'label_encoder.{y}.' for x, y in LABEL_ENCODER.items()},
    **{
        f'label_encoder_.{theirs}.{x}.': f'label_encoder.{ours}.{y}.'
        for theirs, ours in (('stn_desc', 'descriptor_transform'), ('stn_feat', 'local_transform'))
        for x, y in TRANSFORM.items()
    },
    'canoni_proj_1D.0.0.': 'label_encoder.to_embedding.0.',
    'student_proj_2D.0.0.': 'appearance_encoder.conv.',
    'multi_head_attn.in_proj_': 'relation_adapter.attention.in_proj_',
    'multi_head_attn.out_proj.': 'relation_adapter.attention.out_proj.',
    'local_inst_proj_1D.': 'knowledge_mapper.object_proj.',
    'local_inst_proj_2D.': 'knowledge_mapper.object_conv.',
    'global_ctx_proj_1D.': 'knowledge_mapper.context_proj.',
    **{f'refinement_module.{i}.': f'knowledge_mapper.refine.{i}.' for i in (0, 3, 6)},
}
ADAPTER = {f'distill.adapter.{i}.': f'convs.{i}.' for i in (0, 2, 4)}
NAMES = {
    f'{part}.{theirs}{kind}': f'{place}.{ours}{kind}'
    for part, place, modules in (
        ('teacher', 'teachers.teacher.neck', TEACHER),
        ('adapter', 'terms.distill.adapter', ADAPTER),
    )
    for theirs, ours in modules.items()
    for kind in ('weight', 'bias')
}
DESCRIPTOR_WEIGHT = 'teacher.label_encoder_.conv1.weight'
CONTEXT_PREFIX = 'teacher.global_ctx_proj_1D.'


def convert_lgd(
    checkpoint_file: str | os.PathLike, out_file: str | os.PathLike, add_context_box: bool = True
) -> None:
    """Convert teacher and adapter of one of LGD's released checkpoints for a distiller.

    The student's weights, a detectron2 model's, are left out. The output has weights only, named as in
    an ``SSSDDistiller``, for ``load_from``.

    Source: checkpoints and names of LGD's reference code (https://arxiv.org/abs/2109.11496).

    Args:
        checkpoint_file: A local detectron2 checkpoint, with weights under ``model``.
        out_file: Output file; its folder is created if needed.
        add_context_box: Whether the teacher was trained with a context object. Checkpoints always
            hold its module; if untrained, it is left out.

    Raises:
        FileNotFoundError: if the checkpoint does not exist.
        ConfigError: if the file is unreadable, lacks weights of teacher or adapter or has unknown ones,
            or ``out_file`` is not writable.
    """
    checkpoint = load_from_local(str(checkpoint_file), map_location='cpu')
    weights = _lgd_weights(checkpoint, checkpoint_file)
    converted = {
        NAMES[name]: _without_kernel_axis(value)
        for name, value in weights.items()
        if add_context_box or not name.startswith(CONTEXT_PREFIX)
    }
    try:
        AtomicLocalBackend().put(serialized(dict(state_dict=converted)), out_file)
    except OSError as error:
        raise ConfigError(f'{out_file} cannot be written ({error}); give another file') from error
    num_classes = weights[DESCRIPTOR_WEIGHT].shape[1] - 4
    print_log(
        f'Saved {len(converted)} weights of teacher and adapter to {out_file}, for a distiller with '
        f'model.teacher.add_context_box={add_context_box}, soft_regions=False, '
        f'class_vectors=False and {num_classes} classes ({MASK_SIZE**2} fewer if '
        'model.teacher.use_masks=True).',
        logger='current',
    )


def _lgd_weights(checkpoint: Any, file: str | os.PathLike) -> dict[str, Tensor]:
    """Read exactly the weights of teacher and adapter from a checkpoint."""
    model = checkpoint.get('model') if isinstance(checkpoint, dict) else None
    model = model if isinstance(model, dict) else {}
    if missing := [name for name in NAMES if name not in model]:
        raise ConfigError(
            f"{file} is not a checkpoint of LGD's: of {len(NAMES)} expected weights under "
            f'"model", {len(missing)} are missing, such as {missing[0]}. Accepted: a checkpoint that '
            "LGD's authors released or that their code wrote"
        )
    ours = [name for name in model if name.startswith(('teacher.', 'adapter.'))]
    if unknown := [name for name in ours if name not in NAMES]:
        raise ConfigError(
            f"{file} has weights of teacher or adapter that LGD's code does not have: "
            f'{", ".join(unknown)}; a changed teacher cannot be converted'
        )
    return {name: torch.as_tensor(model[name]) for name in ours}


def _without_kernel_axis(weight: Tensor) -> Tensor:
    """Convert the weight of a 1-D convolution with kernel size 1 to a linear layer's."""
    return weight.squeeze(-1).clone() if weight.ndim == 3 else weight
