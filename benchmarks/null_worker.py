"""A worker process with a null replay, configured as ``monitor worker`` is.

``python -m benchmarks.null_worker CONFIG [SECONDS_PER_PROMPT]`` runs until SIGTERM.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.null_replay import NullReplay, null_pack
from monitor.app import run_loops
from monitor.instrument import Instrument
from monitor.logs import configure
from monitor.settings import load


def main() -> None:
    given = load(Path(sys.argv[1]))
    # The null pack reads nothing, so nobody judges it.
    judged_by_nobody = given.pack.model_copy(update={"allow_unjudged": True})
    settings = given.model_copy(update={"pack": judged_by_nobody})
    configure(settings.log)
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    pack = null_pack(4)
    instrument = Instrument(pack=pack, engine=NullReplay(4, seconds_per_prompt=seconds))
    run_loops(settings, ("worker",), build=lambda _: instrument)


if __name__ == "__main__":
    main()
