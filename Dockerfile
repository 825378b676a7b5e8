# The server with the small model. Written with care, not built by the project's tests.
FROM python:3.11-slim AS build
# TORCH_INDEX: PyTorch's own index of CPU builds, to leave CUDA out.
ARG TORCH_INDEX=""
WORKDIR /src
COPY pyproject.toml README.md LICENSE THIRD_PARTY.md constraints.txt ./
COPY src src
RUN python -m venv /opt/medsam3 \
 && /opt/medsam3/bin/pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} ".[all]" \
 && MEDSAM3_HOME=/opt/medsam3/home /opt/medsam3/bin/medsam3 weights fetch

FROM python:3.11-slim
COPY --from=build /opt/medsam3 /opt/medsam3
ENV PATH=/opt/medsam3/bin:$PATH MEDSAM3_HOME=/opt/medsam3/home OMP_WAIT_POLICY=PASSIVE
RUN useradd --create-home medsam3
USER medsam3
WORKDIR /home/medsam3
EXPOSE 8080
HEALTHCHECK CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/healthz')"]
ENTRYPOINT ["medsam3"]
# A server that other machines reach needs a token file: mount one, and put TLS before it.
CMD ["serve", "--host", "0.0.0.0", "--allow-host", "localhost", "--token-file", "/run/secrets/medsam3_tokens"]
