# Needs what the user has under data_root, or a network. Makes results/data/<dataset>.json, the
# stamp of a data set, once its images are decoded under data_root.
rule data_set:
    output:
        LAYOUT.stamp("{dataset}"),
    log:
        "results/data/{dataset}.log",
    conda:
        "../../envs/environment.yaml"
    resources:
        mem_mb=2000,
        runtime=60,
    shell:
        f"resnet-limits data {{wildcards.dataset:q}} --data-root {shlex.quote(CONFIGURATION.data_root)}"
        f" --stamp {{output:q}}{LOGGED}"
