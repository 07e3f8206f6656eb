"""What only a GPU can show (``bash tools/gpu_check.sh``); without one, its short form, on the CPU."""

import os

import torch

ON_GPU = torch.cuda.is_available()
DEVICE = 'cuda' if ON_GPU else 'cpu'
SHORT = not ON_GPU or 'GPU_CHECK_SHORT' in os.environ  # small detectors and images
