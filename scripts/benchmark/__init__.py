"""The benchmark: encoders x tasks x policies x training seeds, cell by cell. ``scripts/run_benchmark.py`` runs it."""
