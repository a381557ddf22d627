"""Several tabs of one user, as the guide has them, served by uvicorn."""

import json
import re

import pytest

from helpers import ROOT
from serving import served

websockets = pytest.importorskip("websockets", reason="needs velo-stream[test]")
pytest.importorskip("uvicorn", reason="needs velo-stream[test]")


@pytest.fixture
def block(tmp_path):
    """Writes a code block of the guide to a folder, which is returned."""

    def write(title):
        page = (ROOT / "docs/guide/web.md").read_text()
        (code,) = re.findall(rf'```python title="{title}"\n(.*?)```', page, re.DOTALL)
        (tmp_path / title).write_text(code)
        return tmp_path

    return write


async def ask(socket, item):
    await socket.send(json.dumps(item))
    return json.loads(await socket.recv())


async def test_attach_per_message(block):
    async with served(block("each_message.py"), "each_message:app") as (address, _):
        url = f"ws://{address}/cart/ada"
        async with websockets.connect(url) as one, websockets.connect(url) as two:
            assert await ask(one, "tea") == ["tea"]
            assert await ask(two, "milk") == ["tea", "milk"]
            assert await ask(one, "jam") == ["tea", "milk", "jam"]
        async with websockets.connect(url) as again:
            assert await ask(again, "egg") == ["tea", "milk", "jam", "egg"]


async def test_one_attachment_for_all_tabs(block):
    async with served(block("all_tabs.py"), "all_tabs:app") as (address, _):
        url = f"ws://{address}/cart/ada"
        async with websockets.connect(url) as one:
            assert await ask(one, "tea") == ["tea"]
            async with websockets.connect(url) as two:
                assert await ask(two, "milk") == ["tea", "milk"]
                assert json.loads(await one.recv()) == ["tea", "milk"]
            assert await ask(one, "jam") == ["tea", "milk", "jam"]
        async with websockets.connect(url) as again:  # the last tab had left
            assert await ask(again, "egg") == ["tea", "milk", "jam", "egg"]
