# docker build -t audioldm2 .      PyTorch as pip finds it: with CUDA, which runs on a CPU, too
# docker build -t audioldm2:cpu --build-arg TORCH_OPTIONS=... .    smaller: pip's options for PyTorch's wheels for CPUs
# docker run --rm --gpus all --shm-size 8g --user $(id -u):$(id -g) -v "$PWD:/work" audioldm2 train demo
FROM python:3.11-slim

ARG TORCH_OPTIONS=""
ARG EXTRAS="eval,speech,video,adapters,onnx,serve"
ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore HOME=/tmp

WORKDIR /opt/audioldm2
COPY constraints.txt ./
RUN grep -E "^torch(vision|audio)?==" constraints.txt > torch.txt \
 && pip install $TORCH_OPTIONS --requirement torch.txt

COPY pyproject.toml README.md LICENSE ./
COPY audioldm2_pl audioldm2_pl
COPY data data
COPY evaluation evaluation
COPY experiments experiments
RUN pip install --constraint constraints.txt ".[$EXTRAS]"

# shards, runs and output of the folder that is mounted here
WORKDIR /work
ENTRYPOINT ["audioldm2"]
CMD ["--help"]
