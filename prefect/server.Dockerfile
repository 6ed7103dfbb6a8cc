FROM python:3.11-slim
WORKDIR /app
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt prefect
RUN useradd --create-home prefect && mkdir /var/lib/prefect && chown prefect /var/lib/prefect
USER prefect
