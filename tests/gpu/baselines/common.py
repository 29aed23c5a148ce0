"""What the baselines share: the machine's name, time by graph replay, cases and rows."""

import argparse
import gc
import json
import math
import statistics
import subprocess
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def count(text: str) -> int:
    """'32K' -> 32768."""
    unit = UNITS.get(text[-1:].upper())
    return int(text[:-1]) * unit if unit else int(text)


def counts(text: str) -> list[int]:
    """'2K,8K' -> [2048, 8192]."""
    return [count(part) for part in text.split(",")]


def short(number: int) -> str:
    """32768 -> '32K'."""
    return f"{number // 1024}K" if number >= 1024 and number % 1024 == 0 else str(number)


def parser(description: str | None, seconds: int) -> argparse.ArgumentParser:
    """The options that every script has."""
    made = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    made.add_argument("--json", type=Path, metavar="OUT", help="write every row to this file")
    made.add_argument("--seconds", type=float, default=seconds,
                      help="start no further case after this long (default %(default)s)")
    made.add_argument("--device", default="cuda", choices=["cuda", "cpu"],
                      help="cpu tries the script out; its times mean nothing")
    return made


def machine(device: str) -> dict[str, str]:
    """What every row names."""
    named = {"gpu": "none", "driver": "none", "torch": torch.__version__,
             "cuda": str(torch.version.cuda)}
    if device == "cuda":
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            driver = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
            named["driver"] = driver.stdout.split("\n")[0].strip()
        except (OSError, subprocess.SubprocessError):
            named["driver"] = "unknown"
        named["gpu"] = torch.cuda.get_device_name()
        named["cudnn"] = str(torch.backends.cudnn.version())
    return named


def reason(error: BaseException) -> str:
    """An exception on one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def release() -> None:
    """Gives freed device memory back, so that the next case finds it whole."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Report:
    """Rows of one run, each with the machine; the file is written anew after every case."""

    def __init__(self, args: argparse.Namespace, script: str) -> None:
        self.script, self.path, self.device = script, args.json, args.device
        self.start, self.most = time.monotonic(), args.seconds
        self.machine = machine(args.device)
        self.rows: list[dict[str, Any]] = []
        print(f"# {script}: " + ", ".join(f"{k} {v}" for k, v in self.machine.items()), flush=True)

    def add(self, **fields: Any) -> None:
        self.rows.append({"script": self.script, **self.machine, **fields})

    def save(self) -> None:
        if self.path:
            made = {"script": self.script, "machine": self.machine, "rows": self.rows}
            self.path.write_text(json.dumps(made, indent=1) + "\n")

    def case(self, run: Callable[[], None], **fields: Any) -> bool:
        """Runs one case. What it raises becomes a row and a line, and the next case goes on."""
        began, failure = time.monotonic(), ""
        if began - self.start > self.most:
            failure = "skipped: out of time"
        else:
            try:
                run()
            except Exception as error:  # one case's trouble is its own
                failure = f"failed: {reason(error)}"
                if not isinstance(error, (MemoryError, torch.OutOfMemoryError)):
                    traceback.print_exc(limit=-4)
        if failure:
            self.add(**fields, status=failure)
            print(" ".join(f"{k}={v}" for k, v in fields.items()), failure, flush=True)
        try:
            release()
        except RuntimeError as error:  # a broken device says so again at every call
            print(reason(error), flush=True)
        self.save()
        return not failure


@dataclass
class Timing:
    seconds: float  # median, of one call
    fastest: float
    repeats: int
    how: str  # "graph", "eager" or "cpu"

    def fields(self) -> dict[str, Any]:
        return {"seconds_median": self.seconds, "seconds_fastest": self.fastest,
                "repeats": self.repeats, "timing": self.how}


def measure(calls: Sequence[Callable[[], Any]], device: str, budget: float = 0.05,
            give_up: float = math.inf, least: int = 5, most: int = 50) -> Timing:
    """Time of one call, as the median over replays of a graph that holds all of them in turn.

    `calls` do the same on different inputs. A call that takes longer than `give_up` outside a
    graph is not worth one: that time is returned. `budget`: seconds for all repeats together.
    """
    if device == "cpu":
        samples = [_wall(call) for call in calls[:3]]
        return Timing(statistics.median(samples), min(samples), len(samples), "cpu")
    ours = torch.cuda.current_stream()
    side = torch.cuda.Stream()
    side.wait_stream(ours)
    try:
        with torch.cuda.stream(side):
            for call in calls[:2]:  # loads kernels, makes handles and plans
                call()
            once = _elapsed([calls[0]], 1)[0]
            if once > give_up:
                return Timing(once, once, 1, "eager")
            rounds = max(1, min(16, int(1e-3 / max(once * len(calls), 1e-6))))
        calls_held = rounds * len(calls)
        replay, how = _captured([*calls] * rounds, side)
        first = _elapsed([replay], 1)[0]
        repeats = max(least, min(most, int(budget / max(first, 1e-6))))
        samples = [t / calls_held for t in _elapsed([replay], repeats)]
        return Timing(statistics.median(samples), min(samples), repeats, how)
    finally:
        torch.cuda.set_stream(ours)  # a capture that fails leaves its own behind
        torch.cuda.synchronize()


def _captured(calls: Sequence[Callable[[], Any]], side: torch.cuda.Stream
              ) -> tuple[Callable[[], Any], str]:
    """The calls as one graph; what cannot be captured is called as it is."""
    graph = torch.cuda.CUDAGraph()
    ours = torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, stream=side):
            for call in calls:
                call()
    except RuntimeError as error:
        torch.cuda.set_stream(ours)
        print(f"not captured: {reason(error)}", flush=True)
        return (lambda: [call() for call in calls]), "eager"
    graph.replay()
    return graph.replay, "graph"


def _elapsed(calls: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    """Seconds on the device between events around each call."""
    torch.cuda.synchronize()
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
             for _ in range(repeats)]
    for begin, end in pairs:
        begin.record()
        for call in calls:
            call()
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) * 1e-3 for begin, end in pairs]


def _wall(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
