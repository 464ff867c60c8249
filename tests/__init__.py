"""The tests, in folders that mirror what they test.

functional, nn, ops, autograd, conversion, reference   of the packages of these names
cpu, cuda          what one backend alone shows: threads, instruction sets, caches; tiers, plans, streams
transforms         torch.compile, torch.export, torch.func, whatever is tested under them
distributed        several processes, and tensors that are parts of larger ones
zoo                networks of other libraries
build              setup.py, the loading of the extension, the repository's own rules
bench              bench
cpp                the CUDA kernels in C++, without Python
host_executor      runs the CUDA kernels on the CPU
on_device          runs cpp on a GPU
codegen            what nvcc makes of the kernels
gpu_check          all that needs a GPU, in one command
"""
