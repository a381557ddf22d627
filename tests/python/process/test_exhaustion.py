"""What runs out: each limit is named with its setting, and velo works again when there is room.

Each test limits a child process of its own.
"""

import os
import shutil

import pytest

from cgroups import cgroup
from helpers import run_script

pytestmark = pytest.mark.slow

# What the scripts share: an echo in a worker process, and what a refusal has to say.
COMMON = """
    import asyncio, contextlib, gc, os, resource, sys
    from velo import stream_fn
    from velo._process import clients
    from velo.errors import PoolError, VeloError

    @stream_fn(mode="process", workers=2)
    async def echo(events):
        async for event in events:
            yield event

    async def works():
        return await asyncio.wait_for(echo.run([1, 2, 3]), 60) == [1, 2, 3]

    async def refused(*settings):
        try:
            assert await works()
        except PoolError as error:
            for setting in settings:
                assert setting in str(error), str(error)
            print("refused")
        else:
            print("worked")

    def limit(what, soft):
        resource.setrlimit(what, (soft, resource.getrlimit(what)[1]))
"""


def run(folder, script, *flags, **options):
    """Runs a script; what it printed, if it ended well."""
    code, output, errors = run_script(folder, COMMON + script, *flags, **options)
    assert code == 0, errors
    assert "Traceback" not in errors
    return output.split()


def test_open_files(tmp_path):
    """Wherever they run out: on the way to a stream, each one that is missing is another step."""
    script = """
    async def main():
        loop = asyncio.get_running_loop()
        hoard = []
        assert await works()  # and everything is imported
        for left in range(0, 48, 3):
            clients.close_clients(loop)
            clients.shutdown()
            gc.collect()
            with contextlib.suppress(OSError):
                while True:
                    hoard.append(os.dup(0))
            for fd in hoard[len(hoard) - left:] if left else []:
                os.close(fd)
            del hoard[len(hoard) - left:]
            await refused("ulimit -n", "LimitNOFILE=")
            while hoard:
                os.close(hoard.pop())
            assert await works()

    limit(resource.RLIMIT_NOFILE, 256)
    asyncio.run(main())
    """
    said = run(tmp_path, script)
    assert said.count("refused") > 3, said
    assert said.count("worked") > 1, said


def test_open_files_run_out_with_streams_open(tmp_path):
    """Streams that are open go on; only the worker that cannot be had is refused."""
    script = """
    async def main():
        async with echo.options(workers=1).open() as stream:
            await stream.send(1)
            assert await stream.recv() == 1
            hoard = []
            with contextlib.suppress(OSError):
                while True:
                    hoard.append(os.dup(0))
            for left in range(8):
                try:
                    async with asyncio.timeout(60), echo.open() as other:
                        await other.send(1)
                        assert await other.recv() == 1
                    print("worked")
                except PoolError as error:
                    assert "ulimit -n" in str(error), str(error)
                    print("refused")
                await stream.send(2)
                assert await stream.recv() == 2
                os.close(hoard.pop())
            for fd in hoard:
                os.close(fd)
            assert await works()

    limit(resource.RLIMIT_NOFILE, 256)
    asyncio.run(main())
    """
    assert "refused" in run(tmp_path, script)


def test_address_space(tmp_path):
    script = """
    def used():
        return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()

    def begin_anew():
        clients.close_clients(asyncio.get_running_loop())
        clients.shutdown()
        gc.collect()
        assert used() < 4 << 30, "no link is mapped"

    async def main():
        assert await works()
        for left in (1 << 20, 64 << 20, 180 << 20):
            begin_anew()
            limit(resource.RLIMIT_AS, used() + left)
            await refused("ulimit -v", "LimitAS=")
            limit(resource.RLIMIT_AS, resource.RLIM_INFINITY)
            begin_anew()
            assert await works()
        # A link that fits a little room is a shorter one.
        begin_anew()
        limit(resource.RLIMIT_AS, used() + (3 << 30))
        assert await works()

    asyncio.run(main())
    """
    assert "refused" in run(tmp_path, script)


def test_file_size(tmp_path):
    """The limit of file sizes holds for shared memory too."""
    script = """
    async def main():
        limit(resource.RLIMIT_FSIZE, 100 << 20)
        await refused("ulimit -f", "LimitFSIZE=")
        limit(resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)
        assert await works()

    asyncio.run(main())
    """
    assert run(tmp_path, script) == ["refused"]


NOBODY = 54_321
AS_NOBODY = [
    "setpriv",
    f"--ruid={NOBODY}",
    "--bounding-set=-sys_resource,-sys_admin",
    "--inh-caps=-all",
]


@pytest.mark.skipif(os.getuid() != 0, reason="takes another user's place")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs util-linux")
@pytest.mark.parametrize("most", [1, 2, 3, 4, 5])
def test_processes(tmp_path, most):
    """Its threads, its zygote and its workers: root is not limited, so another user's child is."""
    script = f"""
    async def main():
        limit(resource.RLIMIT_NPROC, {most})
        await refused("ulimit -u", "LimitNPROC=")
        limit(resource.RLIMIT_NPROC, 1000)
        clients.shutdown()
        assert await works()

    asyncio.run(main())
    """
    assert run(tmp_path, script, before=AS_NOBODY)[0] in ("refused", "worked")


def test_the_memory_of_a_cgroup(tmp_path):
    """The kernel kills whoever has most; the stream that has lost its worker learns why."""
    script = """
    from velo.errors import WorkerDied

    @stream_fn(mode="process", workers=1)
    async def hoards(events):
        kept = []
        async for size in events:
            kept.append(bytes(size) or b"x" * size)
            kept.append(b"x" * size)  # and every page is touched
            yield len(kept)

    async def main():
        assert await works()
        try:
            await asyncio.wait_for(hoards.run([50 << 20] * 40), 60)
        except WorkerDied as error:
            assert error.signal == 9, error
            (note,) = error.__notes__
            assert "for want of memory" in note and "MemoryMax=" in note, note
            print("killed")
        assert await works()
        # One that is killed by somebody else is no such case.
        async with hoards.open() as stream:
            await stream.send(1)
            await stream.recv()
            link, = [l for l in clients.client_of(asyncio.get_running_loop()).links.values()
                     if l.end.streams]
            os.kill(link.pid, 9)
            try:
                await stream.recv()
            except WorkerDied as error:
                print("notes", len(getattr(error, "__notes__", ())))

    asyncio.run(main())
    """
    limits = (
        {"memory.limit_in_bytes": 400 << 20},
        {"memory.max": 400 << 20, "memory.swap.max": 0},
    )
    with cgroup("memory", limits) as (_, enter):
        assert run(tmp_path, script, preexec_fn=enter) == ["killed", "notes", "0"]


@pytest.mark.parametrize("most", [2, 4, 5, 6])
def test_the_processes_of_a_cgroup(tmp_path, most):
    script = """
    async def main():
        folder = FOLDER
        with open(folder + "/pids.max", "w") as file:
            file.write("MOST")
        await refused("TasksMax=", "--pids-limit")
        with open(folder + "/pids.max", "w") as file:
            file.write("max")
        clients.shutdown()
        assert await works()

    asyncio.run(main())
    """.replace("MOST", str(most))
    with cgroup("pids", ({"pids.max": "max"}, {"pids.max": "max"})) as (folder, enter):
        script = script.replace("FOLDER", repr(str(folder)))
        assert run(tmp_path, script, preexec_fn=enter)[0] in ("refused", "worked")
