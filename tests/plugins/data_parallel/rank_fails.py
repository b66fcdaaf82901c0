"""A training step in which one rank dies, hangs or goes another way: `rank_fails.py KIND FOLDER`, for `graftwork launch`.

It is the last rank, in its second epoch, in the first start only. "cut": it and its supervisor fall silent, as if their host
had been cut off.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from rank_checks import build, loader

from graftwork import nn
from graftwork.plugins import data_parallel as dp
from graftwork.plugins import hookimpl, registered

kind, folder = sys.argv[1:]
group = dp.start()


class Fault:
    @hookimpl(tryfirst=True)
    def step_end(self, trainer):
        first = os.environ["GRAFTWORK_RESTART"] == "0"
        if trainer.step == 4 and first and group.rank == group.size - 1:
            if kind == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "cut":
                os.kill(os.getppid(), signal.SIGSTOP)
                os.kill(os.getpid(), signal.SIGSTOP)
            if kind == "hangs":
                time.sleep(3600)
            trainer.stop = True


model, optimizer = build()
trainer = nn.Trainer(model, optimizer, progress=False, checkpoint_path=f"{folder}/run.h5")
trainer.resume()
began = trainer.step
with registered(Fault(), "fault"):
    trainer.fit(loader(), 3)
group.log(f"ranks {group.size} began {began} ended {trainer.step}")
