"""Report of the command: the table, the refusals, the settings, and the limits of the measurement."""

from __future__ import annotations

from asgi_closecodes.cli.output import plural, printable, render, table, write

from .measure import End, Plan, Result, Step, remedy_for
from .options import duration

_ROOM = 0.8
"""Share of the measured capacity that is recommended."""


def report(result: Result, plan: Plan, *, knows_process: bool) -> bool:
    """Print the result; return whether it contains settings."""
    if result.steps:
        rows = [_row(step) for step in result.steps]
        render(table(">sessions", ">p99", ">memory each", ">handshakes/s", "", rows=rows))
        write("")
    write(*map(printable, _sentences(result, plan)))
    lines = _settings(result, plan, knows_process=knows_process)
    if lines:
        write("", *lines)
    write("", *_limitations(result, knows_process=knows_process))
    return bool(lines)


def _row(step: Step) -> tuple[str, ...]:
    memory = "-" if step.memory is None else f"{step.memory / 1024:.1f} KiB"
    handshakes = "-" if step.handshakes is None else f"{'>' if step.is_hurried else ''}{step.handshakes:.0f}"
    return str(step.sessions), duration(step.p99), memory, handshakes, step.problem


def _sentences(result: Result, plan: Plan) -> list[str]:
    each = f"each saying something every {duration(plan.every)}"
    sentences = [
        f"The server held {plural(result.held, 'session')}, {each}, with a p99 of at most {duration(plan.p99)}."
    ]
    if result.refusal is not None:
        sentences.append(f"First refused at {result.refused_at}: {result.refusal}{remedy_for(result.refusal)}.")
    if not result.steps:
        return ["There is no result: the command was interrupted in the first step."]
    match result.ends_by:
        case None:
            sentences.append("It was interrupted: the server may hold more.")
        case End.LIMIT:
            sentences.append(
                "That is a limit that somebody has set, not the server's capacity: lift it, and measure again."
            )
        case End.MOST:
            sentences.append("That is --most: the server may hold more.")
        case End.SERVER:
            pass
        case end:
            sentences.append(f"The server may hold more, but {end.value}.")
    return sentences


def _settings(result: Result, plan: Plan, *, knows_process: bool) -> list[str]:
    if result.ends_by is End.LIMIT or not (result.held and result.workers):
        return []
    workers = result.workers
    opened = [step for step in result.steps if step.handshakes is not None and not step.problem]
    # The rate measured while half of the sessions sent: with all of them sending, no time is left for handshakes.
    rates = [step.handshakes for number, step in enumerate(opened) if not number or step.sessions * 2 <= result.held]
    lines = [f"CLOSECODES_MAX_SESSIONS={max(int(_ROOM * result.held / workers), 1)}"]
    if rates and rates[-1] is not None:
        lines.append(f"CLOSECODES_HANDSHAKES_PER_SECOND={max(int(_ROOM * rates[-1] / workers), 1)}")
    lines.append(f"CLOSECODES_MAX_LOOP_LAG={plan.p99:g}")
    if knows_process:
        lines.append("CLOSECODES_MAX_MEMORY=80%")
    of_each = "" if workers == 1 else f", for each of {workers} processes"
    return [f"Set, with 20 % of room{of_each}:", *lines]


def _limitations(result: Result, *, knows_process: bool) -> list[str]:
    sentences = ["Not measured: other clients of the server. The limits of a proxy in between show as the server's."]
    if result.proxy:
        sentences.append(f"A proxy answered: {result.proxy}.")
    if not knows_process:
        sentences.append("Not measured without --pid: memory of a session, and how many processes share the load.")
    elif result.workers == 0:
        sentences.append("The process of --pid was idle meanwhile: is it the server's?")
    return [printable(line) for line in sentences]
