"""The stress suite: nothing is lost and nothing is silently wrong, whatever happens to the files.

``make stress`` runs it with small counts, a couple of minutes, and .github/workflows/ci.yml every
night with larger ones. The runner takes counts and a seed:

    python -m tests.stress --inside 100 --trainers 40 --snakemakes 10 --damages 500 --inputs 100

Campaigns:

inside
    Processes killed inside their writes, before a write, fsync, rename or removal drawn at random
    (`tests.faults`): training of every kind of problem, table, figure, verdicts, report, archive.
trainers
    ``kill -9`` of real training processes at random moments, again and again until one ends.
snakemakes
    ``kill -9`` of Snakemake itself while its trainer lives on, and the recovery of docs/running.md.
damages
    Checkpoints cut at the borders of blocks and with flipped bits; records, measurements, tables,
    verdicts, manifests and image archives damaged at random, the last with bounded memory.
inputs
    Settings of all experiments replaced by values drawn at random.
disks
    A tmpfs that is full, then enlarged; only where this user may mount one.

A failure is a number other than that of an undisturbed run, a traceback, a finished run that is
lost, or a stray file. The runner prints how many cases and failures each campaign had, each
failure with what it takes to repeat it, and the seed; its exit status is 1 if there were any.
"""
