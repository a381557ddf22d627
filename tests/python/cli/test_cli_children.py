"""`velo run` of a function that starts processes."""

import json

from helpers import HANG, write_script

FUNCTION = """
    import multiprocessing, time

    from velo import stream_fn


    @stream_fn
    async def terminates(events):
        async for event in events:
            child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
            child.start()
            child.terminate()
            child.join(30)
            yield event, child.exitcode
"""


def test_a_child_that_is_terminated_is_what_ends(velo, mode):
    """And not the command, whose signal handlers the child would have."""
    write_script(velo.folder, FUNCTION, "starts.py")
    process = velo.start("run", "starts:terminates", "-i", "-", "--mode", mode)
    out, err = process.communicate(b"1\n2\n3\n", timeout=HANG)
    assert process.returncode == 0, err
    assert [json.loads(line) for line in out.splitlines()] == [[1, -15], [2, -15], [3, -15]]
