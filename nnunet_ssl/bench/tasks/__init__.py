"""The datasets of the benchmark, one JSON each: facts, no logic. ``nnunet_ssl.bench.task`` reads them."""
