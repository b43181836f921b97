"""Faults and hostile inputs: what the commands, the readers and the server do with them.

    python benchmarks/faults.py kills --seconds 600
    python benchmarks/faults.py errors --seconds 600
    python benchmarks/faults.py damage --seconds 300
    python benchmarks/faults.py pairs --seconds 120
    python benchmarks/faults.py fuzz --count 50000
    python benchmarks/faults.py http --count 10000

Every campaign is bounded by ``--count`` and ``--seconds``, has fixed seeds, and writes its counters to
``--results`` as it goes: run it again to continue. Needs Linux, gcc (for ``fault_shim.c``) and the package
with the extras train and eval. Everything runs on this machine, the server on the loopback address.

kills    SIGKILL before and in the middle of every system call that changes a file, and at random times;
         SIGTERM and SIGINT at system calls and at random times. The same command again must end with the
         bytes, or for an index the answers, of an undisturbed run.
errors   ENOSPC and EIO from one system call, and from one system call on.
damage   flipped, zeroed, cut, deleted, emptied and swapped files in finished and unfinished folders. The
         next command must report it or end with the undisturbed result.
pairs    two processes at once on one folder.
fuzz     mutated files for every reader, filters and citations: bounds on time and memory.
http     mutated requests to a server, beside a client that measures short requests.
small    a minute of all but http, without random times: what runs in continuous integration.
table    prints the counters as Markdown.
"""

import argparse
import errno
import json
import os
import platform
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fault_commands as commands
from fault_commands import FAIL, FAIL_ON, KILL, SIGNAL, TEAR, Ended, Fault, Runner, Scene, Stage

# files that people read, digests that were lost, a log that begins again: damage to them changes no result
ASIDE = re.compile(
    r"(missing|changed) \S*(report\.md|report\.json|about\.txt|timing\.json|\.digest|log\.jsonl)"
)
MAX_FINDINGS = 40  # kept of each kind
RESULTS = Path(__file__).parent / "results" / "faults.json"


@dataclass
class Ledger:
    """Counters by campaign, subject and kind, and what was found; written to a file as they grow."""

    path: Path
    counters: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    findings: list[dict[str, Any]] = field(default_factory=list)
    written: float = 0.0

    @classmethod
    def open(cls, path: Path) -> "Ledger":
        if not path.exists():
            return cls(path)
        content = json.loads(path.read_text())
        return cls(path, content["counters"], content["findings"])

    def tried(self, campaign: str, subject: str, kind: str) -> int:
        return self.counters.get(campaign, {}).get(f"{subject}: {kind}", {}).get("tried", 0)

    def note(self, campaign: str, subject: str, kind: str, outcome: str, detail: str = "") -> None:
        detail = re.sub(r"/\S*/registry/src/[^/\s]+/", "", detail)  # where a library was built
        row = self.counters.setdefault(campaign, {}).setdefault(f"{subject}: {kind}", {"tried": 0})
        number = row["tried"]
        row["tried"] += 1
        row[outcome] = row.get(outcome, 0) + 1
        if outcome not in HELD:
            alike = [f for f in self.findings if (f["campaign"], f["outcome"]) == (campaign, outcome)]
            if len(alike) < MAX_FINDINGS:
                self.findings.append(
                    {
                        "campaign": campaign,
                        "subject": subject,
                        "kind": kind,
                        "number": number,
                        "outcome": outcome,
                        "detail": detail[-600:],
                    }
                )
            if row[outcome] <= 3:
                print(f"{campaign} {subject} {kind} {number}: {outcome}\n  {detail[-600:]}", flush=True)
        if time.monotonic() - self.written > 5:
            self.write()

    def write(self) -> None:
        self.written = time.monotonic()
        content = {
            "machine": {
                "processor": platform.machine(),
                "cores": os.cpu_count(),
                "system": platform.system(),
            },
            "python": platform.python_version(),
            "counters": self.counters,
            "findings": self.findings,
        }
        work = self.path.with_name(self.path.name + ".new")
        work.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
        work.replace(self.path)


# outcomes that are right; every other name is a finding
HELD = {"aside", "held", "finished", "reported", "repaired", "accepted", "refused"}


@dataclass
class Bound:
    """Ends a campaign after a number of tries or seconds."""

    count: int
    seconds: float
    start: float = field(default_factory=time.monotonic)
    done: int = 0

    def left(self) -> bool:
        return self.done < self.count and time.monotonic() - self.start < self.seconds


def rng(*names: object) -> random.Random:
    return random.Random("/".join(map(str, names)))


