# Needs run records. Makes results/<scale>/<study>/tables/<table>.csv and claims.json, and
# figures/<scale>/<study>/<figure>.png and .pdf.
rule table:
    input:
        records_for_table,
    output:
        "results/{scale}/{study}/tables/{table}.csv",
    log:
        "results/{scale}/{study}/logs/table_{table}.log",
    wildcard_constraints:
        scale=TRAINED,
    conda:
        "../../envs/environment.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        code=hash_of("tables.py"),
    shell:
        "resnet-limits table {wildcards.study:q} {wildcards.table:q} --scale {wildcards.scale}"
        f"{LOGGED}"


rule plot:
    input:
        tables_for_figure,
    output:
        png=report(
            "figures/{scale}/{study}/{figure}.png",
            caption="../captions/figure.rst",
            category="{study}",
            subcategory="{scale}",
            labels={"figure": "{figure}"},
        ),
        pdf="figures/{scale}/{study}/{figure}.pdf",
    log:
        "results/{scale}/{study}/logs/plot_{figure}.log",
    conda:
        "../../envs/environment.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        caption=caption,
        code=hash_of("plots.py"),
    shell:
        "resnet-limits plot {wildcards.study:q} {wildcards.figure:q} --scale {wildcards.scale}"
        f"{LOGGED}"


rule judge:
    input:
        tables_for_claims,
    output:
        "results/{scale}/{study}/claims.json",
    log:
        "results/{scale}/{study}/logs/claims.log",
    wildcard_constraints:
        scale=TRAINED,
    conda:
        "../../envs/environment.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        claims=hash_of("claims.yaml"),
    shell:
        "resnet-limits claims {wildcards.study:q} --scale {wildcards.scale}" f"{LOGGED}"
