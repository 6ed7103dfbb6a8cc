# A worker of any pool; torch's CUDA libraries come with it, the driver is the host's (`docker run --gpus all`).
FROM python:3.11-slim
RUN apt-get update && apt-get install --yes --no-install-recommends git && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY pyproject.toml constraints.txt README.md dvc.yaml .dvcignore ./
COPY components components
COPY flows flows
RUN pip install --no-cache-dir -c constraints.txt -e .
RUN useradd --create-home tessera && mkdir /workspace && chown tessera /workspace
USER tessera
ENV TESSERA_WORKSPACE=/workspace PREFECT_FLOWS_HEARTBEAT_FREQUENCY=30
CMD ["sh", "-c", "exec prefect worker start --pool ${WORK_POOL:-gpu} --type process --limit ${LIMIT:-1}"]
