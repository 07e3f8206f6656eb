# mmdet_sssd for CPUs:  docker build -f docker/cpu.Dockerfile -t mmdet_sssd:cpu .
FROM python:3.11-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/venv
ENV VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH
# --build-arg PIP_EXTRA_INDEX_URL=… (pytorch.org names it) takes the small build of torch, without CUDA
ARG PIP_EXTRA_INDEX_URL
COPY . /opt/mmdet_sssd
RUN bash /opt/mmdet_sssd/tools/setup.sh --active --cpu
WORKDIR /workspace
CMD ["mmdet-sssd", "setup-check"]
