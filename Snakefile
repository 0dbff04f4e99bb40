# Regenerates every figure, table and verdict: `snakemake --cores 8 all`.
# Configuration, with every key explained: workflow/config.yaml.
from snakemake.utils import min_version

min_version("9.0")


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/analyse.smk"
include: "workflow/rules/report.smk"


# A cluster gets the trainings. The rest takes seconds, or wants a network.
localrules:
    all,
    data,
    tables,
    figures,
    claims,
    report,
    data_set,
    table,
    plot,
    judge,
    report_page,


rule all:
    default_target: True
    input:
        rules.report_page.output,
        table_files(),
        figure_files(),


rule data:
    input:
        stamps(),


rule tables:
    input:
        table_files(),


rule figures:
    input:
        figure_files(),


rule claims:
    input:
        claim_files(),


rule report:
    input:
        rules.report_page.output,
