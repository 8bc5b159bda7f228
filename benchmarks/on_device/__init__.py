"""What `benchmarks/accelerator.py` measures, a section a file, each with `run(log, small)`."""
