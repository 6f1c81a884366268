"""The training process that the demo starts and kills: ``python -m neurofmx_wds.demo JOB``, with a Job as JSON."""

from __future__ import annotations

import json
import sys

from .train import Job, train

if __name__ == "__main__":
    train(Job(**json.loads(sys.argv[1])))
