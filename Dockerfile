# glora with a GPU, built from the same extras as `pip install glora[...]`:
#
#   docker build -t glora .
#   docker build -t glora-text --build-arg EXTRAS=text,plot,log .
#   docker run --rm --gpus all -v "$PWD:/work" glora fit --data photos --out run
#
# PyTorch's own wheel brings the CUDA libraries; the host needs NVIDIA's driver and container toolkit.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md CHANGELOG.md LICENSE ./
COPY src src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim
ARG EXTRAS=vision,plot,log
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir "$(ls /wheels/glora-*.whl)[${EXTRAS}]" && rm -r /wheels \
    && useradd --create-home --uid 1000 glora
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility PYTHONUNBUFFERED=1
USER glora
WORKDIR /work
ENTRYPOINT ["glora"]
CMD ["--help"]
