"""The benchmark: one file describes a grid of trainings, one command runs it, one makes the tables.

It drives the public commands and functions; there is no science here. ``grid`` reads the file (``specs``,
``presets``), ``preparing`` makes the plans, ``runner`` runs the jobs and ``slurm`` has others run them; ``cubes``,
``statistics``, ``report`` and ``means`` make numbers of the results, ``tables``, ``figures`` and ``page`` show them.
``task`` knows public datasets, ``prepare`` converts their downloads (``layouts``, ``splits``), ``leakage`` keeps
pretrained volumes out of the scores.
"""
