# SAM2-3dMed as a server, on CPU or on NVIDIA GPUs. For research use only. docs/how-to/export.md explains it.
#
#   docker build --tag sam2-3dmed .
#   docker build --tag sam2-3dmed:cuda --build-arg EXTRAS=dicom,hub,serve,cuda12 .
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY sam2_3dmed_jax sam2_3dmed_jax
COPY weights_conversion weights_conversion
COPY experiments experiments
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim
# The wheels of `cuda12` and `cuda13` contain CUDA's libraries; the driver comes from the host (`docker run --gpus all`).
ARG EXTRAS=dicom,hub,serve
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir "sam2-3dmed-jax[${EXTRAS}] @ file://$(echo /wheels/*.whl)"
# Downloaded and converted weights, and compiled programs.
ENV SAM2_3DMED_CACHE=/cache HF_HOME=/cache/huggingface
RUN useradd --create-home --uid 1000 sam2 && install --directory --owner sam2 /cache
VOLUME /cache
USER 1000
WORKDIR /home/sam2
EXPOSE 1527
ENTRYPOINT ["sam2-3dmed"]
CMD ["serve", "sam2.1_hiera_tiny", "--host", "0.0.0.0"]
