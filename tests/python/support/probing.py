"""A run that is asked whether it is ready and alive."""

import json
import re
import urllib.error
import urllib.request

from helpers import HANG, until_sync

__all__ = ["Probed"]


class Probed:
    """A process with `velo run --metrics 127.0.0.1:0`, whose stderr is a pipe."""

    def __init__(self, process):
        self.process = process
        line = process.stderr.readline().decode()
        (self._base,) = re.findall(r"(http://127\.0\.0\.1:\d+)/metrics", line)

    def __call__(self, path):
        """The status, and what is told."""
        try:
            with urllib.request.urlopen(self._base + path, timeout=HANG) as answer:
                status, body = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, body = error.code, error.read()
        return status, json.loads(body)

    def until(self, path, told=None):
        """Wait until it is well; or until the one reason why it is not holds this."""

        def found():
            status, answer = self(path)
            why = answer["why"]
            assert status == (503 if why else 200)
            assert answer[path[1:].partition("?")[0]] is not bool(why)
            return len(why) == 1 and told in why[0] if told else not why

        until_sync(found)

    def end(self):
        self.process.communicate(timeout=HANG)
        return self.process.returncode
