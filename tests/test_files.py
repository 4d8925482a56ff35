"""Files are written whole or not at all, and errors have one base."""

import ast
import errno
import importlib
import logging
import os
import pkgutil
import pwd
import stat
import sys
import tempfile
from pathlib import Path

import pytest

import rmt_jax
from rmt_jax import cli, files
from rmt_jax.errors import RmtError

pytestmark = pytest.mark.portable

ROOT = Path(rmt_jax.__file__).parent


def test_a_file_is_written_whole(tmp_path):
    file = tmp_path / "new" / "a.txt"
    files.write_text(file, "é\n")
    assert file.read_bytes() == "é\n".encode() and os.listdir(file.parent) == ["a.txt"]
    with files.atomic_open(file, binary=True) as stream:
        stream.write(b"\0\1")
        stream.flush()
        assert file.read_bytes() == "é\n".encode()  # until the block ends
        (other,) = set(os.listdir(file.parent)) - {"a.txt"}
        assert other.startswith(".a.txt.")
    assert file.read_bytes() == b"\0\1" and os.listdir(file.parent) == ["a.txt"]


def test_what_breaks_leaves_the_old_file(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(RuntimeError, match="half"):
        with files.atomic_open(file) as stream:
            stream.write("ne")
            raise RuntimeError("half way")
    with pytest.raises(OSError):
        with files.atomic_path(file) as hidden:
            hidden.unlink()  # a library that wrote nothing
    with pytest.raises(OSError, match=f"No space left on device: '{file}'"):
        with files.atomic_open(file):
            raise OSError(errno.ENOSPC, "No space left on device")  # as `write` does, of no file
    assert file.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_rights_are_those_of_any_new_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        with files.atomic_path(tmp_path / "a") as hidden:
            hidden.write_text("x")
            hidden.chmod(0o600)  # as safetensors does
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask


def no_home(monkeypatch, temporary):
    """As in a container that runs under a number: no HOME, and no entry of this user anywhere."""

    def nobody(*_):
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for name in ("HOME", "XDG_CACHE_HOME", "RMT_JAX_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))


def test_where_the_cache_lies(tmp_path, monkeypatch):
    monkeypatch.delenv("RMT_JAX_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    assert files.cache_folder() == Path("/home/me/.cache/rmt_jax")
    monkeypatch.setenv("RMT_JAX_CACHE", "~/kept")
    assert files.cache_folder() == Path("/home/me/kept")
    no_home(monkeypatch, tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert files.cache_folder() == Path("/x/rmt_jax")
    monkeypatch.setenv("RMT_JAX_CACHE", "/r")
    assert files.cache_folder() == Path("/r")


def test_a_user_without_a_home_has_a_cache_of_his_own(tmp_path, monkeypatch):
    no_home(monkeypatch, tmp_path)
    folder = files.cache_folder()
    assert folder == tmp_path / f"rmt_jax-{os.getuid()}" == files.cache_folder()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    with pytest.raises(files.CacheError, match="by others.*set the environment variable RMT_JAX_C"):
        files.cache_folder()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(files.CacheError, match="by others"):
        files.cache_folder()


def test_a_cache_without_room_is_named_with_what_moves_it(tmp_path):
    told = rf"kept in {tmp_path} \(No space.*set the environment variable RMT_JAX_CACHE"
    for name in (None, str(tmp_path / "a" / "b"), str(tmp_path)):
        with pytest.raises(files.CacheError, match=told):
            with files.cache_errors(tmp_path):
                raise OSError(errno.ENOSPC, "No space left on device", name)
    with pytest.raises(PermissionError):  # of a book that is read meanwhile
        with files.cache_errors(tmp_path):
            raise PermissionError(errno.EACCES, "Permission denied", "/books/a.txt")


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def test_nobody_else_renames_files_that_he_wrote():
    """`os.replace` moves old answers aside in one place; new files go through `rmt_jax.files`."""
    allowed = {"files.py", "evaluation/answer_log.py"}
    using = {
        str(file.relative_to(ROOT))
        for file in modules()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr == "replace"
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    }
    assert using <= allowed, using - allowed


def test_only_the_command_line_knows_tqdm():
    using = [file for file in modules() if "import tqdm" in file.read_text(encoding="utf-8")]
    assert [file.name for file in using] == ["cli.py"]


def test_every_error_for_users_has_one_base():
    """Classes that are called an error are RmtErrors, so that commands catch them."""
    wrong = []
    for module in pkgutil.walk_packages([str(ROOT)], "rmt_jax."):
        if module.name.endswith(("__main__", "triton_kernels", "tfds_builder")):
            continue  # runs, or needs what may not be installed
        for name, value in vars(importlib.import_module(module.name)).items():
            ours = isinstance(value, type) and value.__module__.startswith("rmt_jax")
            if ours and (name.endswith("Error") or name == "Usage"):
                if not issubclass(value, RmtError):
                    wrong.append(f"{module.name}.{name}")
    assert not wrong, wrong


@pytest.mark.parametrize(
    ("raised", "code", "text"),
    [
        (RmtError("A sentence."), 2, "error: A sentence.\n"),
        (OSError("disk full"), 2, "error: disk full\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/a/b.txt"),
            2,
            "error: [Errno 28] No space left on device: '/a/b.txt': make room there\n",
        ),
        (KeyboardInterrupt(), 130, "\nstopped.\n"),
    ],
)
def test_commands_end_in_a_sentence(capsys, raised, code, text):
    def main(argv):
        raise raised

    with pytest.raises(SystemExit) as stop:
        cli.run(main, [])
    assert stop.value.code == code and capsys.readouterr() == ("", text)


def test_a_bug_is_no_sentence():
    def main(argv):
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError):
        cli.run(main, [])


def test_the_log_goes_to_standard_error_once_and_above_a_bar(capsys):
    def main(argv):
        log = logging.getLogger("rmt_jax.somewhere")
        log.info("one %s", 1)
        with cli.progress_bar(10, "tok", mininterval=0) as bar:
            bar.update(3)
            log.warning("two")
        log.debug("not this")
        print("result")

    for _ in range(2):  # a second command in the same process says nothing twice
        with pytest.raises(SystemExit):
            cli.run(main, [])
    out, err = capsys.readouterr()
    assert out == "result\nresult\n"
    assert err.count("one 1\n") == 2 and err.count("two\n") == 2 and "not this" not in err
    assert "3/10" in err and sys.stderr is not None


def test_a_hidden_bar_says_nothing(capsys):
    with cli.progress_bar(10, "tok", shown=False) as bar:
        bar.update(3)
    assert capsys.readouterr() == ("", "")
