"""The experiments that teach dropout and batch norm, with torch's layers and fastreg's: `python -m bench.training`."""