# kills and errors ---------------------------------------------------------------------------------------

Plan = dict[str, Callable[[random.Random, int, int, float], Fault | None]]


def _at_call(action: int, number: int = 0) -> Callable[[random.Random, int, int, float], Fault | None]:
    """Every system call once, in a mixed order; then None."""

    def fault(_: random.Random, trial: int, calls: int, __: float) -> Fault | None:
        order = list(range(1, calls + 1))
        random.Random(calls).shuffle(order)
        return Fault(action, order[trial], number) if trial < calls else None

    return fault


def _at_time(number: int) -> Callable[[random.Random, int, int, float], Fault | None]:
    def fault(draw: random.Random, trial: int, _: int, seconds: float) -> Fault | None:
        return Fault(number=number, after_s=draw.uniform(0, 1.1 * seconds)) if trial < 200 else None

    return fault


CHAIN = "SIGKILL again and again"  # in one folder, at random calls, before the command may end
KILLS: Plan = {
    "SIGKILL before a call": _at_call(KILL),
    "SIGKILL within a call": _at_call(TEAR),
    CHAIN: lambda draw, trial, calls, _: Fault(KILL, draw.randint(1, calls)) if trial < 400 else None,
    "SIGKILL at a time": _at_time(signal.SIGKILL),
    "SIGTERM at a call": _at_call(SIGNAL, signal.SIGTERM),
    "SIGTERM at a time": _at_time(signal.SIGTERM),
    "SIGINT at a call": _at_call(SIGNAL, signal.SIGINT),
    "SIGINT at a time": _at_time(signal.SIGINT),
}
ERRORS: Plan = {
    "ENOSPC once": _at_call(FAIL, errno.ENOSPC),
    "ENOSPC from a call on": _at_call(FAIL_ON, errno.ENOSPC),
    "EIO once": _at_call(FAIL, errno.EIO),
    "EIO from a call on": _at_call(FAIL_ON, errno.EIO),
}
CODES = {signal.SIGKILL: {-9}, signal.SIGTERM: {143}, signal.SIGINT: {130}}


