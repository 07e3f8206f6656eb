# mmdet_sssd for GPUs:  docker build -f docker/cuda.Dockerfile -t mmdet_sssd:cuda .
# torch brings CUDA, and setup.sh the compiler that goes with it, so the image needs neither.
FROM python:3.11-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/venv
ENV VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH
# Compute capabilities of the GPUs: 8.0 for A100, 9.0 for H100
ARG TORCH_CUDA_ARCH_LIST="8.0;9.0"
COPY . /opt/mmdet_sssd
RUN FORCE_CUDA=1 bash /opt/mmdet_sssd/tools/setup.sh --active
WORKDIR /workspace
CMD ["mmdet-sssd", "setup-check"]
