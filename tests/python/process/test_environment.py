"""What velo reads of its environment is checked and named; so is a Python it cannot start."""

import errno
import faulthandler
import os
import signal
import sys

import pytest

from helpers import HANG, run_script, write_script
from velo._worker import report

USES = """
    import os, sys
    from velo import stream_fn

    @stream_fn(mode="process", workers=1)
    async def plus(events):
        async for event in events:
            yield event + 1

    if __name__ == "__main__":
        try:
            print(plus.run_sync([1]))
        except BaseException as error:
            print(type(error).__name__, error)
"""


@pytest.mark.embedded
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("VELO_IDLE_TIMEOUT", value) for value in ("-1", "nan", "inf", "abc", "1e999", "1 s")),
        *((name, value) for name in ("VELO_SPIN", "VELO_METRICS") for value in ("no", "2", "abc")),
        ("VELO_SUPERVISOR", "demon"),
        ("VELO_PYTHON", "/no/where"),
        ("VELO_PYTHON", "/tmp/\ud800".encode("utf-8", "surrogatepass").decode("utf-8", "replace")),
    ],
)
def test_a_variable_that_makes_no_sense_is_named(tmp_path, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    code, output, errors = run_script(tmp_path, USES)
    assert code == 0, errors
    assert output.startswith(f"ValueError `{name}` must be "), output + errors
    assert "panicked" not in errors


@pytest.mark.embedded
@pytest.mark.parametrize(("name", "value"), [("VELO_IDLE_TIMEOUT", "0"), ("VELO_SPIN", "")])
def test_a_variable_at_its_bound_is_taken(tmp_path, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    code, output, errors = run_script(tmp_path, USES)
    assert (code, output) == (0, "[2]\n"), errors


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e300])
def test_no_time_is_a_panic(value):
    """Whatever Python hands the Rust half as a number of seconds."""
    from velo import _core

    with pytest.raises(ValueError, match="must be a number of seconds"):
        _core.SupervisorClient(["true"], [], idle_timeout=value)
    with pytest.raises(ValueError, match="must be a number of seconds"):
        _core.shutdown(value)


@pytest.mark.embedded
@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_program_starts_itself_no_second_time(tmp_path, monkeypatch, frozen):
    """One error says what to set. Also where the program does not say that it is frozen."""
    log, program = tmp_path / "log", tmp_path / "app"
    script = write_script(
        tmp_path,
        USES.replace(
            "from velo",
            f"sys.executable = {str(program)!r}\n    sys.frozen = {frozen}\n    from velo",
            1,
        ),
    )
    program.write_text(f"#!/bin/sh\necho started >> {log}\nexec {sys.executable} {script}\n")
    program.chmod(0o755)
    code, output, errors = run_script(tmp_path, script.read_text())
    assert code == 0, errors
    assert output.startswith("PoolError ")
    if frozen:
        assert "is frozen (`sys.frozen`); set `VELO_PYTHON` to the path of a Python" in output
        assert not log.exists()
    else:
        assert log.read_text().count("started") <= 5
    # With the setting that it names, it works.
    monkeypatch.setenv("VELO_PYTHON", sys.executable)
    code, output, errors = run_script(tmp_path, script.read_text())
    assert (code, output) == (0, "[2]\n"), errors


@pytest.mark.embedded
def test_a_function_that_uses_itself_travels(tmp_path):
    code, output, errors = run_script(
        tmp_path,
        """
        from velo import stream_fn

        @stream_fn(mode="process", workers=1)
        async def down(events):
            async for event in events:
                yield event if event == 0 else (await down.run([event - 1]))[0]

        @stream_fn
        async def back(events):
            async for event in events:
                yield event, len(chain.config.mode), chain is not None

        chain = (down | back).options(mode="process", workers=1)
        print(down.run_sync([2]), chain.run_sync([0]))
        """,
        timeout=50,
    )
    assert (code, output) == (0, "[0] [(0, 7, True)]\n"), errors


