import io

import pytest

from advtrain.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Unread:
    def __float__(self):
        raise AssertionError("a value was waited for though nobody looks")


def test_a_pipe_gets_plain_lines_and_no_value_is_read():
    stream = io.StringIO()
    with Progress(100, "training", "img", stream=stream) as bar:
        for _ in range(100):
            bar.advance(1, loss=Unread())
        bar.say("epoch 1  [loss] 0.5")
    assert stream.getvalue() == "epoch 1  [loss] 0.5\n"


def test_a_terminal_gets_bars_and_reads_values_a_few_times(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    reads = []

    class Counted:
        def __float__(self):
            reads.append(1)
            return 0.25

    stream = Terminal()
    with Progress(1000, "training [x]", "img", stream=stream) as bar:
        for _ in range(1000):
            bar.advance(1, loss=Counted())
        bar.say("kept")
    assert "training [x]" in stream.getvalue() and "kept" in stream.getvalue()
    assert 1 <= len(reads) < 20


def test_an_interrupt_leaves_the_terminal_as_it_was(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    with pytest.raises(KeyboardInterrupt), Progress(2, "training", stream=stream) as bar:
        bar.advance()
        raise KeyboardInterrupt
    assert stream.getvalue().rfind("\x1b[?25h") > stream.getvalue().rfind("\x1b[?25l")


def test_a_dumb_terminal_counts_as_a_pipe(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with Progress(2, "training", stream=stream) as bar:
        bar.advance()
    assert stream.getvalue() == ""
