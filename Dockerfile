# The environment of the lock file; by default runs everything at the smoke scale. Untested.
#   docker build -t resnet-limits .
#   docker run --rm -v "$PWD/out:/out" resnet-limits            # results and figures in out/
#   docker run --rm -v "$PWD/out:/out" resnet-limits --cores 8 all --config scale=quick
#   docker run --rm --workdir /project --entrypoint pytest resnet-limits
FROM python:3.11-slim

# Records name the commit that computed them.
RUN apt-get update && apt-get install --yes --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /project
COPY envs/requirements.lock envs/
RUN pip install --no-cache-dir --requirement envs/requirements.lock
COPY . .
RUN pip install --no-cache-dir --no-deps --editable .

WORKDIR /out
ENTRYPOINT ["snakemake", "--snakefile", "/project/Snakefile"]
CMD ["--cores", "2", "all", "--config", "scale=smoke"]