@pytest.mark.embedded
def test_one_that_cannot_travel_is_named_in_a_short_message(tmp_path):
    code, output, errors = run_script(
        tmp_path,
        """
        import threading
        from velo import stream_fn

        lock = threading.Lock()

        @stream_fn(mode="process", workers=1)
        async def locks(events):
            async for event in events:
                with lock:
                    yield event

        @stream_fn(mode="process", workers=1)
        async def uses(events):
            async for event in events:
                yield (await locks.run([event]))[0]

        try:
            uses.run_sync([1])
        except TypeError as error:
            print(len(str(error)) < 300, error)
        """,
    )
    assert code == 0, errors
    assert output.startswith("True `uses` cannot be sent to a worker: ")


@pytest.mark.embedded
def test_what_takes_long_to_free_makes_no_noise_at_the_end(tmp_path):
    code, output, errors = run_script(
        tmp_path,
        """
        from velo import stream_fn

        async def numbers():
            n = 0
            while True:
                n += 1
                yield n

        @stream_fn(mode="process", workers=1)
        async def table(events):
            made = {}
            async for key in events:
                made[key] = numbers()
                yield await anext(made[key])

        print(len(table.run_sync(range(100_000))))
        """,
        timeout=50,
    )
    assert (code, output, errors) == (0, "100000\n", "")


@pytest.mark.embedded
def test_exit_handlers_of_a_workers_modules_run(tmp_path):
    """Nothing is freed one by one as a worker ends; what is to be done at its end is done."""
    done = tmp_path / "done"
    code, _, errors = run_script(
        tmp_path,
        f"""
        import atexit
        from velo import _core, stream_fn

        # A worker that has not ended within 2 s is killed: here, it may need longer.
        atexit.register(_core.shutdown, {HANG})

        @stream_fn(mode="process", workers=1)
        async def registers(events):
            import atexit, pathlib, sys, threading, time
            atexit.register(pathlib.Path({str(done)!r}).write_text, "done")
            late = threading.Timer(0.2, lambda: None)
            late.start()
            async for event in events:
                print("printed", end="")
                yield event

        registers.run_sync([1])
        """,
    )
    assert code == 0, errors
    assert done.read_text() == "done"


def test_a_sandbox_that_refuses_signal_stacks_is_named(monkeypatch, capfd):
    """A worker goes on without: it cannot say where it is stuck."""

    def refuse(*_arguments, **_options):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    asked = signal.SIGRTMIN + 9
    monkeypatch.setattr(faulthandler, "enable", refuse)
    before = signal.getsignal(asked)
    try:
        report.write_to(1, asked)
    finally:
        signal.signal(asked, before)
    assert "`sigaltstack` is refused (Operation not permitted)" in capfd.readouterr().err


@pytest.mark.embedded
def test_processes_carry_names(tmp_path):
    """In `ps`, `top` and `htop`: which supervisor's they are, and which functions a worker runs."""
    code, output, errors = run_script(
        tmp_path,
        """
        import asyncio, os
        from pathlib import Path
        from velo import stream_fn

        def name(pid):
            line = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\\0").decode()
            return Path(f"/proc/{pid}/comm").read_text().strip(), line

        @stream_fn(mode="process", workers=1)
        async def fraud(events):
            async for event in events:
                if event == "fork":
                    if (pid := os.fork()) == 0:
                        os._exit(0 if name(os.getpid())[1].startswith("velo: child of") else 1)
                    assert os.waitpid(pid, 0)[1] == 0
                yield os.getpid(), os.getppid()

        ((worker, zygote),) = fraud.run_sync([1])
        me = os.getpid()
        assert name(zygote) == ("velo: zygote of"[:15], f"velo: zygote of {me}"), name(zygote)
        assert name(worker) == ("velo: worker 1", f"velo: worker 1 of {me} (fraud)"), name(worker)
        fraud.run_sync(["fork"])
        print("fine")
        """,
    )
    assert (code, output) == (0, "fine\n"), errors
