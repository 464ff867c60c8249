"""MNIST and Fashion-MNIST: found on this machine, or brought to it: `python -m bench.data`."""
