# Needs run records. Makes results/<scale>/<study>/tables/<table>.csv and claims.json, and
# figures/<scale>/<study>/<figure>.png and .pdf.
rule table:
    input:
        records_for_table,
    output:
        LAYOUT.table("{scale}", "{study}", "{table}"),
        LAYOUT.table_digest("{scale}", "{study}", "{table}"),
    log:
        LAYOUT.log("{scale}", "{study}", "table_{table}"),
    conda:
        "../../envs/environment.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        sources=sources_of("tables"),
    shell:
        "resnet-limits table {wildcards.study:q} {wildcards.table:q} --scale {wildcards.scale}"
        f"{LOGGED}"


rule plot:
    input:
        tables_for_figure,
    output:
        png=report(
            LAYOUT.figure("{scale}", "{study}", "{figure}", "png"),
            caption="../captions/figure.rst",
            category="{study}",
            subcategory="{scale}",
            labels=figure_labels,
        ),
        pdf=LAYOUT.figure("{scale}", "{study}", "{figure}", "pdf"),
    log:
        LAYOUT.log("{scale}", "{study}", "plot_{figure}"),
    conda:
        "../../envs/environment.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        caption=caption,
        sources=sources_of("plots"),
    shell:
        "resnet-limits plot {wildcards.study:q} {wildcards.figure:q} --scale {wildcards.scale}"
        f"{LOGGED}"


rule judge:
    input:
        tables_for_claims,
    output:
        LAYOUT.claims("{scale}", "{study}"),
    log:
        LAYOUT.log("{scale}", "{study}", "claims"),
    conda:
        "../../envs/environment.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        sources=sources_of_claims,
    shell:
        "resnet-limits claims {wildcards.study:q} --scale {wildcards.scale}" f"{LOGGED}"
