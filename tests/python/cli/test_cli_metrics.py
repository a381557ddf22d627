"""`velo run --metrics`: figures that Prometheus' own parser reads."""

import re
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from helpers import HANG, until_sync


def scrape(url):
    with urllib.request.urlopen(url, timeout=HANG) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {sample.name: sample.value for family in families for sample in family.samples}


def test_figures_while_it_runs(velo, mode):
    run = ("run", "fns:sums", "-i", "-", "-k", "k", "--mode", mode, "--metrics", "127.0.0.1:0")
    process = velo.start(*run)
    line = process.stderr.readline().decode()
    (url,) = re.findall(r"velo: metrics at (http://127\.0\.0\.1:\d+/metrics)", line)
    process.stdin.write(b'{"k":1,"v":2}\n{"k":1,"v":3}\nx\n{"k":2,"v":4}\n')
    process.stdin.flush()
    until_sync(lambda: scrape(url)["velo_run_results_total"] == 3)
    found = scrape(url)
    assert found["velo_run_events_total"] == 3
    assert found["velo_run_bad_lines_total"] == 1
    assert found["velo_run_streams_opened_total"] == found["velo_run_streams"] == 2
    assert (found["velo_run_workers"] > 0) is (mode == "process")
    assert found["velo_run_input_bytes"] == 44
    assert found["process_resident_memory_bytes"] > 1e6
    process.communicate(timeout=HANG)
    assert process.returncode == 0


def test_the_last_tick_of_a_checkpoint(velo):
    velo.file(
        "kept.py",
        "from velo import stream_fn\n"
        "@stream_fn\n"
        "async def count(events, state):\n"
        "    async for event in events:\n"
        "        state['n'] = state.get('n', 0) + 1\n"
        "        yield state['n']\n",
    )
    velo.file("in.ndjson", '{"k":1}\n')
    url = f"file://{velo.folder}/in.ndjson?follow=true"
    run = ("run", "kept.py:count", "-i", url, "-k", "k", "-o", "out", "--checkpoint", "kept")
    process = velo.start(*run, "--checkpoint-every", "0.05", "--metrics", "127.0.0.1:0")
    line = process.stderr.readline().decode()
    (url,) = re.findall(r"velo: metrics at (http://127\.0\.0\.1:\d+/metrics)", line)
    until_sync(lambda: scrape(url).get("velo_run_epoch", 0) > 1)
    assert scrape(url)["velo_run_epoch_age_seconds"] >= 0
    process.terminate()
    process.communicate(timeout=HANG)


def test_where_it_cannot_listen(velo):
    for where, message in {
        "9464": "must be HOST:PORT",
        "127.0.0.1:http": "must be HOST:PORT",
        "192.0.2.1:9464": "cannot serve metrics at 192.0.2.1:9464",
    }.items():
        done = velo("run", "fns:echo", "-i", "-", "--metrics", where)
        assert done.code == 2
        assert message in done.err
