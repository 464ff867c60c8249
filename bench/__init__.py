"""Benchmarks of fastreg against PyTorch: `python -m bench` from the repository root (`python -m bench --help`)."""
