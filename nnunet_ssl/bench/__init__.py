"""The benchmark: one file describes a grid of trainings, one command runs it, one makes the tables.

It drives the public commands and functions; there is no science here. ``grid`` reads the file, ``runner`` runs its
jobs, ``statistics`` and ``report`` make numbers of the results, ``page`` shows them. ``task`` knows public datasets,
``prepare`` converts their downloads (``layouts``, ``splits``), ``leakage`` keeps pretrained volumes out of the scores.
"""
