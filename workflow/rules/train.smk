# Needs a run's resolved configuration, and the stamp of its data set if that is in files. Makes
# results/<scale>/<study>/<experiment>/<run>/record.json and the measurements that it names. Nothing
# here makes the scale `recorded`.
rule train:
    input:
        ancient(stamp_for_run),  # a run copied from elsewhere may be older than the stamp here
    output:
        LAYOUT.record(ANY_RUN),
    log:
        LAYOUT.run(ANY_RUN) / "train.log",
    wildcard_constraints:
        scale=TRAINED,
    conda:
        "../../envs/environment.yaml"
    threads: resource("threads")
    resources:
        mem_mb=resource("mem_mb"),
        runtime=resource("runtime"),
        gpu=gpus,
    params:
        # Also what decides whether a finished run is still the one asked for.
        config=lambda wildcards: json.dumps(run_config(wildcards).to_json()),
        folder=lambda wildcards, output: Path(output[0]).parent,
    shell:
        "resnet-limits train --config {params.config:q} --output {params.folder:q}"
        f" --device {CONFIGURATION.device} --data-root {shlex.quote(CONFIGURATION.data_root)}"
        f"{LOGGED}"
