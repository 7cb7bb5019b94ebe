"""``python -m btinet.cluster.driver STORAGE RUN_ID``: one run as a cluster job. STORAGE is a reference as JSON.

What to do is in the run's ``job.json``, written by whoever submitted the job; how it goes and ends is in storage too.
It takes nothing secret: credentials are the cluster's own.
"""

from __future__ import annotations

import json
import logging
import os
import sys

import btinet.cluster.session  # noqa: F401  isort: skip  (sets what Ray reads when it is imported)
import ray

from btinet.cluster.jobs import run_on_cluster
from btinet.config import BoundRun, ResourceSettings
from btinet.errors import InputError, JobError
from btinet.storage import Storage, refused
from btinet.training.outputs import run_folder


def job_file(root: Storage, run_id: str) -> Storage:
    """What a job is to do: the bound run and the resources it may have."""
    return run_folder(root, run_id) / "job.json"


def main() -> None:
    """Do the run; ends with status 1 where that fails."""
    reference, run_id = sys.argv[1:]
    root = Storage(**json.loads(reference))
    try:
        job = job_file(root, run_id).read_json()
        ray.init(os.environ["RAY_ADDRESS"], logging_level=logging.WARNING, log_to_driver=False)
        bound, resources = BoundRun.model_validate(job["bound"]), ResourceSettings.model_validate(job["resources"])
        run_on_cluster(bound, root, resources)
    except (InputError, JobError) as error:
        sys.exit(str(error))
    except PermissionError as error:
        sys.exit(refused(error))


if __name__ == "__main__":
    main()
