"""A training step in which one rank dies, hangs or goes another way: `rank_fails.py KIND`, started by `graftwork launch`.

With "resume" the last rank dies in its second epoch, in the first start only.
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
            if kind in ("dies", "resume"):
                os.kill(os.getpid(), signal.SIGKILL)
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
