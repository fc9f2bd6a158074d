"""The benchmark: encoders x tasks x policies x training seeds, cell by cell. ``scripts/run_benchmark.py`` runs it.

A map, callers above callees:

- ``command`` reads the ``settings`` (``usage`` is their help) and calls ``running``: ``claims`` keeps a folder to one
  benchmark, ``cells`` shares the work out, and then comes the report.
- ``measuring`` fills a cell: ``tasks`` gives environment and demonstrations, ``arms`` what the policy sees through,
  ``recipes`` how it is set up, ``acting`` how it acts; ``pictures`` draws what its encoder makes of some frames.
- ``reporting`` writes the page from ``results`` (every table comes from records), with ``estimates`` and ``shares``
  for the intervals, ``tables``, ``figures`` and ``looks``.
- ``configuration_``, ``modeling_`` and ``processor_pixio_mlp`` are CortexBench's policy; ``remembering`` shows it the
  frames before.
"""
