"""Which types a stored model may never hold, whoever names them in ``training.trusted_types``.

To load a stored model is to make objects of the types that it names, and to predict is to call them. A function such as
``posix.system`` in the place of a transformer's function would run a command. So what starts programs, reads other code, files
or networks, or loads pickles is refused by the root of its module, wherever the name comes from.

Neighbours: :mod:`perennial.spec.training` refuses such a name when a folder is read; :mod:`perennial.model.artifacts` refuses
it again when a model is loaded, also by the name under which the object was defined.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

#: Modules that no type may come from, and no type may be reached through.
_NEVER = frozenset(
    {
        "os", "posix", "nt", "subprocess", "builtins", "importlib", "imp", "ctypes", "_ctypes", "cffi", "pickle",
        "cloudpickle", "dill", "joblib", "marshal", "shelve", "socket", "_socket", "shutil", "sys", "pty", "runpy",
        "multiprocessing", "_posixsubprocess",
    }
)  # fmt: skip
#: Modules that no type may come from. The names are usual ones of submodules, so they count as the root alone.
_NEVER_AS_ROOT = frozenset(
    {
        "_pickle", "_compat_pickle", "asyncio", "atexit", "bdb", "cProfile", "code", "codeop", "codecs", "commands",
        "concurrent", "copyreg", "dbm", "distutils", "doctest", "duckdb", "ensurepip", "faulthandler", "fcntl",
        "fileinput", "fsspec", "ftplib", "gc", "glob", "http", "httpx", "imaplib", "inspect", "io", "_io", "linecache",
        "logging", "mmap", "nntplib", "operator", "_operator", "pathlib", "pdb", "pip", "pkgutil", "platform", "poplib",
        "posixpath", "profile", "psutil", "psycopg2", "pyarrow", "pydoc", "requests", "resource", "sched", "selectors",
        "select", "setuptools", "signal", "site", "smtplib", "socketserver", "sqlalchemy", "sqlite3", "ssl",
        "sysconfig", "tarfile", "tempfile", "telnetlib", "test", "threading", "_thread", "timeit", "trace",
        "tracemalloc", "types", "unittest", "urllib", "urllib3", "venv", "webbrowser", "wsgiref", "xmlrpc", "zipfile",
        "zipimport", "airflow", "evidently", "great_expectations", "mlflow", "perennial", "pyiceberg", "skops",
    }
)  # fmt: skip
#: How names of libraries of estimators begin that read files, run code or reach memory.
_NEVER_BELOW = (
    "numpy.ctypeslib", "numpy.distutils", "numpy.f2py", "numpy.fromfile", "numpy.genfromtxt", "numpy.lib", "numpy.load",
    "numpy.loadtxt", "numpy.memmap", "numpy.save", "numpy.savetxt", "numpy.testing", "pandas.eval", "pandas.io", "pandas.read_",
    "scipy.io", "scipy.weave", "sklearn.datasets",
)  # fmt: skip


def may_never_be_trusted(name: str) -> bool:
    """Whether no deployment may load a model with this type: a dotted name such as ``posix.system``."""
    parts = name.split(".")
    return not _NEVER.isdisjoint(parts) or parts[0] in _NEVER_AS_ROOT or name.startswith(_NEVER_BELOW)


def reviewed_types(named: Iterable[str], reviewed: Sequence[str] | None) -> list[str]:
    """Those of the types that a folder names that a deployment may load.

    Args:
        named: ``training.trusted_types``.
        reviewed: ``PERENNIAL_TRUSTED_TYPES``: names of types, or of modules that hold them. None: the folder decides.
    """
    return [
        name
        for name in named
        if not may_never_be_trusted(name)
        and (reviewed is None or any(name == entry or name.startswith(f"{entry}.") for entry in reviewed))
    ]
