# Needs verdicts, figures and records of all configured studies at the configured scale.
# Makes results/<scale>/claims.csv and results/<scale>/report.html; about some studies only, files
# that are named after them, such as results/<scale>/report-two_spirals.html.
rule report_page:
    input:
        claim_files(),
        figure_files(),
    output:
        claims=report(
            LAYOUT.all_claims(SCALE, SOME),
            caption="../captions/claims.rst",
            category="claims",
            labels={"table": "claims"},
        ),
        page=LAYOUT.report(SCALE, SOME),
    log:
        f"results/{SCALE}/logs/report.log",
    conda:
        "../../envs/environment.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        studies=STUDIES,
        sources=sources_of_report,
    shell:
        f"resnet-limits report {{params.studies:q}} --scale {SCALE}" f"{LOGGED}"
