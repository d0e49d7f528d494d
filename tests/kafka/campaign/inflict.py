"""How each kind of fault is done and undone."""

from __future__ import annotations

import signal
import time

from tests.kafka.campaign.schedule import Fault, Kind
from tests.kafka.campaign.stage import Stage, wait_for


def inflict(fault: Fault, stage: Stage) -> float:
    """Do ``fault`` and undo it; the seconds until records were stored again.

    Before, every broker runs and is in step: with two of three away nothing can be written, and with
    the one left behind something could be lost, which no reader could mend.
    """
    wait_for(stage.in_step, "all brokers are in step")
    match fault.kind:
        case Kind.KILL_LEADER:
            node = stage.leader(fault.chance)
            node.kill()
            time.sleep(fault.seconds)
            node.start()
        case Kind.PAUSE_LEADER:
            node = stage.leader(fault.chance)
            node.pause()
            time.sleep(fault.seconds)
            node.resume()
        case Kind.STOP_BROKER:
            node = stage.cluster.nodes[fault.chance % len(stage.cluster.nodes)]
            node.stop()
            time.sleep(fault.seconds)
            node.start()
        case Kind.ROLLING_RESTART:
            for node in stage.cluster.nodes:
                wait_for(stage.in_step, "all brokers are in step")
                node.stop()
                node.start()
        case Kind.RESIZE:
            stage.workers.resize(fault.workers, fault.chance)
        case Kind.KILL_WORKER:
            stage.workers.end(fault.chance, signal.SIGKILL)
            time.sleep(fault.seconds)
            stage.workers.start()
        case Kind.GROW:
            stage.grow()
        case Kind.MAKE_ANEW:
            stage.make_anew()
    return stage.reads_on()
