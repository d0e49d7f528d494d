# CPU by default; for CUDA: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128
FROM python:3.12-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=""
WORKDIR /src
RUN python -m venv /opt/monitor
ENV PATH=/opt/monitor/bin:$PATH
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" torch
COPY pyproject.toml README.md LICENSE ./
COPY monitor monitor
COPY migrations migrations
RUN pip install --no-cache-dir ".${EXTRAS}"

FROM python:3.12-slim
RUN groupadd --gid 10001 monitor && useradd --uid 10001 --gid 10001 --no-create-home monitor
COPY --from=build /opt/monitor /opt/monitor
ENV PATH=/opt/monitor/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1 HOME=/tmp
USER 10001:10001
EXPOSE 8080
ENTRYPOINT ["monitor"]
CMD ["run"]
