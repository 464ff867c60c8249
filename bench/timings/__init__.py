"""Layers one by one: fastreg's against PyTorch's and others', over operators, modes, shapes, dtypes and layouts."""