def interrupt(stage: Stage, runner: Runner, ledger: Ledger, bound: Bound, campaign: str, plan: Plan) -> None:
    """Run every scene under every kind of fault, a round at a time, until the bound or the last call."""
    whole = _references(stage, runner)
    open_kinds = [(name, kind) for kind in plan for name in stage.scenes]
    while open_kinds and bound.left():
        for name, kind in list(open_kinds):
            if not bound.left():
                return
            trial = ledger.tried(campaign, name, kind)
            ended, reference = whole[name]
            fault = plan[kind](rng(campaign, name, kind, trial), trial, ended.calls, ended.seconds)
            if fault is None:
                open_kinds.remove((name, kind))
                continue
            commands.fresh(stage, stage.scenes[name])
            for link in range(4 if kind == CHAIN else 0):
                earlier = runner.run(stage.scenes[name].argv, stage.work, fault)
                fault = Fault(KILL, rng(campaign, name, trial, link).randint(1, 1 + ended.calls // 2))
                if earlier.code == -signal.SIGKILL:  # otherwise it had ended before
                    ledger.note(campaign, name, kind, "held")
                    bound.done += 1
            outcome, detail = _interrupted(stage, stage.scenes[name], runner, fault, reference)
            ledger.note(campaign, name, kind, outcome, f"{fault}: {detail}")
            bound.done += 1


def _references(stage: Stage, runner: Runner) -> dict[str, tuple[Ended, dict[str, str]]]:
    """How every scene ends without a fault, and its result; once for all campaigns of a run."""
    for name, scene in stage.scenes.items():
        if name not in stage.references:
            stage.references[name] = _undisturbed(stage, scene, runner)
    return stage.references


def _undisturbed(stage: Stage, scene: Scene, runner: Runner) -> tuple[Ended, dict[str, str]]:
    commands.fresh(stage, scene)
    ended = runner.run(scene.argv, stage.work)
    if ended.code != 0:
        raise SystemExit(f"{scene.name} fails without a fault: {ended.code}\n{ended.err}")
    return ended, commands.snapshot(stage, scene, runner)


def _interrupted(
    stage: Stage, scene: Scene, runner: Runner, fault: Fault, reference: dict[str, str]
) -> tuple[str, str]:
    """Run a scene with a fault, and again without; return what came of it."""
    ended = runner.run(scene.argv, stage.work, fault)
    number = signal.SIGKILL if fault.action in (KILL, TEAR) else fault.number
    expected = {0, 1} if fault.action in (FAIL, FAIL_ON) else {0} | CODES[signal.Signals(number)]
    if fault.after_s is not None:
        expected.add(-number)  # before the command has its handlers
    if outcome := _bad_end(ended, expected):
        return outcome
    if ended.code == 1 and "error: " not in ended.err:
        return "no message", ended.err
    finished = ended.code == 0
    difference = _difference(commands.snapshot(stage, scene, runner), reference) if finished else ""
    if difference and not difference.startswith("left over"):  # the next run removes these
        return "silent", f"exit 0, but {difference}"
    again = runner.run(scene.argv, stage.work)
    if outcome := _bad_end(again, {0}):
        return f"again: {outcome[0]}", f"after exit {ended.code}: {outcome[1]}"
    if difference := _difference(commands.snapshot(stage, scene, runner), reference):
        outcome = "left over" if difference.startswith("left over") else "different"
        return outcome, f"exit {ended.code}, then 0, but {difference}"
    return ("finished" if finished else "held"), ""


def _bad_end(ended: Ended, codes: set[int]) -> tuple[str, str] | None:
    if ended.code is None:
        return "hang", ended.err
    if "Traceback" in ended.err:
        return "traceback", ended.err
    if ended.code not in codes:
        return ("crash" if ended.code < 0 else "exit code"), f"exit {ended.code}: {ended.err}"
    return None


def _difference(files: dict[str, str], reference: dict[str, str]) -> str:
    parts = [f"missing {name}" for name in reference if name not in files]
    parts += [
        f"changed {name}" + (f": {files[name][:300]}" if "\n" in files[name] else "")
        for name in reference
        if name in files and files[name] != reference[name]
    ]
    parts += [f"left over {name}" for name in files if name not in reference]
    return "; ".join(parts[:6])


# damage -------------------------------------------------------------------------------------------------

DAMAGES = ("flip", "zero", "cut", "empty", "delete", "swap", "copy", "append")


def damage(stage: Stage, runner: Runner, ledger: Ledger, bound: Bound) -> None:
    """Damage one file of a finished or unfinished folder, and run the next command."""
    states = list(_states(stage, runner))
    while bound.left():
        before = bound.done
        for scene, state, folder, next_argv, reference in states:
            for kind in DAMAGES:
                trial = ledger.tried("damage", f"{scene.name}, {state}", kind)
                if trial >= 60 or not bound.left():
                    continue
                commands.fresh(stage, scene, folder)
                what = _damage(stage.work, kind, rng("damage", scene.name, state, kind, trial))
                if what is None:
                    continue
                outcome, detail = _after_damage(stage, scene, runner, next_argv, reference)
                ledger.note("damage", f"{scene.name}, {state}", kind, outcome, f"{what}: {detail}")
                bound.done += 1
        if bound.done == before:
            return


State = tuple[Scene, str, Path, tuple[str, ...], dict[str, str]]


def _states(stage: Stage, runner: Runner) -> Iterator[State]:
    for scene in stage.scenes.values():
        if scene.name.startswith("encode") or not scene.resumes:
            continue
        ended, reference = _undisturbed(stage, scene, runner)
        finished = commands.kept(stage, scene, "finished", lambda: None)
        if scene.answers:
            if scene.name == "index":
                yield scene, "searched", finished, scene.answers[0], reference
                yield scene, "built again", finished, scene.argv, reference
            continue
        yield scene, "finished", finished, scene.argv, reference
        for quarter in (1, 2, 3):

            def stop(at: int = ended.calls * quarter // 4, scene: Scene = scene) -> None:
                commands.fresh(stage, scene)
                runner.run(scene.argv, stage.work, Fault(KILL, at))

            folder = commands.kept(stage, scene, f"killed at {quarter} of 4", stop)
            yield scene, f"killed at {quarter} of 4", folder, scene.argv, reference


def _damage(folder: Path, kind: str, draw: random.Random) -> str | None:
    files = sorted(
        p
        for p in folder.rglob("*")
        if p.is_file() and not p.is_symlink() and p.name != ".lock" and p.stat().st_size
    )
    if not files:
        return None
    path = draw.choice(files)
    raw = bytearray(path.read_bytes())
    place = draw.randrange(len(raw))
    alike = [other for other in files if other != path and other.suffix == path.suffix]
    other = draw.choice(alike) if alike else None
    if kind in ("swap", "copy") and (other is None or other.read_bytes() == raw):
        return None
    if kind == "flip":
        raw[place] ^= 1 << draw.randrange(8)
    elif kind == "zero":
        raw[place : place + 512] = bytes(len(raw[place : place + 512]))
    elif kind == "cut":
        raw = raw[:place]
    elif kind == "append":
        raw += draw.randbytes(draw.choice((1, 512)))
    elif kind == "empty":
        raw = bytearray()
    elif kind == "delete":
        path.unlink()
        return f"deleted {path.relative_to(folder)}"
    elif other is not None:
        theirs = other.read_bytes()
        if kind == "swap":
            other.write_bytes(raw)
        raw = bytearray(theirs)
    if path.read_bytes() == raw:
        return None
    path.write_bytes(raw)
    place_text = f" at {place}" if kind in ("flip", "zero", "cut") else f" with {other}" if other else ""
    return f"{kind} {path.relative_to(folder)}{place_text}"


def _after_damage(
    stage: Stage, scene: Scene, runner: Runner, argv: tuple[str, ...], reference: dict[str, str]
) -> tuple[str, str]:
    asks = bool(scene.answers) and argv != scene.argv
    ended = runner.run(argv, stage.work)
    if outcome := _bad_end(ended, {0, 1}):
        return outcome
    if ended.code == 1:
        return ("reported", "") if "error: " in ended.err else ("no message", ended.err)
    if asks:
        same = commands.hits(ended) == reference[" ".join(argv[2:])]
        return ("repaired", "") if same else ("silent", f"exit 0, but other answers: {ended.out[:200]}")
    difference = _difference(commands.snapshot(stage, scene, runner), reference)
    if difference and all(ASIDE.fullmatch(part) for part in difference.split("; ")):
        return "aside", ""
    return ("silent", f"exit 0, but {difference}") if difference else ("repaired", "")


# pairs --------------------------------------------------------------------------------------------------


def pairs(stage: Stage, runner: Runner, ledger: Ledger, bound: Bound) -> None:
    """Run each command twice at once, and a search beside each command that writes an index."""
    whole = _references(stage, runner)
    other_runner = Runner(runner.folder)
    while bound.left():
        before = bound.done
        for name, scene in stage.scenes.items():
            kinds = ["twice at once"]
            if scene.answers and scene.name != "index":
                kinds.append("search beside it")
            for kind in kinds:
                trial = ledger.tried("pairs", name, kind)
                if trial >= 30 or not bound.left():
                    continue
                commands.fresh(stage, scene)
                argv = scene.argv if kind == "twice at once" else scene.answers[trial % len(scene.answers)]
                first = runner.start(scene.argv, stage.work, tag="1")
                time.sleep(rng("pairs", name, kind, trial).uniform(0, whole[name][0].seconds))
                second = other_runner.start(argv, stage.work, tag="2")
                ends = [runner.wait(first, tag="1"), other_runner.wait(second, tag="2")]
                outcome, detail = _after_pair(stage, scene, runner, ends, kind, whole[name][1])
                ledger.note("pairs", name, kind, outcome, detail)
                bound.done += 1
        if bound.done == before:
            return


def _after_pair(
    stage: Stage, scene: Scene, runner: Runner, ends: list[Ended], kind: str, reference: dict[str, str]
) -> tuple[str, str]:
    for ended, codes in zip(ends, ({0, 1}, {0, 1} if kind == "twice at once" else {0}), strict=True):
        if outcome := _bad_end(ended, codes):
            return outcome
        if ended.code == 1 and "error: " not in ended.err:
            return "no message", ended.err
    if all(ended.code for ended in ends):
        return "both refused", ends[0].err + ends[1].err
    again = runner.run(scene.argv, stage.work)
    if outcome := _bad_end(again, {0}):
        return f"again: {outcome[0]}", outcome[1]
    difference = _difference(commands.snapshot(stage, scene, runner), reference)
    return ("different", difference) if difference else ("held", "")


# fuzz ---------------------------------------------------------------------------------------------------


def fuzz(root: Path, stage: Stage, ledger: Ledger, bound: Bound, only: str) -> None:
    """Give mutated inputs to every reader, in children that are replaced when they end."""
    import fault_inputs

    targets = fault_inputs.targets(stage.root / "base", root)
    share = max(1, bound.count // len(targets))
    while bound.left():
        before = bound.done
        for target in targets.values():
            if only and only not in target.name:
                continue
            number = ledger.tried("fuzz", target.name, "inputs")
            size = min(250, share, bound.count - bound.done, (target.most or 1 << 30) - number)
            if size <= 0 or not bound.left():
                continue
            for outcome, detail in fault_inputs.batch(target, number, size, root):
                ledger.note("fuzz", target.name, "inputs", outcome, detail)
                bound.done += 1
        if bound.done == before:
            return


def http(root: Path, stage: Stage, ledger: Ledger, bound: Bound) -> None:
    """Send mutated requests to a server with a model and an index."""
    import fault_requests

    base = stage.root / "base"
    with fault_requests.server(base / "model", base / "indexed", root) as address:
        number = ledger.tried("http", "server", "requests")
        for outcome, detail in fault_requests.campaign(address, number, bound):
            ledger.note("http", "server", "requests", outcome, detail)


Campaign = Callable[[Path, Stage, Runner, Ledger, Bound, str], None]
CAMPAIGNS: dict[str, Campaign] = {
    "kills": lambda _, stage, runner, ledger, bound, __: interrupt(
        stage, runner, ledger, bound, "kills", KILLS
    ),
    "errors": lambda _, stage, runner, ledger, bound, __: interrupt(
        stage, runner, ledger, bound, "errors", ERRORS
    ),
    "damage": lambda _, stage, runner, ledger, bound, __: damage(stage, runner, ledger, bound),
    "pairs": lambda _, stage, runner, ledger, bound, __: pairs(stage, runner, ledger, bound),
    "fuzz": lambda root, stage, _, ledger, bound, only: fuzz(root, stage, ledger, bound, only),
    "http": lambda root, stage, _, ledger, bound, __: http(root, stage, ledger, bound),
}


def small(root: Path, stage: Stage, runner: Runner, ledger: Ledger) -> None:
    """A few faults of each campaign, on the commands that take a fraction of a second."""
    scenes = ("encode jsonl", "embed", "index", "index --add --delete", "mine model")
    stage.scenes = {name: stage.scenes[name] for name in scenes}
    kills = {kind: plan for kind, plan in KILLS.items() if kind.endswith("call")}
    interrupt(stage, runner, ledger, Bound(len(scenes) * len(kills), 900.0), "kills", kills)
    interrupt(stage, runner, ledger, Bound(len(scenes) * len(ERRORS), 900.0), "errors", ERRORS)
    damage(stage, runner, ledger, Bound(24, 900.0))
    pairs(stage, runner, ledger, Bound(len(scenes), 900.0))
    fuzz(root, stage, ledger, Bound(1100, 900.0), "")


def table(ledger: Ledger) -> str:
    """Return the counters by campaign and kind, all commands together; readers by reader."""
    lines = ["| campaign | kind | tried | held | found | mended |", "|---|---|---:|---:|---:|---:|"]
    for campaign, rows in ledger.counters.items():
        kinds: dict[str, list[int]] = {}
        for name, row in rows.items():
            subject, _, kind = name.rpartition(": ")
            total = kinds.setdefault(subject if campaign == "fuzz" else kind, [0, 0, 0])
            total[0] += row["tried"]
            total[1] += sum(count for outcome, count in row.items() if outcome in HELD)
        for finding in ledger.findings:
            if finding["campaign"] == campaign and finding.get("mended"):
                kinds[finding["subject" if campaign == "fuzz" else "kind"]][2] += 1
        kinds["**all**"] = [sum(total[i] for total in kinds.values()) for i in range(3)]
        for kind, (total, held, mended) in kinds.items():
            lines.append(f"| {campaign} | {kind} | {total:,} | {held:,} | {total - held:,} | {mended} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("campaign", choices=[*CAMPAIGNS, "small", "table"])
    parser.add_argument("--count", type=int, default=1_000_000, help="most faults or inputs of this run")
    parser.add_argument("--seconds", type=float, default=3600.0, help="most seconds of this run")
    parser.add_argument("--only", default="", help="scenes or readers whose name has this in it")
    parser.add_argument("--root", type=Path, default=Path(tempfile.gettempdir()) / "nvembed-faults")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.campaign == "table":
        print(table(Ledger.open(options.results)))
        return
    root: Path = options.root.resolve() / options.campaign
    root.mkdir(parents=True, exist_ok=True)
    commands.preload(root)
    commands.import_all()
    runner = Runner(root / "io")
    stage = commands.build(root, runner)
    stage.scenes = {name: scene for name, scene in stage.scenes.items() if options.only in name}
    ledger = Ledger.open(options.results)
    bound = Bound(options.count, options.seconds)
    try:
        if options.campaign == "small":
            small(root, stage, runner, ledger)
        else:
            CAMPAIGNS[options.campaign](root, stage, runner, ledger, bound, options.only)
    finally:
        ledger.write()
        shutil.rmtree(stage.work, ignore_errors=True)
    print(f"{options.campaign}: {bound.done:,} in {time.monotonic() - bound.start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
