"""Random programs, plain against converted: a converted model does what its Python says, at every call.

body         a function's body while it is written: names, what may be written in place, attributes of its module
expressions  layers, activations, sums, dropout, conditions, in their many forms
between      statements that stand between two operations that would be fused
statements   chains, branches, contexts, aliases, children: what a forward is made of
control      more of them: loops, functions, expressions of several operations, errors
scripts      what is done with a model: calls, changes between them, writes after them, backward
programs     a whole program, as source text, of a seed
support      what programs import
runner       a program, run plain and converted, and the first difference
comparison   what is seen of a value, and how it may differ
shrinking    the smallest program that still fails
planted      conversions that are wrong on purpose, one or more for each kind of fault

``python -m tests.conversion.differential --seed 7 --count 100000`` looks for programs that fail.
"""
