"""The code blocks of the documentation: where they are, what they say they print, what runs."""

import doctest
import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path

from helpers import ROOT

# Runs the scripts of a page.
RUNNER = Path(__file__).with_name("page_runner.py")
# What a `sh` block may call without a word: nothing that changes the machine, or needs more of it.
SAFE = {"cat", "cd", "cp", "echo", "export", "grep", "head", "ls", "mkdir", "printf", "python"}
SAFE |= {"gzip", "rm", "sed", "seq", "sleep", "sort", "tail", "test", "true", "velo", "wait", "wc"}
# What is read, not run.
DATA = {"csv", "html", "ini", "json", "toml", "yaml"}
RUN = {"python", "sh", "console"}

_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<info>[^`]*)$")
_COMMENT = re.compile(r"^ *<!-- *(not run|long|continues)(?:: *(.*?))? *-->$")
_CLAIM = re.compile(r"^ *print\(.*\)  # (.+)$", re.MULTILINE)


@dataclass
class Block:
    """One fenced block.

    Attributes:
        where: Page and line, as `docs/index.md:12`.
        language: What the fence says.
        title: The name of the file that it is, or None.
        text: What is in it, indented no more than its fence.
        continues: Whether it goes on where the block before it ended.
        reason: Why it is not run, or None.
        long: Why it is run with `--long` only, or None.
        expected: What it prints, as the `text` block below it has it, or None.

    """

    where: str
    language: str
    title: str | None
    text: str
    continues: bool
    reason: str | None
    long: str | None
    expected: str | None = None

    @property
    def script(self):
        """What is run: of a `console` block the lines behind a `$`."""
        if self.language != "console":
            return self.text
        lines = self.text.splitlines()
        return "\n".join(line[2:] for line in lines if line.startswith("$ ")) + "\n"

    def mistakes(self):
        """What its author has to mend before it can be run."""
        if self.language not in RUN | DATA | {"text"} and self.reason is None:
            yield f"`{self.language}` is none of {', '.join(sorted(RUN | DATA))} and text"
        if "" in (self.reason, self.long):
            yield "`not run` and `long` need a reason: <!-- not run: because -->"
        if self.language in ("sh", "console") and self.reason is None:
            for command in sorted(_commands(self.script) - SAFE):
                yield f"`{command}` is not known to be safe: <!-- not run: because -->"

    def differs(self, output):
        """What is wrong with its output; None when it is what the page says."""
        for line in _CLAIM.findall(self.text) if self.language == "python" else ():
            if line not in output.splitlines():
                return f"`{line}` was to be printed, but not in\n{output}"
        expected = self.expected
        if self.language == "console":
            lines = self.text.splitlines(keepends=True)
            expected = "".join(line for line in lines if not line.startswith("$ "))
        if expected is None:
            return None
        checker, flags = doctest.OutputChecker(), doctest.ELLIPSIS
        if checker.check_output(expected, output, flags):
            return None
        return checker.output_difference(doctest.Example("", expected), output, flags)


def blocks(path):
    """All blocks of a page, or of the docstrings of a module, in order."""
    found, comments = [], {}
    lines = iter(enumerate(path.read_text().splitlines(), 1))
    for number, line in lines:
        if comment := _COMMENT.match(line):
            comments[comment[1]] = comment[2] or ""
        elif fence := _FENCE.match(line):
            body = []
            for _, inner in lines:
                if inner.strip() == fence["ticks"]:
                    break
                body.append(inner)
            language, _, rest = fence["info"].strip().partition(" ")
            title = re.search(r'title="([^"]+)"', rest)
            block = Block(
                where=f"{path.relative_to(ROOT)}:{number}",
                language=language,
                title=title and title[1],
                text=textwrap.dedent("\n".join(body)) + "\n",
                continues="continues" in comments,
                reason=comments.get("not run"),
                long=comments.get("long"),
            )
            comments = {}
            if language == "text" and block.reason is None:
                assert found, f"{block.where}: the output of which block? <!-- not run: because -->"
                found[-1].expected = block.text
            else:
                found.append(block)
        elif line.strip():
            comments = {}
    return found


def _commands(script):
    """The names of the programs that a shell script calls."""
    found, first = set(), True
    lexer = shlex.shlex(script.replace("\\\n", " ").replace("\n", " ;\n"), punctuation_chars=True)
    lexer.whitespace_split = True
    for word in lexer:
        if first and not re.match(r"\w+=", word):
            found.add(word)
        first = (first and re.match(r"\w+=", word)) or set(word) <= set("|&;()")
    return {word for word in found if not set(word) <= set("|&;()")}
