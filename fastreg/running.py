"""python -m fastreg run: an unmodified program whose dropout and batch norm are fastreg's.

The program runs in this process, as Python would run it: with its own sys.argv, sys.path[0] and __main__, tracebacks
that begin in it, and its exit status.
"""

import atexit
import contextlib
import functools
import importlib.machinery
import io
import multiprocessing.spawn
import os
import pkgutil
import runpy
import sys
import types
import weakref

import torch

import fastreg
from fastreg import patching
from fastreg.calls import Calls
from fastreg.conversion import held
from fastreg.nn import derived

USAGE = """\
usage: python -m fastreg run [--convert] [--report] [--force] SCRIPT [ARGUMENTS ...]
       python -m fastreg run [--convert] [--report] [--force] -m MODULE [ARGUMENTS ...]

Runs a program with fastreg.patch_torch(): its dropout and batch norm are fastreg's, wherever they are called.

--convert   also fastreg.convert each model, at its first call: layers that stand next to each other are fused
--report    say at the end, on stderr, which calls were taken over, and which were left to torch and why
--force     also where fastreg's extension was not built: dropout is far slower than torch's then
"""


class _Refused(Exception):
    """Says what is wrong with the command line, or with this build."""


def main(arguments):
    try:
        program, options = _parse(arguments)
        if program is None:
            print(USAGE, end="")
            return
        start = _module(*program[1:]) if program[0] == "-m" else _script(*program)
        if (why := patching.refusal(options["force"])) is not None:
            raise _Refused(f"{why} (--force), and nothing was run")
    except _Refused as refused:
        print(f"python -m fastreg run: {refused}", file=sys.stderr)
        sys.exit(2)
    begin(**options)
    start()


def _parse(arguments):
    """([script, its arguments] or ["-m", module, its arguments], options); no program: help was asked for."""
    options = {"convert": False, "report": False, "force": False}
    for position, argument in enumerate(arguments):
        if argument in ("-h", "--help"):
            return None, options
        if argument == "-m":
            if position + 1 == len(arguments):
                raise _Refused(f"-m must be followed by a module, got nothing\n{USAGE}")
            return ("-m", arguments[position + 1], arguments[position + 2 :]), options
        if not argument.startswith("-"):
            return (argument, arguments[position + 1 :]), options
        if argument.removeprefix("--") not in options:
            raise _Refused(f"options must be --convert, --report, --force or -m, got {argument}\n{USAGE}")
        options[argument.removeprefix("--")] = True
    raise _Refused(f"there must be a script or a module to run, got none\n{USAGE}")


# ---- what runs as __main__


def _script(path, arguments):
    """A function that runs a script, or a folder or archive with a __main__.py, as `python path` does."""
    if not os.path.exists(path):
        raise _Refused(f"the script must be a file, got {path!r}, which does not exist")
    importer = pkgutil.get_importer(path)
    if os.path.isdir(path) or not isinstance(importer, importlib.machinery.FileFinder | None):
        if importer.find_spec("__main__") is None:
            raise _Refused(f"a folder or an archive must have a __main__.py, got {path!r}")
        sys.path.insert(0, path)
        sys.modules.pop("__main__", None)
        return _of_module("__main__", path, arguments)
    absolute, folder = os.path.abspath(path), os.path.dirname(os.path.realpath(path))
    with io.open_code(absolute) as file:
        source = file.read()

    def run():
        if not sys.flags.safe_path:
            sys.path[0] = folder
        loader = importlib.machinery.SourceFileLoader("__main__", path)
        values = {"__file__": absolute, "__cached__": None, "__loader__": loader, "__package__": None, "__spec__": None}
        _run(source, absolute, values, [path, *arguments])

    return run


def _module(name, arguments):
    """A function that runs a module as `python -m name` does."""
    return _of_module(name, None, arguments)


def _of_module(name, path, arguments):
    try:
        _, spec, code = runpy._get_module_details(name, runpy._Error)
    except runpy._Error as error:
        raise _Refused(error) from None
    values = {"__file__": spec.origin, "__cached__": spec.cached, "__loader__": spec.loader}
    values |= {"__package__": spec.parent, "__spec__": spec}
    return lambda: _run(code, spec.origin, values, [path or spec.origin, *arguments])


def _run(code, path, values, argv):
    """code: a source or what it was compiled to, from path."""
    if sys.version_info < (3, 14):
        values["__annotations__"] = {}
    main_module = types.ModuleType("__main__")
    main_module.__dict__.update(values, __builtins__=__builtins__)
    sys.modules["__main__"] = main_module
    sys.argv[:] = argv
    sys.excepthook = functools.partial(_from_the_program_on, sys.excepthook, path)
    exec(compile(code, path, "exec", dont_inherit=True) if isinstance(code, bytes) else code, main_module.__dict__)


def _from_the_program_on(show, path, kind, error, traceback):
    """Show an exception without the frames that called the program."""
    inner = traceback
    while inner is not None and inner.tb_frame.f_code.co_filename != path:
        inner = inner.tb_next
    # Of a file that does not compile there is no frame.
    inner = inner if inner is not None or isinstance(error, SyntaxError) else traceback
    show(kind, error.with_traceback(inner), inner)


# ---- what is done to torch


def begin(convert, report, force):
    """Patch torch for the rest of the process, and for processes that it spawns."""
    fastreg.patch_torch(force)
    converted = _convert_at_first_call() if convert else []
    if report:
        calls = Calls()
        calls.start()
        atexit.register(_print_report, calls, converted)
    prepare = multiprocessing.spawn.get_preparation_data

    def get_preparation_data(name):
        data = prepare(name)
        data["sys_argv"] = _Argv(data["sys_argv"], convert, report, force)
        return data

    multiprocessing.spawn.get_preparation_data = get_preparation_data


class _Argv(list):
    """sys.argv of a process that is spawned. What is received there begins as here."""

    def __init__(self, argv, *options):
        super().__init__(argv)
        self.options = options

    def __reduce__(self):
        return _received, (list(self), *self.options)


def _received(argv, *options):
    begin(*options)
    return argv


def _convert_at_first_call():
    """Returns a list to which the reports of converted models are added."""
    call, seen, reported, reports = torch.nn.Module.__call__, weakref.WeakSet(), weakref.WeakSet(), []

    @functools.wraps(call)
    def convert_and_call(self, *arguments, **keywords):
        if self not in seen and not torch.compiler.is_compiling() and not torch.jit.is_tracing():
            seen.update(self.modules())  # its parts are not called first
            if not isinstance(self, torch.jit.ScriptModule):
                fastreg.convert(self)
                report = fastreg.report(self)
                if (report.replaced or report.fused) and self not in reported:
                    reports.append((type(self).__name__, report))
                    reported.add(self)
        return call(self, *arguments, **keywords)

    def reduce_as_it_was(self, protocol):
        """What the program saves or copies is what it would be, and is converted, as the copy is, at its next call."""
        derived.restore(self)
        seen.discard(self)
        reduce = type(self).__reduce_ex__
        return object.__reduce_ex__(self, protocol) if reduce is reduce_as_it_was else reduce(self, protocol)

    held.CALLS.add(convert_and_call)
    torch.nn.Module.__call__ = convert_and_call
    torch.nn.Module.__reduce_ex__ = reduce_as_it_was
    return reports


def _print_report(calls, converted):
    calls.stop()
    text = "".join(f"{name}, converted: {report}\n" for name, report in converted)
    with contextlib.suppress(OSError, ValueError):  # stderr is closed
        print(f"fastreg, process {os.getpid()}: {text}{calls}", file=sys.stderr)
