"""A program of the tests: Ray with applications on it, told what to do by lines of JSON.

    python ray_host.py '{"name": {settings of RayOptions}, ...}'

Each application is at `/<name>`. It prints one line of JSON when all of them answer, and one for
each line that it reads: {"do": "status", "app": name} or {"do": "stop"}. Ray is in a process of its
own so that whatever it leaves behind ends with it.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def main() -> None:
    """Serve until told to stop, or until whoever started this is gone."""
    import ray
    from ray import serve

    from bootpig_rt.serving.ray import build_app

    apps: dict[str, dict[str, Any]] = json.loads(sys.argv[1])
    answers_to = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray writes to stdout when it likes to
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=200 << 20,
        _temp_dir=os.environ["RAY_HOST_FOLDER"],
        log_to_driver=False,
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["RAY_HOST_PORT"])})
        for name, settings in apps.items():
            serve.run(build_app(settings), name=name, route_prefix=f"/{name}")
        print(json.dumps({"ready": list(apps)}), file=answers_to, flush=True)
        for line in sys.stdin:
            told = json.loads(line)
            if told["do"] == "stop":
                break
            handle = serve.get_deployment_handle("engine-pair", told["app"])
            answers = handle.broadcast("status").results(timeout_s=20, return_exceptions=True)
            statuses = [
                {
                    "replica": one.replica,
                    "pid": one.pid,
                    "running": one.load.running,
                    "misses": one.store.misses,
                    "device_hits": one.store.device_hits,
                }
                for one in answers
                if not isinstance(one, BaseException)
            ]
            print(json.dumps(statuses), file=answers_to, flush=True)
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
