"""Checks of what nvcc makes of the kernels: registers, spills, and the machine code. No GPU is needed.

    python -m tests.codegen check [--arch 80 90]     compare with table.tsv
    python -m tests.codegen update [--arch 80 90]    measure again, and rewrite table.tsv

Rules for every kernel: no compiler warning, no spill, no local memory, no more registers than its budget in the table,
and the table lists exactly the kernels that there are. A kernel<T, V, ...> whose V elements of T make 16 bytes must
load and store 128 bits at once, with nothing narrower in its main loop (defined in sass.py) but the byte of gates of
four or eight elements, and its main loop's instructions per 8 elements must stay within a tenth of the table's. Loops
over memory have rules of their own: how much is in flight, and neither divisions nor fences of the whole GPU inside
(loops.py, loop_rules.py). Registers and instructions that differ within these bounds are only reported: they depend on
nvcc's version. The table was made by CUDA 13.0's.
"""
