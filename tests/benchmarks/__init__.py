"""What the middleware costs, each figure beside its peers' in the same run: ``python -m tests.benchmarks``.

A benchmark is one module with a ``BENCHMARK``; see :mod:`tests.benchmarks.harness.suite`.
"""
