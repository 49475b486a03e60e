"""What a child process gives up before it runs a line of its model's code. Called in the child only.

As root it takes a uid of its own. The interpreter may be installed where only root can enter (below /root, say):
then folders it imports from are kept open and entered through /proc/self/fd, so that imports go on working.
Not as root none of this is a boundary between users; limits and the parent's death still hold.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import resource
import signal
import stat
import sys
from pathlib import Path
from types import ModuleType

_SET_DEATH_SIGNAL, _SET_DUMPABLE, _SET_NO_NEW_PRIVILEGES = 1, 4, 38
OPEN_FILES, PROCESSES = 1024, 512


def confine(uid: int, parent: int) -> None:
    """Become `uid` (0: stay), lose every way back, limit, and die with the process `parent`.

    Raises OSError where the system does not allow it: the model must not run then.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None
    if uid:
        _keep_imports()
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        resource.setrlimit(resource.RLIMIT_NPROC, (PROCESSES, PROCESSES))
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    files = min(OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if prctl is not None:
        prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        prctl(_SET_DUMPABLE, 1, 0, 0, 0)  # a change of uid hides /proc/self from its own process
        prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _keep_imports() -> None:
    """Rewrite import paths that others than root cannot enter to go through descriptors opened now."""
    opened: dict[str, str] = {}
    for folder in sorted({path for path in sys.path if os.path.isdir(path)}, key=len):
        if not _open_to_all(Path(folder)) and _moved(folder, opened) == folder:
            opened[folder] = f"/proc/self/fd/{os.open(folder, os.O_PATH | os.O_DIRECTORY)}"
    packages = [module for module in list(sys.modules.values()) if isinstance(getattr(module, "__path__", None), list)]
    for module in packages:
        _move_package(module, opened)
    sys.path[:] = [_moved(path, opened) for path in sys.path]
    sys.path_importer_cache.clear()
    importlib.invalidate_caches()


def _move_package(module: ModuleType, opened: dict[str, str]) -> None:
    for at, folder in enumerate(module.__path__):
        if not _open_to_all(Path(folder)) and _moved(folder, opened) == folder:
            opened[folder] = f"/proc/self/fd/{os.open(folder, os.O_PATH | os.O_DIRECTORY)}"
        module.__path__[at] = _moved(folder, opened)


def _moved(path: str, opened: dict[str, str]) -> str:
    for folder, through in opened.items():
        if path == folder or path.startswith(folder + os.sep):
            return through + path[len(folder) :]
    return path


def _open_to_all(folder: Path) -> bool:
    try:
        return all(place.stat().st_mode & stat.S_IXOTH for place in (folder, *folder.parents))
    except OSError:
        return False
