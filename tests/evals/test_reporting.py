"""Progress of evaluations without a terminal, with a clock that the test moves."""

import re

import pytest

from ctxext.cli import heartbeat
from ctxext.evals import reporting
from ctxext.evals.reporting import EvaluationProgress

SECONDS = {"s": 1, "min": 60, "h": 3600}


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def read(progress, clock, calls, told=lambda: None, parts=10):
    """Do an evaluation of calls that take so many seconds each, in parts that take equally long."""
    progress.begin("passkey, yarn", len(calls))
    for seconds in calls:
        for part in range(1, parts + 1):
            clock.now += seconds / parts
            progress.heard(part / parts)
            told()
        progress.call_done()
        progress.record_done()
    progress.end()


@pytest.mark.parametrize("slower", [1.0, 1.8])
def test_a_line_a_minute_with_the_time_left_to_a_factor_of_two(slower, capsys):
    """Short texts first, whose operations are up to 1.8 times faster than those of long ones.

    A long one takes three minutes and more, so that progress cannot wait for answers.
    """
    clock = Clock()
    short = [6.0] * 20
    long = [180.0 * slower] * 4
    weighed = []

    def weigh():
        weighed.append(clock.now)
        return [[6.0] * 20, [180.0] * 4]

    lines = []

    def told():
        output = capsys.readouterr().err
        assert "\r" not in output
        lines.extend((clock.now, line) for line in output.splitlines())

    total = sum(short) + sum(long)
    with EvaluationProgress("yarn", weigh, enabled=True, clock=clock) as progress:
        read(progress, clock, short, told)
        read(progress, clock, long, told)
    assert weighed == [pytest.approx(60)], "prompts are built when the first line is due"
    # A part of a long text takes up to half a minute.
    assert total / 100 < len(lines) <= total / 60
    shares = []
    for now, line in lines:
        match = re.fullmatch(
            r"passkey, yarn: (\d+)% read, (\d+) of \d+ records; about ([\d.]+) (s|min|h) left for "
            r"all evaluations of yarn",
            line,
        )
        assert match, line
        left = float(match[3]) * SECONDS[match[4]]
        truth = total - now
        # To the rounding of the text, half a minute.
        assert truth / 2 - 30 <= left <= truth * 2 + 30, line
        if match[2] == "0":
            shares.append(int(match[1]))
    assert len(set(shares)) >= 2, "it moves before the first long text is answered"


def test_what_is_not_enabled_says_nothing_and_builds_no_prompts(capsys):
    clock = Clock()
    progress = EvaluationProgress("yarn", lambda: pytest.fail("built"), enabled=False, clock=clock)
    with progress:
        read(progress, clock, [100.0] * 3)
    assert capsys.readouterr() == ("", "")


def test_a_sign_of_life_does_not_speak_between_lines_of_progress():
    assert heartbeat.INTERVAL > reporting.INTERVAL
